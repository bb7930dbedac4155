// A trained model from disk, for the programs that evaluate it or let it write.
#pragma once
#include <memory>
#include <string>

#include "llm/checkpoint/checkpoint.h"
#include "llm/graph/program.h"
#include "llm/model/config.h"
#include "llm/text/tokenizer.h"

namespace llm {

class LoadedModel {
 public:
  // `path`: a run, of which the checkpoint with the lowest validation loss is taken (the newest where none was
  // measured); one of its checkpoints; or a Hugging Face directory. Reads the config and the tokenizer, not the weights
  // yet, which will be held as `dtype`. Throws Error saying what is there instead.
  explicit LoadedModel(const std::string& path, DType dtype = DType::fp32);

  const ModelConfig& config() const { return config_; }
  const CheckpointInfo& checkpoint() const { return checkpoint_; }
  // Null when there is none that can be read: no_tokenizer() says why.
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }
  const std::string& no_tokenizer() const { return no_tokenizer_; }
  // Whether a tokenizer.json is there, of a supported kind or not.
  bool has_tokenizer_file() const { return has_tokenizer_file_; }

  // Which weights these are, for the person: "runs/a/checkpoints/200 (step 200, val loss 1.8315)". A further line, if
  // any, names checkpoints that were passed over because they are damaged.
  std::string description() const;

  // Where the parameters lie; behind them is room for programs.
  const PersistentLayout& layout() const { return layout_; }
  // Makes the arena, of at least the parameters' size, and reads the weights to their places in it. There is no other copy of
  // them but the mapped file, while it is read.
  const Arena& load(size_t arena_bytes, Device& device);

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
