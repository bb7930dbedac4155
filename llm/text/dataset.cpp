#include <glob.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/text/dataset_files.h"
#include "llm/text/shards.h"
#include "llm/text/tokenize.h"

namespace llm {

namespace fs = std::filesystem;

std::string our_shard(Split split, int64_t number) {
  char name[40];
  std::snprintf(name, sizeof name, "%s_%06lld.bin", split == Split::train ? "train" : "val",
                static_cast<long long>(number));
  return name;
}

bool is_our_shard(const std::string& name) {
  if (!is_dataset_shard(name)) return false;
  const size_t first = name.find('_') + 1;
  const size_t digits = name.size() - 4 - first;
  return digits >= 6 && name.find_first_not_of("0123456789", first) == name.size() - 4;
}

bool is_dataset_shard(const std::string& name) {
  return (name.starts_with("train_") || name.starts_with("val_")) && name.ends_with(".bin");
}

namespace {

// What a shard's name says of it, in the manner of llm.c: "tiny_shakespeare_val.bin", "fineweb_train_000001.bin".
struct ShardName {
  enum { train, val, unknown } split = unknown;
  std::string dataset;  // what stands before the word: shards of one data set have it in common
};

ShardName parse_shard_name(const std::string& path) {
  const std::string stem = fs::path(path).stem().string();
  for (size_t begin = 0; begin <= stem.size();) {
    const size_t end = std::min(stem.find_first_of("_-.", begin), stem.size());
    const std::string word = stem.substr(begin, end - begin);
    if (word == "train") return {ShardName::train, stem.substr(0, begin)};
    if (word == "val") return {ShardName::val, stem.substr(0, begin)};
    begin = end + 1;
  }
  return {};
}

std::vector<std::string> sorted_names(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error) fail("cannot read ", directory, ": ", error.message());
  std::sort(names.begin(), names.end());
  return names;
}

// One split of a data set that tokenize wrote: its shards, held against the counts in dataset.json.
TokenStream open_split(const std::string& directory, const char* split, const Json& description,
                       const std::string& description_path, double& bytes_per_token) {
  const Json& found = description[split];
  if (!found.is_object()) fail(description_path, ": no \"", split, "\"");
  const int64_t tokens = integer_member(found, "tokens", 0, description_path);
  const int64_t bytes = integer_member(found, "bytes", 0, description_path);
  std::vector<std::string> paths;
  for (const std::string& name : sorted_names(directory))
    if (is_dataset_shard(name) && name.starts_with(split)) paths.push_back(directory + "/" + name);
  // (Data sets of earlier versions do not say which token is the largest.)
  const Json& largest = found["largest_token"];
  TokenStream stream(paths, largest.is_number_integer() ? std::optional(largest.get<int32_t>()) : std::nullopt);
  if (stream.size() != tokens)
    fail(directory, ": ", kDatasetJson, " says ", tokens, " ", split, " tokens, the shards ", split, "_*.bin hold ",
         stream.size(), "; tokenize the text again");
  bytes_per_token = tokens > 0 ? static_cast<double>(bytes) / static_cast<double>(tokens) : 0;
  return stream;
}

Dataset open_described(const std::string& directory) {
  const std::string path = directory + "/" + kDatasetJson;
  const Json description = read_json(path);
  Dataset dataset;
  dataset.vocabulary = integer_member(description, "vocabulary", 1, path);
  const Json& tokenizer = description["tokenizer"];
  if (!tokenizer.is_string()) fail(path, ": no \"tokenizer\" that is a file's name");
  dataset.tokenizer = load_tokenizer((fs::path(directory) / tokenizer.string()).string());
  if (dataset.tokenizer->vocabulary() != dataset.vocabulary)
    fail(path, ": a vocabulary of ", dataset.vocabulary, ", but the tokenizer has ", dataset.tokenizer->vocabulary());
  dataset.train = open_split(directory, "train", description, path, dataset.train_bytes_per_token);
  dataset.val = open_split(directory, "val", description, path, dataset.val_bytes_per_token);
  return dataset;
}

// A directory of shards that some other program wrote.
Dataset open_bare(const std::string& directory) {
  std::vector<std::string> train, val;
  std::set<std::string> prefixes;
  for (const std::string& name : sorted_names(directory)) {
    if (name == kIncompleteMark) fail(directory, ": tokenize was stopped before it was done here; run it again");
    if (!name.ends_with(".bin")) continue;
    const ShardName parsed = parse_shard_name(name);
    if (parsed.split == ShardName::unknown) continue;
    const std::string path = directory + "/" + name;
    (parsed.split == ShardName::train ? train : val).push_back(path);
    prefixes.insert(parsed.dataset);
  }
  if (prefixes.empty())
    fail("no data in ", directory, ": neither ", kDatasetJson,
         " nor shards *train*.bin; make them with: train_gpt tokenize TEXT", " --tokenizer bytes --out ", directory);
  if (prefixes.size() > 1)
    fail(directory, " holds several data sets (", *prefixes.begin(), "*, ", *prefixes.rbegin(),
         "*): name one with a quoted pattern, \"", directory, "/", *prefixes.begin(), "*.bin\"");
  Dataset dataset;
  dataset.train = TokenStream(train), dataset.val = TokenStream(val);
  const fs::path tokenizer = fs::path(directory) / kTokenizerJson;
  if (fs::exists(tokenizer)) {
    dataset.tokenizer = load_tokenizer(tokenizer.string());
    dataset.vocabulary = dataset.tokenizer->vocabulary();
  }
  return dataset;
}

// Shards that were named one by one or by a pattern. Those called "val" are held out, unless there are no others: then
// they are what was asked for.
Dataset open_shards(const std::vector<std::string>& paths) {
  std::vector<std::string> train, val;
  for (const std::string& path : paths) (parse_shard_name(path).split == ShardName::val ? val : train).push_back(path);
  if (train.empty()) std::swap(train, val);
  Dataset dataset;
  dataset.train = TokenStream(train), dataset.val = TokenStream(val);
  return dataset;
}

std::vector<std::string> matches_of(const std::string& pattern) {
  glob_t found{};
  const int status = ::glob(pattern.c_str(), GLOB_ERR | GLOB_NOSORT, nullptr, &found);
  std::vector<std::string> paths;
  if (status == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  if (status == GLOB_ABORTED || status == GLOB_NOSPACE) fail("cannot read the directory of ", pattern);
  std::sort(paths.begin(), paths.end());
  return paths;
}

// A text file's tokens from the cache, which holds them when its dataset.json names the same text, and its tokenizer is
// the same.
Dataset open_text(const std::string& path, const std::string& cache, const Tokenizer& tokenizer, ThreadTeam& threads,
                  double val_fraction, const std::function<void(int64_t, int64_t)>& progress) {
  if (fs::exists(fs::path(cache) / kDatasetJson)) {
    try {
      const Json description = read_json(cache + "/" + kDatasetJson);
      if (description["sources"] == sources_json({path}) && description["val_fraction"] == val_fraction) {
        Dataset dataset = open_described(cache);
        if (dataset.tokenizer->json() == tokenizer.json()) return dataset;
      }
    } catch (const Error&) {
      // A damaged cache is no loss: it is made again.
    }
  }
  tokenize_files({path}, tokenizer, cache, val_fraction, threads, progress);
  return open_described(cache);
}

}  // namespace

bool is_text_file(const std::string& data) {
  std::error_code none;
  return fs::exists(data, none) && !fs::is_directory(data, none) && !data.ends_with(".bin");
}

Dataset open_dataset(const std::string& data, const std::string& cache, ThreadTeam& threads, double val_fraction,
                     const std::function<void(int64_t, int64_t)>& progress, const Tokenizer* tokenizer) {
  std::error_code none;
  if (fs::is_directory(data, none))
    return fs::exists(fs::path(data) / kDatasetJson) ? open_described(data) : open_bare(data);
  if (is_text_file(data)) {
    const auto bytes = tokenizer ? nullptr : load_tokenizer("bytes");
    return open_text(data, cache, tokenizer ? *tokenizer : *bytes, threads, val_fraction, progress);
  }
  if (fs::exists(data, none)) return open_shards({data});
  if (data.find_first_of("*?[") == data.npos) fail("no data at ", data, ": there is no such file or directory");
  const std::vector<std::string> paths = matches_of(data);
  if (paths.empty()) fail("no data: nothing matches the pattern ", data);
  return open_shards(paths);
}

}  // namespace llm
