#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace actnn::app {

/// What a model is given, and what it is to find.
struct Batch {
  at::Tensor inputs;
  at::Tensor labels;  ///< int64
};

/// One part of the data, for training or for the test, on a device.
class Dataset {
 public:
  Dataset() = default;
  Dataset(const Dataset&) = delete;
  Dataset& operator=(const Dataset&) = delete;
  virtual ~Dataset() = default;

  virtual int64_t size() const = 0;     ///< examples
  virtual int64_t classes() const = 0;  ///< labels are below
  virtual int64_t bytes() const = 0;    ///< that it takes on its device

  /// Of the examples in use.
  virtual uint32_t checksum() const = 0;

  /// The examples at `indices`, an int64 tensor.
  virtual Batch batch(const at::Tensor& indices) const = 0;

  /// The examples from `begin` to before `end`.
  virtual Batch range(int64_t begin, int64_t end) const = 0;
};

}  // namespace actnn::app
