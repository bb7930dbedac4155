// Models on disk; the readers take a GGUF file (gguf_model.h) in place of a directory, too.
// Hugging Face's model directories: config.json and the weights under Hugging Face's names, for the families that
// llm/model/README.md lists, and "train_gpt", the project's own model_type for switches that no class of transformers combines.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "llm/model/config.h"
#include "llm/model/parameters.h"
#include "llm/model/safetensors.h"

namespace llm {

// `path`: a config.json, or a directory with one. Throws Error with the path and the key for what is missing or
// malformed, or for what this model cannot do (windows of attention shorter than the context where the context cannot be
// shortened, caps of attention scores, other activations, ...).
ModelConfig read_config(const std::string& path);
// The same from the text of a config.json; `path` is for messages only.
ModelConfig parse_config(const std::string& json, const std::string& path);

// The token that begins a text, and those that end one: chat models have several.
struct EndTokens {
  int bos = -1;          // -1: none
  std::vector<int> eos;  // empty: none
  EndTokens() = default;
  // One token both begins and ends a text, as in GPT-2; -1: none.
  EndTokens(int both) : bos(both) {
    if (both >= 0) eos = {both};
  }
};
// The tokens that generation_config.json names, else config.json; none where neither file does.
EndTokens read_end_tokens(const std::string& directory);

// The text of a config.json with all keys that transformers needs, for model_type_of(config) or, where a model leaves the
// program, for exported_type_of(config).
std::string config_json(const ModelConfig& config, const EndTokens& tokens);
std::string config_json(const ModelConfig& config, const EndTokens& tokens, const std::string& model_type);
// Files of the Gemmas hold the weights of norms less 1. (A run's own files hold all weights as they are: the difference would
// be rounded.)
bool holds_norms_less_one(const std::string& model_type);
std::string generation_config_json(const EndTokens& tokens);
// What transformers needs beside tokenizer.json to open it: tokenizer_config.json.
std::string tokenizer_config_json(const ModelConfig& config, const EndTokens& tokens,
                                  const std::string& tokenizer_json);

// Fills the parameters of `table` from a .safetensors file, or from a directory with model.safetensors or with
// model.safetensors.index.json and its shards; F32, F16, BF16 or F64. GPT-2's names may lack their "transformer.". All
// names and shapes are checked first: Error lists what is missing, unexpected or misshapen. Then `destination(i)` is
// called once for each parameter, in order, and returns room for its elements; parameter i is complete when the call
// for i + 1 comes, the last one when the function returns.
void load_parameters(const std::string& path, const std::vector<Parameter>& table,
                     const std::function<float*(size_t index)>& destination);

// Writes one .safetensors file of F32 under the file names of `table`, atomically. `source(i)` is called once for each
// parameter, in order; its pointer must stay valid until the next call.
void save_parameters(const std::string& path, const std::vector<Parameter>& table,
                     const std::function<const float*(size_t index)>& source);
// The same by several processes at once, as write_safetensors_together() does. `pieces(i)` is called once for each parameter,
// in order; of one that has_transposed_parts() a piece is all of it.
void save_parameters_together(const std::string& path, const std::vector<Parameter>& table, bool begins,
                              const std::function<std::vector<TensorPiece>(size_t index)>& pieces);
bool has_transposed_parts(const Parameter& parameter);

}  // namespace llm
