#include "llm/checkpoint/loaded_model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>

#include "llm/base/error.h"
#include "llm/base/quantize_blocks.h"
#include "llm/graph/staging.h"
#include "llm/model/huggingface.h"
#include "llm/model/parameters.h"

namespace llm {
namespace {

// Rounds the rows of a matrix to what weights of a type stand for.
void round_rows(ThreadTeam& threads, DType dtype, float* values, int64_t rows, int64_t columns) {
  threads.for_blocks(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) round_row(dtype, values + i * columns, columns);
  });
}

}  // namespace

LoadedModel::LoadedModel(const std::string& path, DType dtype, std::optional<DType> weights)
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
    if (std::error_code none; std::filesystem::exists(checkpoint_.path + "/tokenizer.model", none))
      no_tokenizer_ += concat(
          "; make it of tokenizer.model: python3 -c 'from transformers import AutoTokenizer as T; "
          "T.from_pretrained(\"",
          checkpoint_.path, "\").save_pretrained(\"", checkpoint_.path, "\")'");
  }
  Graph parameters;
  add_parameters(parameters, config_, dtype, weights);
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

const Arena& LoadedModel::load(size_t arena_bytes, Device& device, std::optional<DType> rounded) {
  arena_ = std::make_unique<Arena>(std::max(arena_bytes, layout_.bytes()), device);
  const std::vector<Parameter> table = parameter_table(config_);
  Staging staging(*arena_, layout_);
  std::function<void()> round = [] {};  // what was read last
  load_parameters(checkpoint_.path, table, [&](size_t i) {
    round();
    const Parameter& p = table[i];
    float* const values = staging.room(p.name, p.shape.elements());
    if (const DType type = type_of(p, DType::fp32, rounded); type != DType::fp32)
      round = [&, values, type] { round_rows(device.threads(), type, values, p.shape.rows(), p.shape.last()); };
    else
      round = [] {};
    return values;
  });
  round();
  staging.flush();
  return *arena_;
}

}  // namespace llm
