#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

/// \file
/// What the tests of CUDA kernels share.

namespace actnn::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

/// A test that is skipped where there is no GPU.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
      GTEST_SKIP() << "no CUDA device: " << cudaGetErrorString(error);
    }
  }
};

template <class Parameter>
class GpuTestOf : public GpuTest, public testing::WithParamInterface<Parameter> {};

/// Bytes of GPU memory, `offset` bytes behind an allocation's start and up to its end, so that compute-sanitizer sees
/// accesses behind them. What is not given is not initialized, so that it sees too what is read before it was written.
class GpuBytes {
 public:
  explicit GpuBytes(size_t size, size_t offset = 0) : size_(size), offset_(offset) {
    check(cudaMalloc(&allocation_, size + offset));
  }
  explicit GpuBytes(const std::vector<uint8_t>& bytes, size_t offset = 0) : GpuBytes(bytes.size(), offset) {
    check(cudaMemcpy(as<void>(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
  ~GpuBytes() { cudaFree(allocation_); }
  GpuBytes(const GpuBytes&) = delete;
  GpuBytes& operator=(const GpuBytes&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(static_cast<void*>(static_cast<uint8_t*>(allocation_) + offset_));
  }

  /// After all work before.
  std::vector<uint8_t> read() const {
    std::vector<uint8_t> bytes(size_);
    check(cudaMemcpy(bytes.data(), as<void>(), size_, cudaMemcpyDeviceToHost));
    return bytes;
  }

 private:
  void* allocation_ = nullptr;
  size_t size_;
  size_t offset_;
};

/// Numbers in GPU memory.
template <class T>
class GpuArray {
 public:
  explicit GpuArray(const std::vector<T>& values)
      : bytes_(std::vector<uint8_t>(reinterpret_cast<const uint8_t*>(values.data()),
                                    reinterpret_cast<const uint8_t*>(values.data() + values.size()))) {}
  explicit GpuArray(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) {}

  T* data() const { return bytes_.as<T>(); }

  std::vector<T> read() const {
    const std::vector<uint8_t> bytes = bytes_.read();
    std::vector<T> values(bytes.size() / sizeof(T));
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(values.data()));
    return values;
  }

 private:
  GpuBytes bytes_;
};

}  // namespace actnn::cuda
