// A trained model from disk, for commands that evaluate it or generate text with it.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "llm/checkpoint/checkpoint.h"
#include "llm/graph/program.h"
#include "llm/model/config.h"
#include "llm/text/tokenizer.h"

namespace llm {

class LoadedModel {
 public:
  // `path`: a run, of which the checkpoint with the lowest validation loss is taken (the newest where none was
  // measured); one of its checkpoints; or a Hugging Face directory. Reads the config and the tokenizer, but not yet the
  // weights, which will be held as `dtype`, the matrices as panels of `weights` if that is given. Throws Error that says what is there
  // instead.
  explicit LoadedModel(const std::string& path, DType dtype = DType::fp32, std::optional<DType> weights = {});

  const ModelConfig& config() const { return config_; }
  const CheckpointInfo& checkpoint() const { return checkpoint_; }
  // Null when there is no tokenizer that can be read: no_tokenizer() says why.
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }
  const std::string& no_tokenizer() const { return no_tokenizer_; }
  // Whether a tokenizer.json is there, of a supported kind or not.
  bool has_tokenizer_file() const { return has_tokenizer_file_; }

  // For people, which weights these are: "runs/a/checkpoints/200 (step 200, val loss 1.8315)". A second line, if any,
  // names checkpoints that were skipped because they are damaged.
  std::string description() const;

  // Where the parameters lie in the arena; behind them is room for programs.
  const PersistentLayout& layout() const { return layout_; }
  // Makes the arena, of `arena_bytes` or at least the parameters' size, and reads the weights to their places in it.
  // There is no other copy of them but the mapped file while it is read. The device must outlive this object.
  // `rounded`: the matrices are rounded to that type first, though they are not held in it.
  const Arena& load(size_t arena_bytes, Device& device, std::optional<DType> rounded = {});

 private:
  CheckpointInfo checkpoint_;
  ModelConfig config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string no_tokenizer_;
  bool has_tokenizer_file_ = false;
  PersistentLayout layout_;
  std::unique_ptr<Arena> arena_;
};

}  // namespace llm
