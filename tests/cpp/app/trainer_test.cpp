#include "src/app/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/rand.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/app/error.h"
#include "src/app/models.h"
#include "tests/cpp/app/temporary_folder.h"

namespace actnn::app {
namespace {

using testing::HasSubstr;

TEST(Models, HaveTheirKnownSizes) {
  const auto parameters = [](const char* name) {
    int64_t count = 0;
    for (const at::Tensor& parameter : make_model(name)->parameters()) {
      count += parameter.numel();
    }
    return count;
  };
  // The published 0.27 million and 11.2 million, less two input channels of the stem.
  EXPECT_EQ(parameters("resnet20"), 272'186);
  EXPECT_EQ(parameters("resnet18"), 11'172'810);
  EXPECT_EQ(parameters("mlp"), 669'706);
  EXPECT_THROW(make_model("vgg"), std::invalid_argument);
}

TEST(Models, WorkOnChannelsLastActivations) {
  const at::NoGradGuard no_grad;
  torch::nn::Sequential model = make_model("resnet20");
  at::Tensor activation = at::rand({2, 1, 28, 28});
  activation = model->begin()->forward(activation);
  EXPECT_TRUE(activation.is_contiguous(at::MemoryFormat::ChannelsLast));
  EXPECT_EQ(model->forward(at::rand({2, 1, 28, 28})).sizes(), (c10::IntArrayRef{2, 10}));
}

class Training : public testing::TestWithParam<Phase> {
 protected:
  Training() {
    at::set_num_threads(1);
    write_data(folder.path(), 40);
    settings.model = "mlp";
    settings.batch_size = 16;
    settings.epochs = 2;
  }

  Dataset data(const char* split) const { return {folder.path(), split, 0, c10::kCPU}; }

  TemporaryFolder folder;
  Settings settings;
};

TEST_P(Training, ContinuesASavedStateBitForBit) {
  const Dataset train = data("train");
  const Dataset test = data("t10k");
  const auto go_on = [&](Trainer& trainer) {
    while (!trainer.finished()) {
      trainer.evaluation_due() ? static_cast<void>(trainer.evaluate([] { return false; }))
                               : static_cast<void>(trainer.step());
    }
  };
  PhaseRecord whole;
  {
    Trainer trainer(settings, GetParam(), train, test, c10::kCPU);
    go_on(trainer);
    whole = trainer.record();
  }
  EXPECT_EQ(whole.losses.size(), 6U);
  EXPECT_EQ(whole.test_accuracy.size(), 2U);

  PhaseRecord record;
  std::map<std::string, at::Tensor> state;
  {
    Trainer trainer(settings, GetParam(), train, test, c10::kCPU);
    for (int i = 0; i < 2; ++i) {
      trainer.step();
    }
    record = trainer.record();
    state = trainer.state();
    for (auto& [name, tensor] : state) {
      tensor = tensor.detach().clone();
    }
  }
  Trainer trainer(settings, GetParam(), train, test, c10::kCPU, record);
  trainer.load_state(state, "x");
  go_on(trainer);
  EXPECT_EQ(trainer.record().losses, whole.losses);
  EXPECT_EQ(trainer.record().test_accuracy, whole.test_accuracy);
}

TEST_P(Training, MeasuresAStep) {
  const Dataset train = data("train");
  const Dataset test = data("t10k");
  Trainer trainer(settings, GetParam(), train, test, c10::kCPU);
  for (int i = 0; i < 5; ++i) {
    trainer.step();
  }
  const PhaseRecord& record = trainer.record();
  EXPECT_GT(record.activation_bytes, 0);
  // Weights, their gradients, and the optimizer's momentum.
  EXPECT_GT(record.peak_bytes, int64_t{3} * 669'706 * 4);
  EXPECT_GT(record.timeline.samples.size(), 10U);
  ASSERT_EQ(record.timeline.marks.size(), 3U);
  EXPECT_EQ(record.timeline.marks[1].name, "backward");
  EXPECT_EQ(record.conversion.is_null(), GetParam() == Phase::kExact);
}

TEST_P(Training, RefusesAStateOfAnotherModel) {
  const Dataset train = data("train");
  const Dataset test = data("t10k");
  Trainer trainer(settings, GetParam(), train, test, c10::kCPU);
  std::map<std::string, at::Tensor> state = trainer.state();
  state["model.1.bias"] = at::rand({3});
  EXPECT_EQ(
      message_of<RunError>([&] { trainer.load_state(state, "x.ckpt"); }),
      "the checkpoint x.ckpt does not fit the model: model.1.bias has the shape [3] and type Float, expected [512] and "
      "Float");
  state.erase("model.1.bias");
  EXPECT_EQ(message_of<RunError>([&] { trainer.load_state(state, "x.ckpt"); }),
            "the checkpoint x.ckpt does not fit the model: it has no tensor model.1.bias");
}

TEST_P(Training, SaysWhenItDiverges) {
  settings.lr = 1e20;
  const Dataset train = data("train");
  const Dataset test = data("t10k");
  Trainer trainer(settings, GetParam(), train, test, c10::kCPU);
  const std::string message = message_of<RunError>([&] {
    while (!trainer.finished()) {
      trainer.step();
    }
  });
  EXPECT_THAT(message, HasSubstr("run diverged: the loss of step "));
}

INSTANTIATE_TEST_SUITE_P(Phases, Training, testing::Values(Phase::kExact, Phase::kCompressed),
                         [](const auto& test) { return name_of(test.param); });

}  // namespace
}  // namespace actnn::app
