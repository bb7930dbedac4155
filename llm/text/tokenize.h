// Texts to token shards, and the data that a run is given.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "llm/base/threads.h"
#include "llm/text/shards.h"
#include "llm/text/text_input.h"
#include "llm/text/tokenizer.h"

namespace llm {

struct TokenizeResult {
  int64_t train_tokens = 0, val_tokens = 0;
  int64_t train_bytes = 0, val_bytes = 0;  // of text, for bits per byte; they add up to the inputs' sizes
  int64_t shards = 0;
};

// Writes DIR/train_*.bin, DIR/val_*.bin (shards of at most `shard_tokens`), DIR/tokenizer.json and, last of all,
// DIR/dataset.json ({"tokenizer", "vocabulary", "train": {"tokens", "bytes", "largest_token"}, "val": {...}, "val_fraction",
// "text_key", "sources"}), which makes it valid. An earlier data set in DIR is removed first; when this one fails, what it wrote is removed.
//
// Texts are joined in order with an end-of-text token between files (none after the last) and after each document of JSON
// lines; the names of special tokens in the text (a line <|endoftext|> between stories) become those tokens. The LAST val_fraction of the text is held out:
// of n bytes, floor(n * val_fraction), or less where the tokenizer may not cut there but only later. The end-of-text
// token after a file goes where the file's end goes.
//
// `progress(done_bytes, total_bytes)` is called from the calling thread. Throws UsageError for a val_fraction outside
// [0, 1), Error for an input as TextInput does, and for a directory that cannot be written.
TokenizeResult tokenize_texts(const std::vector<TextInput>& texts, const Tokenizer& tokenizer, const std::string& out,
                              double val_fraction, ThreadTeam& threads,
                              const std::function<void(int64_t, int64_t)>& progress = {},
                              int64_t shard_tokens = 100'000'000, const std::string& text_key = "");
TokenizeResult tokenize_files(const std::vector<std::string>& inputs, const Tokenizer& tokenizer,
                              const std::string& out, double val_fraction, ThreadTeam& threads,
                              const std::function<void(int64_t, int64_t)>& progress = {},
                              int64_t shard_tokens = 100'000'000, const std::string& text_key = "");

// What --data names.
struct Dataset {
  TokenStream train, val;                                     // one of them may be empty
  double train_bytes_per_token = 0, val_bytes_per_token = 0;  // 0: unknown
  std::unique_ptr<Tokenizer> tokenizer;                       // null: unknown (bare shards)
  int64_t vocabulary = 0;                                     // 0: unknown
  std::vector<MixedPart> mixture;                             // of `train`; empty: it is one
  uint64_t checksum() const;                                  // of the training tokens, and of how they are mixed
};

// How texts become tokens.
struct TextTokens {
  std::string cache = {};  // a directory of the run's
  double val_fraction = 0.1;
  const Tokenizer* tokenizer = nullptr;  // null: bytes
  std::string text_key = {};             // of JSON lines; empty: "text", where a file is called *.jsonl
};

// One of the things that --data names: "PATH", or "WEIGHT:PATH".
struct DataSource {
  double weight = 0;  // 0: none was given
  std::string path;
};
// Throws UsageError where some have weights and others have none.
std::vector<DataSource> parse_sources(const std::vector<std::string>& data);
bool is_text(const DataSource& source);  // and no tokens
// The text files that a source stands for.
std::vector<std::string> texts_of(const DataSource& source);
// - A directory: its dataset.json, or shards named as llm.c does (NAME_train.bin, NAME_val_000000.bin) of one data set.
// - FILE.bin or a pattern ("dir/fineweb_*.bin"): shards; those with the word "val" in their names are `val`, unless there
//   are no others: then they are `train`.
// - Any other file is text, and so are the files of a directory or pattern without shards. Texts are tokenized into the
//   cache first, all of them as one, unless that already holds their tokens (same tokenizer, paths, sizes, modification
//   times, key and val_fraction, kept in dataset.json).
// Several sources are joined, the texts behind the shards. With weights they are a mixture, whose parts are tokenized one by one; held-out text
// is that of all. Throws Error when there is nothing, when it is damaged, or when sources have different tokenizers.
Dataset open_dataset(const std::vector<std::string>& data, const TextTokens& texts, ThreadTeam& threads,
                     const std::function<void(int64_t, int64_t)>& progress = {});
inline Dataset open_dataset(const std::string& data, const std::string& cache, ThreadTeam& threads) {
  return open_dataset(std::vector{data}, {.cache = cache}, threads);
}

}  // namespace llm
