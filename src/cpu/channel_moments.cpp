#include "src/cpu/channel_moments.h"

#include <algorithm>
#include <vector>

#include "actnn/cpu/norm_act.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/channel_moments.cpp"
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/double-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void part_moments(const void* x, ElementType type, int64_t rows, int64_t channels, int64_t part, double* mean,
                  double* squares) {
  reference::part_moments(x, type, rows, channels, part, mean, squares);
}

#else

namespace {

/// Rows that are added between a load and a store of a sum.
inline constexpr int64_t kRun = 8;

/// Adds distances from `origin`, and their squares, of rows [0, rows) of a matrix.
template <class Element, class Tag>
void add_rows(Tag df, const Element* elements, int64_t rows, int64_t channels, const float* origin, double* sums,
              double* squares) {
  const int64_t ahead = prefetch_distance(channels);
  for (int64_t channel = 0; channel < channels; channel += static_cast<int64_t>(hn::Lanes(df))) {
    const Doubles<Tag> from(hn::LoadU(df, origin + channel));
    Doubles<Tag> sum(sums + channel);
    Doubles<Tag> square(squares + channel);
    for (int64_t row = 0; row < rows; ++row) {
      Doubles<Tag> distance(load_ahead(df, elements + row * channels + channel, ahead));
      distance.subtract(from);
      sum.add(distance);
      square.add_product(distance, distance);
    }
    sum.store(sums + channel);
    square.store(squares + channel);
  }
}

template <class Element, class Tag>
void moments_of_rows(Tag df, const Element* elements, int64_t rows, int64_t channels, double* mean, double* squares) {
  std::vector<float> origin(static_cast<size_t>(channels));
  for (int64_t channel = 0; channel < channels; ++channel) {
    origin[static_cast<size_t>(channel)] = moments_origin(to_float(elements[channel]));
  }
  std::fill_n(mean, channels, 0.0);
  std::fill_n(squares, channels, 0.0);
  for (int64_t row = 0; row < rows; row += kRun) {
    add_rows(df, elements + row * channels, std::min(kRun, rows - row), channels, origin.data(), mean, squares);
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    finish_moments(origin[static_cast<size_t>(channel)], rows, mean[channel], squares[channel]);
  }
}

}  // namespace

void part_moments(const void* x, ElementType type, int64_t rows, int64_t channels, int64_t part, double* mean,
                  double* squares) {
  if (channels % kOctet != 0) {
    return reference::part_moments(x, type, rows, channels, part, mean, squares);
  }
  const int64_t first = part * kPartRows;
  const int64_t own_rows = std::min(kPartRows, rows - first);
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    with_tag(channels, [&](auto df) {
      moments_of_rows(df, static_cast<const Element*>(x) + first * channels, own_rows, channels, mean, squares);
    });
  });
}

#endif

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "src/cpu/dispatch.h"

namespace actnn::cpu {

HWY_EXPORT(part_moments);

void part_moments(const void* x, ElementType type, int64_t rows, int64_t channels, int64_t part, double* mean,
                  double* squares) {
  if (use_reference()) {
    return reference::part_moments(x, type, rows, channels, part, mean, squares);
  }
  HWY_DYNAMIC_DISPATCH(part_moments)(x, type, rows, channels, part, mean, squares);
}

/// Chan et al., "Algorithms for computing the sample variance" (1983). The innermost loop is over channels, which lie
/// side by side.
void join_moments(const double* means, const double* squares, int64_t rows, int64_t channels, float* mean,
                  float* variance) {
  std::vector<double> joint_mean(static_cast<size_t>(channels));
  std::vector<double> joint_squares(static_cast<size_t>(channels));
  for (int64_t first = 0; first < rows; first += kPartRows, means += channels, squares += channels) {
    const auto count = static_cast<double>(first);
    const auto own = static_cast<double>(std::min(kPartRows, rows - first));
    const double share = own / (count + own);
    for (int64_t channel = 0; channel < channels; ++channel) {
      const double distance = means[channel] - joint_mean[static_cast<size_t>(channel)];
      joint_squares[static_cast<size_t>(channel)] += squares[channel] + distance * distance * count * share;
      joint_mean[static_cast<size_t>(channel)] += distance * share;
    }
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    mean[channel] = static_cast<float>(joint_mean[static_cast<size_t>(channel)]);
    const double sum = joint_squares[static_cast<size_t>(channel)];
    variance[channel] = static_cast<float>(rows > 0 ? sum / static_cast<double>(rows) : 0.0);
  }
}

}  // namespace actnn::cpu
#endif
