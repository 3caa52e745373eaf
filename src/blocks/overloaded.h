#pragma once

namespace actnn::blocks {

/// A visitor of a variant, made of functions.
template <class... Functions>
struct Overloaded : Functions... {
  using Functions::operator()...;
};
template <class... Functions>
Overloaded(Functions...) -> Overloaded<Functions...>;

}  // namespace actnn::blocks
