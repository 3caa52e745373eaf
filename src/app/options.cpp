#include "src/app/options.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "src/app/error.h"

namespace actnn::app {
namespace {

/// The whole text as a number, or nothing.
template <typename Number>
std::optional<Number> parse_number(const std::string& text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

CLI::Validator whole_number(int64_t lowest, int64_t highest) {
  const std::string range = highest == std::numeric_limits<int64_t>::max()
                                ? fmt::format("of at least {}", lowest)
                                : fmt::format("from {} to {}", lowest, highest);
  return {[=](const std::string& text) {
            const std::optional<int64_t> value = parse_number<int64_t>(text);
            return value && *value >= lowest && *value <= highest
                       ? std::string()
                       : fmt::format("expected a whole number {}, got \"{}\"", range, text);
          },
          ""};
}

CLI::Validator at_least_one() { return whole_number(1, std::numeric_limits<int64_t>::max()); }

CLI::Validator positive_number() {
  return {[](const std::string& text) {
            const std::optional<double> value = parse_number<double>(text);
            return value && std::isfinite(*value) && *value > 0
                       ? std::string()
                       : fmt::format("expected a positive finite number, got \"{}\"", text);
          },
          ""};
}

CLI::Validator one_of(std::vector<std::string> choices) {
  std::string list = choices.front();
  for (std::size_t i = 1; i < choices.size(); ++i) {
    list += (i + 1 < choices.size() ? ", " : " or ") + choices[i];
  }
  return {[=](const std::string& text) {
            return std::find(choices.begin(), choices.end(), text) != choices.end()
                       ? std::string()
                       : fmt::format("expected {}, got \"{}\"", list, text);
          },
          ""};
}

CLI::Validator file_name() {
  return {[](const std::string& text) {
            return text.empty() || text == "." || text == ".." || text.find('/') != std::string::npos
                       ? fmt::format("expected the name of a folder, without slashes, got \"{}\"", text)
                       : std::string();
          },
          ""};
}

/// "batch_size" -> "--batch-size".
std::string option_name(std::string field) {
  std::replace(field.begin(), field.end(), '_', '-');
  return "--" + field;
}

void add_settings(CLI::App& app, Settings& settings) {
  const auto add = [&](const char* field, auto& value, const std::string& help, const char* type) {
    return app.add_option(option_name(field), value, help)->type_name(type)->capture_default_str()->group("Training");
  };
  add("model", settings.model,
      "resnet20, resnet18 (wider, slow on a CPU) or mlp (784-512-512-10, dropout) on images; or gpt,\n"
      "a transformer of 4 layers, on the characters of a text",
      "NAME")
      ->check(one_of({"resnet20", "resnet18", "mlp", "gpt"}));
  add("bits", settings.bits, "bits per saved value in the compressed run, 1 to 8", "N")->check(whole_number(1, 8));
  add("compress", settings.compress,
      "blocks: residual blocks or transformer layers as one operation each, from 2 bits on; or layers,\n"
      "one by one (not gpt)",
      "NAME")
      ->check(one_of({"blocks", "layers"}));
  add("batch_size", settings.batch_size, "images per step; gpt: 16 sequences of 128 characters", "N")
      ->check(at_least_one());
  add("epochs", settings.epochs, "passes over the training data, in each of the two runs", "N")->check(at_least_one());
  add("train_images", settings.train_images, "use only the first N training images, or sequences", "N")
      ->check(at_least_one())
      ->default_str("all");
  add("test_images", settings.test_images, "use only the first N test images, or sequences", "N")
      ->check(at_least_one())
      ->default_str("all");
  add("lr", settings.lr, "highest learning rate; linear warm-up, then cosine to zero; gpt: 0.003, of AdamW", "X")
      ->check(positive_number());
  add("seed", settings.seed, "of the weights, the order of the images, and all noise", "N")
      ->check(whole_number(0, std::numeric_limits<int64_t>::max()));
  add("device", settings.device, "cpu or cuda", "NAME")->check(one_of({"cpu", "cuda"}));
  add("dtype", settings.dtype, "float32, or bfloat16: autocast with float32 weights and loss", "NAME")
      ->check(one_of({"float32", "bfloat16"}));
  add("only", settings.only, "run only one of the two: exact or compressed", "NAME")
      ->check(one_of({"exact", "compressed"}))
      ->default_str("both");
}

CLI::App* add_train(CLI::App& app, TrainOptions& options) {
  CLI::App* train = app.add_subcommand(
      "train",
      "Trains a model twice, with exact and with compressed saved activations, from the same seed and in the same\n"
      "order of images or sequences, and compares accuracy or test loss, memory and speed.");
  add_settings(*train, options.settings);
  train->add_option("--threads", options.threads, "CPU threads")->type_name("N")->check(whole_number(1, 1024));
  train
      ->add_option(
          "--data", options.data,
          "folder with the four idx files of Fashion-MNIST, plain or .gz; without it, data/fashion-mnist or else\n"
          "/usr/share/datasets/fashion-mnist. gpt: a text in UTF-8, plain or .gz, or a folder with one .txt or\n"
          ".txt.gz; without it, data/jargon-text or else /usr/share/doc/jargon-text")
      ->type_name("PATH");
  train->add_option("--output", options.output, "folder for the results")->type_name("DIR")->capture_default_str();
  train
      ->add_option("--name", options.name,
                   "of the folder in DIR for result.json; without it, date, model and bits.\nDIR/latest points to it")
      ->type_name("NAME")
      ->check(file_name());
  train->add_option("--save", options.save, "checkpoint, written at the end of every epoch and when stopped")
      ->type_name("FILE");
  train
      ->add_option("--resume", options.resume,
                   "go on from a checkpoint, with its settings; an option under Training that contradicts them\n"
                   "is an error, --epochs too, since the learning rate depends on it")
      ->type_name("FILE");
  train->add_option("--stop-after", options.stop_after, "save and stop after N steps of this call (needs --save)")
      ->type_name("N")
      ->check(at_least_one());
  train->footer(
      "Exit codes: 0 done, or stopped by --stop-after; 1 something went wrong; 2 wrong usage; 130 stopped by Ctrl-C "
      "or\n"
      "SIGTERM, after the step at hand, and saved if --save was given.");
  return train;
}

/// What a transformer trains with where the command line does not say it, and what it cannot do.
void set_defaults_of_model(TrainOptions& options) {
  Settings& settings = options.settings;
  if (!settings.is_of_text()) {
    return;
  }
  if (!options.given.contains("batch_size")) {
    settings.batch_size = 16;
  }
  if (!options.given.contains("lr")) {
    settings.lr = 3e-3;
  }
  if (settings.compress == "layers") {
    throw UsageError("--compress layers is not for gpt, whose layers run as one operation each");
  }
  if (settings.bits == 1) {
    throw UsageError("--bits 1 is not for gpt, whose layers need 2 bits or more");
  }
}

}  // namespace

std::optional<Command> parse_command_line(int argc, const char* const* argv, const std::string& version) {
  Command command;
  CLI::App app("Activation-compressed training: the same training in less memory.", "actnn");
  app.set_version_flag("--version", "actnn " + version);
  app.require_subcommand(0, 1);
  app.get_formatter()->column_width(28);
  const CLI::App* train = add_train(app, command.train);
  const CLI::App* info =
      app.add_subcommand("info", "Says what this program was built with and what it finds on this machine.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {
    app.exit(request);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  if (info->parsed()) {
    return command;
  }
  if (!train->parsed()) {
    throw UsageError("expected a command: train or info");
  }
  command.kind = Command::Kind::kTrain;
  const nlohmann::json fields = command.train.settings;
  for (const auto& [field, value] : fields.items()) {
    if (train->get_option(option_name(field))->count() > 0) {
      command.train.given.insert(field);
    }
  }
  set_defaults_of_model(command.train);
  if (command.train.stop_after > 0 && command.train.save.empty()) {
    throw UsageError("--stop-after needs --save FILE, since what was trained would be lost");
  }
  return command;
}

Settings resumed_settings(const TrainOptions& options, const Settings& saved) {
  const nlohmann::json asked = options.settings;
  const nlohmann::json kept = saved;
  // As on the command line: strings without quotes, and an empty one for an option that was not given.
  const auto written = [](const std::string& field, const nlohmann::json& value) {
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    return text.empty() ? fmt::format("without {}", option_name(field))
                        : fmt::format("with {} {}", option_name(field), text);
  };
  for (const std::string& field : options.given) {
    if (asked.at(field) != kept.at(field)) {
      throw UsageError(fmt::format("resuming {} contradicts the checkpoint {}, which was made {}",
                                   written(field, asked.at(field)), options.resume.string(),
                                   written(field, kept.at(field))));
    }
  }
  return saved;
}

}  // namespace actnn::app
