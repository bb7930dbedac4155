// The files of a data set's directory, as tokenize_files() writes them and open_dataset() finds them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "llm/base/json.h"

namespace llm {

inline constexpr char kDatasetJson[] = "dataset.json";
inline constexpr char kTokenizerJson[] = "tokenizer.json";
inline constexpr char kIncompleteMark[] = "tokenize.incomplete";

enum class Split { train, val };

// "train_000000.bin", "train_000001.bin", ...: their order by name is the text's. A seventh digit would break it, but not
// before 10^14 tokens.
std::string our_shard(Split split, int64_t number);
bool is_our_shard(const std::string& name);

// Whether a name is train_*.bin or val_*.bin: one of the shards that belong to a dataset.json beside them.
bool is_dataset_shard(const std::string& name);

// What tells whether a text has changed since it was tokenized: [{"path", "bytes", "modified_ns"}, ...].
Json sources_json(const std::vector<std::string>& inputs);

}  // namespace llm
