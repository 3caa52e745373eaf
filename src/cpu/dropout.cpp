#include "actnn/cpu/dropout.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/cpu/dropout.cpp"
#include <hwy/foreach_target.h>  // includes this file once per instruction set

#include "src/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace actnn::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void dropout(const DropoutArguments& arguments, int64_t first_quad, int64_t last_quad) {
  reference::dropout(arguments, first_quad, last_quad);
}

#else

namespace {

inline constexpr int64_t kBlockQuads = kBlock / kDropoutQuad;
static_assert(kBlockQuads % kPhiloxMultiple == 0);

template <class Element>
void dropout_blocks(const DropoutArguments& arguments, int64_t first_quad, int64_t blocks) {
  const FloatTag df;
  const Word32Tag d32;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const DropoutScale dropout(arguments.probability);
  const auto highest_kept = hn::Set(d32, dropout.highest_kept);
  const auto scale = hn::Set(df, dropout.scale);
  const auto nan = hn::BitCast(df, hn::Set(d32, kNanFloat32));
  const PhiloxKeys keys(arguments.random.seed);
  HWY_ALIGN uint32_t words[kBlock];
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t quad = first_quad + block * kBlockQuads;
    const auto* input = static_cast<const Element*>(arguments.input) + quad * kDropoutQuad;
    auto* output = static_cast<Element*>(arguments.output) + quad * kDropoutQuad;
    philox_blocks(keys, arguments.random.offset, static_cast<uint64_t>(quad), kBlockQuads, words);
    for (int64_t i = 0; i < kBlock; i += lanes) {
      const auto drop = hn::RebindMask(df, hn::Gt(hn::Load(d32, words + i), highest_kept));
      const auto scaled = hn::Mul(load_floats(input + i), scale);
      const auto kept = hn::IfThenElse(hn::IsNaN(scaled), nan, scaled);
      store_floats(hn::IfThenZeroElse(drop, kept), output + i);
    }
  }
}

}  // namespace

void dropout(const DropoutArguments& arguments, int64_t first_quad, int64_t last_quad) {
  int64_t blocks = std::min(last_quad, arguments.count / kDropoutQuad) - first_quad;
  blocks = std::max<int64_t>(0, blocks) / kBlockQuads;
  if (DropoutScale(arguments.probability).keeps_none) {
    blocks = 0;
  }
  with_element_type(arguments.type,
                    [&]<class Element>(Element /*tag*/) { dropout_blocks<Element>(arguments, first_quad, blocks); });
  reference::dropout(arguments, first_quad + blocks * kBlockQuads, last_quad);
}

#endif

}  // namespace actnn::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "src/cpu/dispatch.h"

namespace actnn::cpu {
namespace reference {

void dropout(const DropoutArguments& arguments, int64_t first_quad, int64_t last_quad) {
  const DropoutScale scale(arguments.probability);
  with_element_type(arguments.type, [&]<class Element>(Element /*tag*/) {
    const auto* input = static_cast<const Element*>(arguments.input);
    auto* output = static_cast<Element*>(arguments.output);
    for (int64_t quad = first_quad; quad < last_quad; ++quad) {
      const PhiloxBlock random = arguments.random.block(static_cast<uint64_t>(quad));
      const int64_t begin = quad * kDropoutQuad;
      const int64_t end = std::min(begin + kDropoutQuad, arguments.count);
      for (int64_t i = begin; i < end; ++i) {
        store_rounded(with_canonical_nan(scale.apply(to_float(input[i]), random.word[i - begin])), &output[i]);
      }
    }
  });
}

}  // namespace reference

HWY_EXPORT(dropout);

void dropout(const DropoutArguments& arguments, int64_t first_quad, int64_t last_quad) {
  if (use_reference()) {
    return reference::dropout(arguments, first_quad, last_quad);
  }
  HWY_DYNAMIC_DISPATCH(dropout)(arguments, first_quad, last_quad);
}

}  // namespace actnn::cpu
#endif
