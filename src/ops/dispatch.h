#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace actnn {

/// The dispatcher's op of this name ("actnn::layer_norm"), to be kept in a static variable by the function that calls
/// it.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace actnn
