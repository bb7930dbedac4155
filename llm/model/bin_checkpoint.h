// The weights of other trainers in plain C, read from their one file:
// - llm.c (github.com/karpathy/llm.c, train_gpt2.py's write_model): 256 int32 of header: magic 20240326, version 3 (fp32) or
//   5 (bf16), longest context, vocabulary, layers, heads, channels, padded vocabulary; then the tensors of all layers one
//   after the other. The padded rows of the embedding are left out.
// - llama2.c (github.com/karpathy/llama2.c, version 0): seven int32: channels, hidden, layers, heads, kv_heads, vocabulary
//   (negative: the head is not the embedding), context; then fp32. Its rotary pairs are interleaved, and become half-split.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "llm/base/mapped_file.h"
#include "llm/model/config.h"
#include "llm/model/parameters.h"

namespace llm {

class BinCheckpoint {
 public:
  // Reads the header and checks the file's size. Throws Error with the path and what is wrong.
  explicit BinCheckpoint(const std::string& path);

  const ModelConfig& config() const { return config_; }
  bool is_llmc() const { return is_llmc_; }
  // One parameter after the other, as load_parameters() of huggingface.h does it.
  void load(const std::vector<Parameter>& table, const std::function<float*(size_t index)>& destination) const;

 private:
  // `count` elements of the file become elements of a parameter. interleaved > 0: rows of heads of that size, whose pairs
  // (2 i, 2 i + 1) go to (i, i + size / 2); `columns` elements a row.
  struct Piece {
    std::string parameter;
    int64_t from, to, count, interleaved = 0, columns = 0;
  };
  void read_llmc();
  void read_llama2c();
  // The next `count` elements of the file, as part of `parameter` behind those that it has already. Empty: left out.
  void take(const std::string& parameter, int64_t count, int64_t interleaved = 0, int64_t columns = 0);
  void check_layers() const;
  void check_size() const;

  MappedFile file_;
  ModelConfig config_;
  bool is_llmc_ = false;
  size_t header_ = 0, width_ = 4;  // bytes; bytes an element
  int64_t elements_ = 0;           // what the config makes
  std::vector<Piece> pieces_;
};

}  // namespace llm
