#include <glob.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/random.h"
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

// The tokens of texts from the cache, which holds them when its dataset.json names the same texts, and its tokenizer is
// the same.
Dataset tokens_of_texts(const std::vector<std::string>& files, const std::string& cache, const TextTokens& texts,
                        const Tokenizer& tokenizer, ThreadTeam& threads,
                        const std::function<void(int64_t, int64_t)>& progress) {
  if (fs::exists(fs::path(cache) / kDatasetJson)) {
    try {
      const Json description = read_json(cache + "/" + kDatasetJson);
      const std::string key = description["text_key"].is_string() ? description["text_key"].string() : "";
      if (description["sources"] == sources_json(files) && description["val_fraction"] == texts.val_fraction &&
          key == texts.text_key) {
        Dataset dataset = open_described(cache);
        if (dataset.tokenizer->json() == tokenizer.json()) return dataset;
      }
    } catch (const Error&) {
      // A damaged cache is no loss: it is made again.
    }
  }
  constexpr int64_t kShardTokens = 100'000'000;
  tokenize_files(files, tokenizer, cache, texts.val_fraction, threads, progress, kShardTokens, texts.text_key);
  return open_described(cache);
}

// Tokens that are there.
Dataset open_tokens(const std::string& data) {
  std::error_code none;
  if (fs::is_directory(data, none))
    return fs::exists(fs::path(data) / kDatasetJson) ? open_described(data) : open_bare(data);
  if (fs::exists(data, none)) return open_shards({data});
  if (data.find_first_of("*?[") == data.npos) fail("no data at ", data, ": there is no such file or directory");
  const std::vector<std::string> paths = matches_of(data);
  if (paths.empty()) fail("no data: nothing matches the pattern ", data);
  return open_shards(paths);
}

bool holds_tokens(const std::string& directory) {
  const std::vector<std::string> names = sorted_names(directory);
  return std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return name == kDatasetJson || name == kIncompleteMark || name.ends_with(".bin");
  });
}

// One data set of several, whose streams follow each other.
Dataset join(std::vector<Dataset> parts, const std::vector<std::string>& names,
             const std::vector<DataSource>& sources) {
  if (parts.size() == 1) return std::move(parts[0]);
  Dataset all;
  std::vector<TokenStream> train, val;
  double train_bytes = 0, val_bytes = 0;
  bool is_train_known = true, is_val_known = true;
  for (size_t i = 0; i < parts.size(); ++i) {
    Dataset& part = parts[i];
    if (part.tokenizer && all.tokenizer && part.tokenizer->json() != all.tokenizer->json())
      fail(names[i], " was tokenized by another tokenizer than ", names[0],
           "; tokenize both by one, or name it for the text by --tokenizer");
    if (part.tokenizer && !all.tokenizer) all.tokenizer = std::move(part.tokenizer);
    all.vocabulary = std::max(all.vocabulary, part.vocabulary);
    train_bytes += part.train_bytes_per_token * static_cast<double>(part.train.size());
    val_bytes += part.val_bytes_per_token * static_cast<double>(part.val.size());
    is_train_known = is_train_known && (part.train.size() == 0 || part.train_bytes_per_token > 0);
    is_val_known = is_val_known && (part.val.size() == 0 || part.val_bytes_per_token > 0);
    if (sources[0].weight > 0) all.mixture.push_back({names[i], part.train.size(), sources[i].weight});
    train.push_back(std::move(part.train)), val.push_back(std::move(part.val));
  }
  all.train = TokenStream(std::move(train)), all.val = TokenStream(std::move(val));
  if (is_train_known && all.train.size() > 0)
    all.train_bytes_per_token = train_bytes / static_cast<double>(all.train.size());
  if (is_val_known && all.val.size() > 0) all.val_bytes_per_token = val_bytes / static_cast<double>(all.val.size());
  return all;
}

}  // namespace

std::vector<DataSource> parse_sources(const std::vector<std::string>& data) {
  std::vector<DataSource> sources;
  for (const std::string& text : data) {
    DataSource& source = sources.emplace_back(DataSource{0, text});
    std::error_code none;
    const size_t colon = text.find(':');
    if (colon != text.npos && !fs::exists(text, none)) {
      double weight = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + colon, weight);
      if (error == std::errc() && end == text.data() + colon) {
        if (!(weight > 0 && std::isfinite(weight))) fail_usage("--data ", text, ": a weight above 0");
        source = {weight, text.substr(colon + 1)};
      }
    }
    if ((source.weight > 0) != (sources[0].weight > 0))
      fail_usage("--data: ", sources[0].path, " and ", source.path,
                 ", one with a weight and one without; give all one");
  }
  return sources;
}

bool is_text(const DataSource& source) {
  const std::string& path = source.path;
  std::error_code none;
  if (fs::is_directory(path, none)) return !holds_tokens(path) && holds_texts(path);
  if (fs::exists(path, none)) return !path.ends_with(".bin");
  const std::vector<std::string> matches = matches_of(path);
  return !matches.empty() && !matches[0].ends_with(".bin");
}

std::vector<std::string> texts_of(const DataSource& source) {
  std::error_code none;
  return expand_texts(fs::exists(source.path, none) ? std::vector{source.path} : matches_of(source.path));
}

uint64_t Dataset::checksum() const {
  uint64_t hash = train.checksum();
  for (const MixedPart& part : mixture)
    hash = hash_step(hash_step(hash, static_cast<uint32_t>(part.tokens)),
                     static_cast<uint32_t>(std::bit_cast<uint64_t>(part.weight) >> 32));
  return hash;
}

Dataset open_dataset(const std::vector<std::string>& data, const TextTokens& texts, ThreadTeam& threads,
                     const std::function<void(int64_t, int64_t)>& progress) {
  const auto bytes = texts.tokenizer ? nullptr : load_tokenizer("bytes");
  const Tokenizer& tokenizer = texts.tokenizer ? *texts.tokenizer : *bytes;
  const std::vector<DataSource> sources = parse_sources(data);
  const bool is_mixed = sources.size() > 1 && sources[0].weight > 0;
  std::vector<Dataset> parts;
  std::vector<std::string> names, together;
  for (const DataSource& source : sources) {
    if (!is_text(source)) {
      parts.push_back(open_tokens(source.path));
    } else if (is_mixed) {
      const std::string cache = concat(texts.cache, "/", parts.size());
      parts.push_back(tokens_of_texts(texts_of(source), cache, texts, tokenizer, threads, progress));
    } else {
      for (std::string& file : texts_of(source)) together.push_back(std::move(file));
      continue;
    }
    names.push_back(source.path);
  }
  if (!together.empty()) {
    parts.push_back(tokens_of_texts(together, texts.cache, texts, tokenizer, threads, progress));
    names.push_back(together[0]);
  }
  return join(std::move(parts), names, sources);
}

}  // namespace llm
