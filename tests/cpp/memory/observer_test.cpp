#include "actnn/memory/observer.h"

#include <ATen/ThreadLocalState.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/relu.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

namespace actnn {
namespace {

at::Tensor bytes(int64_t count) { return at::empty({count}, at::kByte); }

TEST(AllocationObserver, CountsLiveAndPeakBytes) {
  const AllocationObserver observer;
  EXPECT_EQ(observer.live_bytes(), 0);
  EXPECT_EQ(observer.peak_bytes(), 0);
  at::Tensor a = bytes(1000);
  at::Tensor b = at::empty({3, 5}, at::kFloat);
  EXPECT_EQ(observer.live_bytes(), 1060);
  const at::Tensor view = b.t();
  EXPECT_EQ(observer.live_bytes(), 1060);
  a.reset();
  EXPECT_EQ(observer.live_bytes(), 60);
  EXPECT_EQ(observer.peak_bytes(), 1060);
  b.reset();
  EXPECT_EQ(observer.live_bytes(), 60) << "the view still holds the storage";
}

TEST(AllocationObserver, ForgetsThePeakOnRequest) {
  AllocationObserver observer;
  at::Tensor a = bytes(500);
  bytes(4000).reset();
  EXPECT_EQ(observer.peak_bytes(), 4500);
  observer.reset_peak();
  EXPECT_EQ(observer.peak_bytes(), 500);
  bytes(100).reset();
  EXPECT_EQ(observer.peak_bytes(), 600);
}

TEST(AllocationObserver, KeepsDeviceTypesApart) {
  const AllocationObserver observer;
  const at::Tensor a = bytes(500);
  EXPECT_EQ(observer.live_bytes(c10::kCUDA), 0);
  EXPECT_EQ(observer.peak_bytes(c10::kCUDA), 0);
}

TEST(AllocationObserver, CountsTheBlocksOfAGpu) {
  if (!c10::impl::hasDeviceGuardImpl(c10::kCUDA) || c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount() == 0) {
    GTEST_SKIP() << "no CUDA device";
  }
  const auto on_gpu = [](int64_t count) { return at::empty({count}, at::TensorOptions(c10::kCUDA).dtype(at::kByte)); };
  const auto in_use = [] {
    constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(0).allocated_bytes[kAll].current;
  };
  const at::Tensor older = on_gpu(1);  // starts CUDA
  const int64_t before = in_use();
  const AllocationObserver observer;
  at::Tensor a = on_gpu(1000);
  EXPECT_EQ(observer.live_bytes(c10::kCUDA), 1024) << "blocks are multiples of 512 bytes";
  const at::Tensor b = on_gpu(5'000'001);
  EXPECT_EQ(observer.live_bytes(c10::kCUDA), in_use() - before);
  a.reset();
  EXPECT_EQ(observer.live_bytes(c10::kCUDA), in_use() - before);
  EXPECT_EQ(observer.peak_bytes(c10::kCUDA), observer.live_bytes(c10::kCUDA) + 1024);
  EXPECT_EQ(observer.live_bytes(), 0);
}

TEST(AllocationObserver, SeesWhatAutogradSaves) {
  // relu saves its result, which is also the last layer's input: 512 x 500 floats, held once.
  const at::Tensor x = at::rand({512, 64});
  const at::Tensor w1 = at::rand({64, 500}).requires_grad_();
  const at::Tensor w2 = at::rand({500, 10}).requires_grad_();
  const at::Tensor bias1 = at::rand({500}).requires_grad_();
  const at::Tensor bias2 = at::rand({10}).requires_grad_();
  const AllocationObserver observer;
  at::Tensor y = at::addmm(bias1, x, w1);
  y = at::relu(y);
  y = at::addmm(bias2, y, w2);
  const int64_t result = int64_t{512} * 10 * 4;
  const int64_t hidden = int64_t{512} * 500 * 4;
  EXPECT_EQ(observer.live_bytes(), hidden + result);
  EXPECT_EQ(observer.peak_bytes(), 2 * hidden) << "relu's input is dropped once its result exists";
  y.sum().backward();
  y.reset();
  const int64_t gradients = (int64_t{64} * 500 + 500 * 10 + 500 + 10) * 4;
  EXPECT_EQ(observer.live_bytes(), gradients);
}

TEST(AllocationObserver, RecordsATimelineWithMarks) {
  AllocationObserver observer;
  const at::Tensor before = bytes(100);
  observer.mark("ignored, as nothing is recorded");
  observer.start_timeline();
  observer.mark("forward");
  at::Tensor a = bytes(1000);
  observer.mark("backward");
  a.reset();
  const MemoryTimeline timeline = observer.stop_timeline();
  const at::Tensor after = bytes(50);

  std::vector<int64_t> live;
  int64_t last = 0;
  for (const MemorySample& sample : timeline.samples) {
    live.push_back(sample.live_bytes);
    EXPECT_GE(sample.microseconds, last);
    last = sample.microseconds;
  }
  EXPECT_EQ(live, (std::vector<int64_t>{100, 1100, 100}));
  ASSERT_EQ(timeline.marks.size(), 2U);
  EXPECT_EQ(timeline.marks[0].name, "forward");
  EXPECT_EQ(timeline.marks[1].name, "backward");
  EXPECT_LE(timeline.marks[0].microseconds, timeline.samples[1].microseconds);
  EXPECT_LE(timeline.samples[1].microseconds, timeline.marks[1].microseconds);
  EXPECT_LE(timeline.marks[1].microseconds, timeline.samples[2].microseconds);

  EXPECT_TRUE(observer.stop_timeline().samples.empty());
}

TEST(AllocationObserver, Nests) {
  const AllocationObserver outer;
  const at::Tensor a = bytes(100);
  {
    const AllocationObserver inner;
    const at::Tensor b = bytes(1000);
    EXPECT_EQ(inner.live_bytes(), 1000);
    EXPECT_EQ(outer.live_bytes(), 1100);
  }
  EXPECT_EQ(outer.live_bytes(), 100);
  EXPECT_EQ(outer.peak_bytes(), 1100);
}

TEST(AllocationObserver, StopsSeeingWhenDestroyed) {
  auto observer = std::make_unique<AllocationObserver>();
  observer.reset();
  EXPECT_FALSE(c10::memoryProfilingEnabled());
}

TEST(AllocationObserver, FollowsTheThreadStateToOtherThreads) {
  at::Tensor seen;
  at::Tensor unseen;
  const AllocationObserver observer;
  const at::ThreadLocalState state;
  std::thread([&] {
    const at::ThreadLocalStateGuard guard(state);
    seen = bytes(300);
  }).join();
  std::thread([&] { unseen = bytes(7000); }).join();
  EXPECT_EQ(observer.live_bytes(), 300);
  EXPECT_EQ(observer.peak_bytes(), 300);
}

TEST(AllocationObserver, CountsManyThreadsExactly) {
  const AllocationObserver observer;
  const at::ThreadLocalState state;
  std::vector<std::thread> threads;
  threads.reserve(4);
  std::vector<at::Tensor> kept(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const at::ThreadLocalStateGuard guard(state);
      for (int j = 0; j < 1000; ++j) {
        bytes(64 + j).reset();
      }
      kept[i] = bytes(10 + i);
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(observer.live_bytes(), 10 + 11 + 12 + 13);
  EXPECT_GE(observer.peak_bytes(), 64 + 999);
}

TEST(AllocationObserver, RefusesToReplaceTorchsProfiler) {
  class Profiler : public c10::DebugInfoBase {};
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, std::make_shared<Profiler>());
  EXPECT_THROW(const AllocationObserver observer, std::logic_error);
}

}  // namespace
}  // namespace actnn
