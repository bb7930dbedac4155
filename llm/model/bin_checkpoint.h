// The weights of two trainers in plain C, each read from its one file:
// - llm.c (github.com/karpathy/llm.c, train_gpt2.py's write_model): a header of 256 int32: magic 20240326, version 3
//   (fp32) or 5 (bf16), longest context, vocabulary, layers, heads, channels, padded vocabulary; then the tensors, each
//   kind of all layers one after the other. The padded rows of the embedding are left out.
// - llama2.c (github.com/karpathy/llama2.c, version 0): a header of seven int32: channels, hidden, layers, heads,
//   kv_heads, vocabulary (negative: the head is not the embedding), context; then fp32. Its rotary pairs are
//   interleaved and become half-split.
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
  // Fills the parameters of `table`, one after the other; `destination` is called as by load_parameters()
  // (huggingface.h). Throws Error for a parameter that the file does not have in the right size.
  void load(const std::vector<Parameter>& table, const std::function<float*(size_t index)>& destination) const;

 private:
  // Elements [from, from + count) of the file become elements [to, to + count) of a parameter. interleaved > 0: they
  // are rows of `columns` elements, in heads of `interleaved` rows, whose pairs (2 i, 2 i + 1) go to (i, i +
  // interleaved / 2).
  struct Piece {
    std::string parameter;
    int64_t from, to, count, interleaved = 0, columns = 0;
  };
  void read_llmc();
  void read_llama2c();
  // Takes the next `count` elements of the file as those of `parameter` that follow the ones it has already; "" leaves
  // them out.
  void take(const std::string& parameter, int64_t count, int64_t interleaved = 0, int64_t columns = 0);
  void check_layers() const;
  void check_size() const;

  MappedFile file_;
  ModelConfig config_;
  bool is_llmc_ = false;
  size_t header_ = 0, width_ = 4;  // in bytes: the header; an element
  int64_t elements_ = 0;           // that the file should have
  std::vector<Piece> pieces_;
};

}  // namespace llm
