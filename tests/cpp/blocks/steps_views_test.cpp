// Interpolations and views, one step or a few, against torch's. They save nothing.
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "tests/cpp/blocks/step_comparison.h"

namespace actnn::blocks {
namespace {

class ViewSteps : public StepComparison {};

TEST_P(ViewSteps, AreTorchs) { compare_in_all_formats(GetParam()); }
TEST_P(ViewSteps, SaveNothing) { expect_saves_nothing(GetParam()); }

std::vector<Case> interpolations() {
  const auto sized = [](const char* name, const Shapes& inputs, const std::string& fields, auto function) {
    return Case{.name = name,
                .inputs = inputs,
                .steps = step("upsample", fields),
                .results = {1},
                .expected = of_input(function)};
  };
  static constexpr std::array<double, 1> kScale{2.3};
  static constexpr std::array<double, 2> kScales{1.7, 2.0};
  static constexpr std::array<double, 3> kVolumeScales{1.5, 2.0, 0.6};
  using Scales = c10::ArrayRef<double>;
  const at::OptionalIntArrayRef none;
  return {
      sized("Nearest1d", {{2, 3, 7}}, R"("mode": "nearest", "scale_factors": [2.3])",
            [=](const at::Tensor& x) { return at::upsample_nearest1d(x, none, Scales(kScale)); }),
      sized("Nearest2d", {{2, 3, 5, 4}}, R"("mode": "nearest", "size": [9, 3])",
            [](const at::Tensor& x) {
              return at::upsample_nearest2d(x, {9, 3});
            }),
      sized("Nearest3d", {{2, 3, 4, 3, 5}}, R"("mode": "nearest", "scale_factors": [1.5, 2.0, 0.6])",
            [=](const at::Tensor& x) { return at::upsample_nearest3d(x, none, Scales(kVolumeScales)); }),
      sized("NearestExact1d", {{2, 3, 7}}, R"("mode": "nearest-exact", "size": [10])",
            [](const at::Tensor& x) { return at::_upsample_nearest_exact1d(x, {10}); }),
      sized("NearestExact2d", {{2, 3, 5, 4}}, R"("mode": "nearest-exact", "scale_factors": [1.7, 2.0])",
            [=](const at::Tensor& x) { return at::_upsample_nearest_exact2d(x, none, Scales(kScales)); }),
      sized("NearestExact3d", {{2, 3, 4, 3, 5}}, R"("mode": "nearest-exact", "size": [5, 6, 7])",
            [](const at::Tensor& x) {
              return at::_upsample_nearest_exact3d(x, {5, 6, 7});
            }),
      sized("Linear", {{2, 3, 7}}, R"("mode": "linear", "scale_factors": [2.3], "align_corners": true)",
            [=](const at::Tensor& x) { return at::upsample_linear1d(x, none, true, Scales(kScale)); }),
      sized("Bilinear", {{2, 3, 5, 4}}, R"("mode": "bilinear", "scale_factors": [1.7, 2.0])",
            [=](const at::Tensor& x) { return at::upsample_bilinear2d(x, none, false, Scales(kScales)); }),
      sized("Bicubic", {{2, 3, 5, 4}}, R"("mode": "bicubic", "size": [8, 9], "align_corners": true)",
            [](const at::Tensor& x) {
              return at::upsample_bicubic2d(x, {8, 9}, true);
            }),
      sized("Trilinear", {{2, 3, 4, 3, 5}}, R"("mode": "trilinear", "scale_factors": [1.5, 2.0, 0.6])",
            [=](const at::Tensor& x) { return at::upsample_trilinear3d(x, none, false, Scales(kVolumeScales)); }),
  };
}

std::vector<Case> views() {
  const auto view = [](const char* name, const Shapes& inputs, const std::string& steps, const List& results,
                       std::function<Tensors(const Tensors&, const Tensors&)> expected, const List& integers = {}) {
    return Case{.name = name,
                .inputs = inputs,
                .steps = steps,
                .results = results,
                .expected = std::move(expected),
                .exactness = Exactness::kEqual,
                .integers = integers};
  };
  const Shapes image{{2, 6, 3, 5}};
  return {
      view("Concatenate", {{2, 3, 3, 5}, {2, 1, 3, 5}, {2, 2, 3, 5}},
           R"({"op": "concatenate", "inputs": [0, 1, 2], "dimension": -3})", {3},
           [](const Tensors& x, const Tensors&) { return Tensors{at::cat(x, 1)}; }),
      view("Reshape", image, step("reshape", R"("sizes": [{"integer": 0}, -1, 9])"), {1},
           of_input([](const at::Tensor& x) {
             return x.reshape({4, 5, 9});
           }),
           {4}),
      view("Flatten", image, step("flatten", R"("start": 1, "end": -2)"), {1},
           of_input([](const at::Tensor& x) { return x.flatten(1, -2); })),
      view("Unsqueeze", image, step("unsqueeze", R"("dimension": -1)"), {1},
           of_input([](const at::Tensor& x) { return x.unsqueeze(-1); })),
      view("SqueezeOfOne", {{2, 6, 1, 5}}, step("squeeze", R"("dimension": -2)"), {1},
           of_input([](const at::Tensor& x) { return x.squeeze(2); })),
      view("SqueezeOfMore", image, step("squeeze", R"("dimension": 1)"), {1},
           of_input([](const at::Tensor& x) { return x.squeeze(1); })),
      view("Permute", image, step("permute", R"("dimensions": [2, 0, -1, 1])"), {1}, of_input([](const at::Tensor& x) {
             return x.permute({2, 0, 3, 1});
           })),
      view("Roll", image, step("roll", R"("shifts": [-1, 2], "dimensions": [2, -1])"), {1},
           of_input([](const at::Tensor& x) {
             return x.roll({-1, 2}, {2, 3});
           })),
      view("Select", image, step("select", R"("dimension": 1, "index": -2)"), {1},
           of_input([](const at::Tensor& x) { return x.select(1, -2); })),
      view("Split", image, step("split", R"("sizes": [1, 3, 2], "dimension": 1)"), {1, 2, 3},
           [](const Tensors& x, const Tensors&) {
             return x[0].split_with_sizes({1, 3, 2}, 1);
           }),
      view("SplitOfWhichOnePartIsRead", image, step("split", R"("sizes": [1, 3, 2], "dimension": 1)"), {2},
           of_input([](const at::Tensor& x) { return x.narrow(1, 1, 3); })),
      view("Chunk", image, step("chunk", R"("chunks": 3, "dimension": -1)"), {1, 2, 3},
           [](const Tensors& x, const Tensors&) { return x[0].chunk(3, 3); }),
      view("UnbindOfWhichTwoPartsAreRead", image, step("unbind", R"("count": 3, "dimension": 2)"), {1, 3},
           [](const Tensors& x, const Tensors&) {
             return Tensors{x[0].select(2, 0), x[0].select(2, 2)};
           }),
  };
}

INSTANTIATE_TEST_SUITE_P(Interpolations, ViewSteps, testing::ValuesIn(interpolations()), case_name);
INSTANTIATE_TEST_SUITE_P(Views, ViewSteps, testing::ValuesIn(views()), case_name);

}  // namespace
}  // namespace actnn::blocks
