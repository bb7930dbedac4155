// Text files to token shards.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "llm/base/threads.h"
#include "llm/text/shards.h"
#include "llm/text/tokenizer.h"

namespace llm {

struct TokenizeResult {
  int64_t train_tokens = 0, val_tokens = 0;
  int64_t train_bytes = 0, val_bytes = 0;  // of text, for bits per byte; they add up to the inputs' sizes
  int64_t shards = 0;
};

// Writes DIR/train_*.bin, DIR/val_*.bin (shards of at most `shard_tokens`), DIR/tokenizer.json and, last of all,
// DIR/dataset.json ({"tokenizer", "vocabulary", "train": {"tokens", "bytes", "largest_token"}, "val": {...}, "val_fraction",
// "sources"}),
// which makes it valid. An earlier data set in DIR is removed first; when this one fails, what it wrote is removed.
//
// Inputs are joined in order with an end-of-text token between files (none after the last); the names of special tokens
// in the text (a line <|endoftext|> between stories) become those tokens. The LAST val_fraction of the text is held out:
// of n bytes, floor(n * val_fraction), or less where the tokenizer may not cut there but only later. The end-of-text
// token after a file goes where the file's end goes.
//
// `progress(done_bytes, total_bytes)` is called from the calling thread. Throws UsageError for a val_fraction outside
// [0, 1), Error for an input that is missing, a directory or empty, and for a directory that cannot be written.
TokenizeResult tokenize_files(const std::vector<std::string>& inputs, const Tokenizer& tokenizer,
                              const std::string& out, double val_fraction, ThreadTeam& threads,
                              const std::function<void(int64_t, int64_t)>& progress = {},
                              int64_t shard_tokens = 100'000'000);

// What --data names: a directory of shards, a glob of shards, one shard, or a text file.
struct Dataset {
  TokenStream train, val;                                     // one of them may be empty
  double train_bytes_per_token = 0, val_bytes_per_token = 0;  // 0: unknown
  std::unique_ptr<Tokenizer> tokenizer;                       // null: unknown (bare shards)
  int64_t vocabulary = 0;                                     // 0: unknown
};
bool is_text_file(const std::string& data);  // whether it is there, and no directory and no shard
// - A directory: its dataset.json, or shards named as llm.c does (NAME_train.bin, NAME_val_000000.bin) of one data set.
// - FILE.bin or a pattern ("dir/fineweb_*.bin"): shards; those with the word "val" in their names are `val`, unless there
//   are no others: then they are `train`.
// - Any other file is text. It is tokenized by `tokenizer` (null: by bytes) into `cache` (a directory of the run's) first, unless that already
//   holds this text's tokens (same tokenizer, path, size, modification time and val_fraction, kept in dataset.json).
// Throws Error when there is nothing, or when it is damaged.
Dataset open_dataset(const std::string& data, const std::string& cache, ThreadTeam& threads, double val_fraction = 0.1,
                     const std::function<void(int64_t, int64_t)>& progress = {}, const Tokenizer* tokenizer = nullptr);

}  // namespace llm
