// Models as llama.cpp has them: GGUF's fields and names of tensors for the architectures llama, qwen2, qwen3 and gpt2.
// Llama's matrices of queries and keys have the two channels of a rotary pair side by side there; here, as in Hugging
// Face's files, they are half a head apart.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "llm/base/mapped_file.h"
#include "llm/model/gguf.h"
#include "llm/model/huggingface.h"

namespace llm {

// Whether the path is that of a file that begins as GGUF does.
bool is_gguf(const std::string& path);
// The GGUF file that `path` is or, as a directory, holds as model.gguf beside no config.json; empty: there is none.
std::string gguf_of_model(const std::string& path);

class GgufModel {
 public:
  // Reads the fields and checks the tensors' places. Throws Error with the path and what is wrong or not supported.
  explicit GgufModel(const std::string& path) : file_(path), content_(parse_gguf(file_.bytes(), path)) {}

  const GgufContent& content() const { return content_; }
  // Errors name the architecture or the field that this program does not know.
  ModelConfig config() const;
  EndTokens end_tokens() const;
  // As load_parameters() (huggingface.h).
  void load(const std::vector<Parameter>& table, const std::function<float*(size_t index)>& destination) const;

 private:
  MappedFile file_;
  GgufContent content_;
};

// Writes a model; `fields` holds what does not follow from the config (the tokenizer). Matrices get `type`, but F16 where it
// has blocks that their rows do not fill, as llama.cpp does it; the rest, and learned positions, F32. `source(i)` is called as
// by save_parameters(). Throws Error for a model that has no architecture there.
void save_gguf(const std::string& path, const ModelConfig& config, const std::string& name, GgmlType type,
               const GgufFields& fields, const std::vector<Parameter>& table,
               const std::function<const float*(size_t index)>& source);

}  // namespace llm
