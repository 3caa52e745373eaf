#include "src/app/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <memory>
#include <tuple>
#include <utility>

#include "src/app/data.h"
#include "src/app/error.h"
#include "src/app/models.h"
#include "tests/cpp/app/temporary_folder.h"

namespace actnn::app {
namespace {

using testing::HasSubstr;

TEST(Models, HaveTheirKnownSizes) {
  const auto parameters = [](const char* name) {
    int64_t count = 0;
    for (const at::Tensor& parameter : make_model(name, 10)->layers->parameters()) {
      count += parameter.numel();
    }
    return count;
  };
  // The published 0.27 million and 11.2 million, less two input channels of the stem.
  EXPECT_EQ(parameters("resnet20"), 272'186);
  EXPECT_EQ(parameters("resnet18"), 11'172'810);
  EXPECT_EQ(parameters("mlp"), 669'706);
  // Embeddings; layers with 12 matrices of 128 x 128 in all, their biases, norms; a norm and the head.
  EXPECT_EQ(parameters("gpt"), (10 + 128) * 128 + 4 * (12 * 16'384 + 13 * 128) + 256 + 1'290);
  EXPECT_THROW(make_model("vgg", 10), std::invalid_argument);
}

TEST(Models, WorkOnChannelsLastActivations) {
  const at::NoGradGuard no_grad;
  torch::nn::Sequential model = make_model("resnet20", 10)->layers;
  at::Tensor activation = at::rand({2, 1, 28, 28});
  activation = model->begin()->forward(activation);
  EXPECT_TRUE(activation.is_contiguous(at::MemoryFormat::ChannelsLast));
  EXPECT_EQ(model->forward(at::rand({2, 1, 28, 28})).sizes(), (c10::IntArrayRef{2, 10}));
}

TEST(Models, PredictTheNextCharacterFromThoseBefore) {
  const at::NoGradGuard no_grad;
  torch::manual_seed(1);
  const std::unique_ptr<Model> model = make_model("gpt", 7);
  const at::Tensor text = at::randint(7, {2, 50});
  at::Tensor changed = text.clone();
  changed.slice(1, 30).add_(1).remainder_(7);
  const at::Tensor expected = model->layers->begin()->forward(text);
  const at::Tensor actual = model->layers->begin()->forward(changed);
  EXPECT_TRUE(at::allclose(actual.slice(1, 0, 30), expected.slice(1, 0, 30), 1e-5, 1e-6));
  EXPECT_FALSE(at::allclose(actual.slice(1, 30, 31), expected.slice(1, 30, 31), 1e-2, 1e-2));
}

class Training : public testing::TestWithParam<std::tuple<const char*, Phase>> {
 protected:
  Training() {
    at::set_num_threads(1);
    write_data(folder.path(), 40);
    std::string text;
    for (int line = 0; line < 70; ++line) {
      text += "Line " + std::to_string(line * 7919) + " of a text to learn.\n";
    }
    write_file(folder / "a.txt", text);
    settings.model = std::get<0>(GetParam());
    settings.batch_size = settings.is_of_text() ? 8 : 16;
    settings.epochs = 2;
    settings.lr = settings.is_of_text() ? 3e-3 : 0.1;
    data = open_data(settings, folder.path(), c10::kCPU);
  }

  static Phase phase() { return std::get<1>(GetParam()); }
  std::unique_ptr<Trainer> make(PhaseRecord record = {}) const {
    return std::make_unique<Trainer>(settings, phase(), *data.train, *data.test, c10::kCPU, std::move(record));
  }

  TemporaryFolder folder;
  Settings settings;
  Data data;
};

TEST_P(Training, ContinuesASavedStateBitForBit) {
  const auto go_on = [&](Trainer& trainer) {
    while (!trainer.finished()) {
      trainer.evaluation_due() ? static_cast<void>(trainer.evaluate([] { return false; }))
                               : static_cast<void>(trainer.step());
    }
  };
  const std::unique_ptr<Trainer> uninterrupted = make();
  go_on(*uninterrupted);
  const PhaseRecord& whole = uninterrupted->record();
  EXPECT_EQ(whole.losses.size(), settings.is_of_text() ? 4U : 6U);
  EXPECT_EQ(whole.evaluations(), 2U);
  EXPECT_EQ(whole.test_loss.empty(), !settings.is_of_text());

  std::unique_ptr<Trainer> trainer = make();
  for (int i = 0; i < 3; ++i) {
    trainer->evaluation_due() ? static_cast<void>(trainer->evaluate([] { return false; }))
                              : static_cast<void>(trainer->step());
  }
  const PhaseRecord record = trainer->record();
  std::map<std::string, at::Tensor> state = trainer->state();
  for (auto& [name, tensor] : state) {
    tensor = tensor.detach().clone();
  }
  trainer = make(record);
  trainer->load_state(state, "x");
  go_on(*trainer);
  EXPECT_EQ(trainer->record().losses, whole.losses);
  EXPECT_EQ(trainer->record().test_accuracy, whole.test_accuracy);
  EXPECT_EQ(trainer->record().test_loss, whole.test_loss);
}

TEST_P(Training, MeasuresAStep) {
  const std::unique_ptr<Trainer> trainer = make();
  for (int i = 0; i < 4; ++i) {
    trainer->step();
  }
  const PhaseRecord& record = trainer->record();
  EXPECT_GT(record.activation_bytes, 0);
  // Weights, their gradients, and what the optimizer remembers.
  EXPECT_GT(record.peak_bytes, int64_t{3} * 669'706 * 4);
  EXPECT_GT(record.timeline.samples.size(), 10U);
  ASSERT_EQ(record.timeline.marks.size(), 3U);
  EXPECT_EQ(record.timeline.marks[1].name, "backward");
  EXPECT_EQ(record.conversion.is_null(), phase() == Phase::kExact);
}

TEST_P(Training, RefusesAStateOfAnotherModel) {
  const std::unique_ptr<Trainer> trainer = make();
  std::map<std::string, at::Tensor> state = trainer->state();
  const std::string name = settings.is_of_text() ? "model.transformer.layers.1.linear1.bias" : "model.1.bias";
  state.at(name) = at::rand({3});
  EXPECT_EQ(message_of<RunError>([&] { trainer->load_state(state, "x.ckpt"); }),
            "the checkpoint x.ckpt does not fit the model: " + name +
                " has the shape [3] and type Float, expected [512] and Float");
  state.erase(name);
  EXPECT_EQ(message_of<RunError>([&] { trainer->load_state(state, "x.ckpt"); }),
            "the checkpoint x.ckpt does not fit the model: it has no tensor " + name);
}

TEST_P(Training, SaysWhenItDiverges) {
  settings.lr = 1e20;
  const std::unique_ptr<Trainer> trainer = make();
  const std::string message = message_of<RunError>([&] {
    while (!trainer->finished()) {
      trainer->step();
    }
  });
  EXPECT_THAT(message, HasSubstr("run diverged: the loss of step "));
}

INSTANTIATE_TEST_SUITE_P(Phases, Training,
                         testing::Combine(testing::Values("mlp", "gpt"),
                                          testing::Values(Phase::kExact, Phase::kCompressed)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param)) + "_" + name_of(std::get<1>(test.param));
                         });

TEST(CompressedTransformer, LearnsAsTheExactOneInFewerBytes) {
  at::set_num_threads(1);
  const TemporaryFolder folder;
  std::string text;
  while (text.size() < 12'000) {
    text += "the same again and ";
  }
  write_file(folder / "a.txt", text);
  Settings settings;
  settings.model = "gpt";
  settings.batch_size = 8;
  settings.epochs = 2;
  settings.lr = 3e-3;
  const Data data = open_data(settings, folder.path(), c10::kCPU);
  const auto trained = [&](Phase phase) {
    Trainer trainer(settings, phase, *data.train, *data.test, c10::kCPU);
    while (!trainer.evaluation_due() || trainer.steps_done() < 2 * trainer.steps_per_epoch()) {
      trainer.step();
    }
    return trainer.record();
  };
  const PhaseRecord exact = trained(Phase::kExact);
  const PhaseRecord compressed = trained(Phase::kCompressed);
  EXPECT_NEAR(compressed.losses.front(), exact.losses.front(), 1e-4) << "forward is exact";
  EXPECT_LT(exact.losses.back(), 0.8 * exact.losses.front());
  EXPECT_NEAR(compressed.losses.back(), exact.losses.back(), 0.1);
  EXPECT_LT(3 * compressed.activation_bytes, exact.activation_bytes);
  EXPECT_EQ(compressed.conversion.at("blocks").size(), 4U);
}

}  // namespace
}  // namespace actnn::app
