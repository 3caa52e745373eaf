#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>
#include <torch/headeronly/version.h>

#include <memory>
#include <utility>

/// \file
/// What differs between the versions of torch that actnn compiles against (2.11 to 2.15): here and nowhere else. A
/// branch says what changed, and goes when the versions before it are not supported any more.

/// Whether torch is older than `major.minor`.
#define ACTNN_TORCH_BEFORE(major, minor) \
  (TORCH_VERSION_MAJOR < (major) || (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR < (minor)))

namespace actnn {

/// A new node of autograd's graph, held as `torch::autograd::set_history` takes it.
template <class Node, class... Arguments>
auto make_node(Arguments&&... arguments) {
#if ACTNN_TORCH_BEFORE(2, 13)
  // Graphs hold their nodes by std::shared_ptr, and it is the deleter that frees a deep one without recursion.
  return std::shared_ptr<Node>(new Node(std::forward<Arguments>(arguments)...), torch::autograd::deleteNode);
#else
  // Since 2.13 a node counts its references itself, and frees what hangs on it without recursion.
  return c10::make_intrusive<Node>(std::forward<Arguments>(arguments)...);
#endif
}

}  // namespace actnn
