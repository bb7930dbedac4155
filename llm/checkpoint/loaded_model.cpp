#include "llm/checkpoint/loaded_model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "llm/base/error.h"
#include "llm/graph/staging.h"
#include "llm/model/huggingface.h"
#include "llm/model/parameters.h"

namespace llm {

LoadedModel::LoadedModel(const std::string& path, DType dtype)
    : checkpoint_(find_checkpoint(path, Which::best)), config_(read_config(checkpoint_.path)) {
  const std::string tokenizer = tokenizer_of_model(checkpoint_.path);
  has_tokenizer_file_ = !tokenizer.empty();
  if (has_tokenizer_file_) {
    // Work with token ids needs no tokenizer, so a tokenizer that cannot be read is an error only where text is asked
    // for.
    try {
      tokenizer_ = load_tokenizer(tokenizer);
    } catch (const Error& e) {
      no_tokenizer_ = e.what();
    }
  } else {
    no_tokenizer_ = checkpoint_.path + " has no tokenizer.json";
  }
  Graph parameters;
  add_parameters(parameters, config_, dtype);
  layout_.add(parameters);
}

std::string LoadedModel::description() const {
  std::string text = checkpoint_.path;
  if (checkpoint_.step >= 0) text += concat(" (step ", checkpoint_.step);
  if (!std::isnan(checkpoint_.val_loss)) {
    char loss[32];
    std::snprintf(loss, sizeof loss, "%.4f", checkpoint_.val_loss);
    text += concat(", val loss ", loss);
  }
  if (checkpoint_.step >= 0) text += ")";
  if (!checkpoint_.skipped.empty()) text += "\npassed over: " + checkpoint_.skipped;
  return text;
}

const Arena& LoadedModel::load(size_t arena_bytes, Device& device) {
  arena_ = std::make_unique<Arena>(std::max(arena_bytes, layout_.bytes()), device);
  const std::vector<Parameter> table = parameter_table(config_);
  Staging staging(*arena_, layout_);
  load_parameters(checkpoint_.path, table,
                  [&](size_t i) { return staging.room(table[i].name, table[i].shape.elements()); });
  staging.flush();
  return *arena_;
}

}  // namespace llm
