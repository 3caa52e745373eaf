#include "src/nn/convert_chains.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <typeinfo>
#include <utility>

#include "src/nn/chain_layers.h"
#include "src/nn/chain_run.h"
#include "src/nn/layer_registry.h"

namespace actnn::nn {
namespace {

using torch::nn::AnyModule;
using torch::nn::Module;

/// Names of elements: each is a child, and others may be children too.
std::vector<std::string> names_of(const torch::nn::SequentialImpl& sequential) {
  const auto children = sequential.named_children();
  auto child = children.begin();
  std::vector<std::string> names;
  for (const AnyModule& element : sequential) {
    const auto found =
        std::find_if(child, children.end(), [&](const auto& item) { return item.value() == element.ptr(); });
    names.push_back(found == children.end() ? std::to_string(names.size()) : found->key());
    child = found == children.end() ? child : std::next(found);
  }
  return names;
}

class ChainMaker {
 public:
  ChainMaker(std::string path, torch::nn::SequentialImpl& sequential, const std::unordered_set<const Module*>& skipped)
      : path_(std::move(path)), sequential_(sequential), skipped_(skipped), names_(names_of(sequential)) {}

  std::vector<ChainEntry> make() {
    for (size_t element = 0; element < names_.size(); ++element) {
      const std::shared_ptr<Module> layer = sequential_.ptr(element);
      std::string reason = skipped_.contains(layer.get()) ? "it is to be left alone" : why_in_no_chain(*layer);
      if (reason.empty() && !(reason = why_not_behind(row_, *layer)).empty() && !row_.empty()) {
        finish_row();
        reason = why_not_behind(row_, *layer);
      }
      if (reason.empty()) {
        first_ = row_.empty() ? element : first_;
        row_.push_back(layer);
      } else {
        finish_row();
        reasons_ += (reasons_.empty() ? "" : "; ") + names_[element] + ": " + reason;
      }
    }
    finish_row();
    if (chains_.empty()) {
      chains_.push_back({path_, {}, reasons_.empty() ? "there are no layers" : reasons_, {}});
    }
    return std::move(chains_);
  }

 private:
  void finish_row() {
    const ChainLayers row = std::exchange(row_, {});
    if (row.empty()) {
      return;
    }
    if (row.size() == 1) {
      leave(row, "no layer beside it can be in a chain with it");
      return;
    }
    std::shared_ptr<ChainRun> run;
    try {
      run = std::make_shared<ChainRun>(row);
    } catch (const c10::ValueError& error) {
      leave(row, error.what_without_backtrace());
      return;
    }
    ChainEntry entry{path_, {}, "", run->chain()};
    for (size_t layer = 0; layer < row.size(); ++layer) {
      entry.layers.push_back(names_[first_ + layer]);
      const bool is_last = layer + 1 == row.size();
      AnyModule& element = *(sequential_.begin() + static_cast<int64_t>(first_ + layer));
      element = find_chain_layer(*row[layer])
                    ->make_part(row[layer], {.is_first = layer == 0, .run = is_last ? run : nullptr});
    }
    chains_.push_back(std::move(entry));
  }

  void leave(const ChainLayers& row, const std::string& reason) {
    const std::string last = row.size() == 1 ? "" : " to " + names_[first_ + row.size() - 1];
    reasons_ += (reasons_.empty() ? "" : "; ") + names_[first_] + last + ": " + reason;
  }

  std::string path_;
  torch::nn::SequentialImpl& sequential_;
  const std::unordered_set<const Module*>& skipped_;
  std::vector<std::string> names_;
  ChainLayers row_;
  size_t first_ = 0;
  std::string reasons_;  // of the elements that are in no chain
  std::vector<ChainEntry> chains_;
};

}  // namespace

std::vector<ChainEntry> make_chains(const std::string& path, torch::nn::SequentialImpl& sequential,
                                    const std::unordered_set<const Module*>& skipped) {
  if (typeid(sequential) != typeid(torch::nn::SequentialImpl)) {
    return {{path, {}, type_name(sequential) + " derives from Sequential and may call its elements one by one", {}}};
  }
  return ChainMaker(path, sequential, skipped).make();
}

}  // namespace actnn::nn
