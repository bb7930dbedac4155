#include "llm/text/tokenize.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <filesystem>
#include <limits>
#include <optional>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/text/dataset_files.h"
#include "llm/text/shards.h"
#include "llm/text/text_input.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

// How much text a thread encodes at a time. A token id takes four bytes in memory, a chunk of bytes thus 4 MiB.
constexpr size_t kChunkBytes = size_t{1} << 20;

// The directory that is being written. Whatever is in it is invalid from the start until finish(): first dataset.json
// goes, then the shards of an earlier run, which might be more than the new ones. A failure removes the new shards, too; a
// killed process leaves the mark, which tells open_dataset() that the shards are not all there.
class OutputDirectory {
 public:
  explicit OutputDirectory(std::string path) : path_(std::move(path)) {
    make_directories(path_);
    remove_abandoned(path_);
    const std::vector<std::string> old = old_shards();
    write_file_atomically(path_ + "/" + kIncompleteMark, "tokenize is writing here, or was stopped while it did\n");
    remove(path_ + "/" + kDatasetJson);
    for (const std::string& name : old) remove(path_ + "/" + name);
  }

  ~OutputDirectory() {
    if (finished_) return;
    std::error_code ignored;
    for (const std::string& file : written_) fs::remove(file, ignored);
    fs::remove(path_ + "/" + kIncompleteMark, ignored);
  }

  // The path of a file that is about to be written.
  std::string add(const std::string& name) {
    written_.push_back(path_ + "/" + name);
    return written_.back();
  }

  void finish(const std::string& dataset_json) {
    write_file_atomically(path_ + "/" + kDatasetJson, dataset_json);
    finished_ = true;
    remove(path_ + "/" + kIncompleteMark);
  }

 private:
  // Names of our own shards, and of temporary files that a killed process has left. Other files that would be taken for
  // shards of this data set are the user's: an Error, not a removal.
  std::vector<std::string> old_shards() const {
    std::vector<std::string> ours;
    std::error_code error;
    for (fs::directory_iterator entry(path_, error), end; !error && entry != end; entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      const bool temporary = name.ends_with(".bin.tmp");
      const std::string shard = temporary ? name.substr(0, name.size() - 4) : name;
      if (is_our_shard(shard)) {
        ours.push_back(name);
      } else if (!temporary && is_dataset_shard(shard)) {
        fail("cannot write to ", path_, ": it holds ", name, ", which would be mixed in; choose another directory");
      }
    }
    if (error) fail("cannot read ", path_, ": ", error.message());
    return ours;
  }

  static void remove(const std::string& file) {
    std::error_code error;
    fs::remove(file, error);
    if (error) fail("cannot remove ", file, ": ", error.message());
  }

  std::string path_;
  std::vector<std::string> written_;
  bool finished_ = false;
};

// The shards of one split, each begun when there is a token for it.
class SplitWriter {
 public:
  SplitWriter(OutputDirectory& out, Split split, int64_t vocabulary, int64_t shard_tokens)
      : out_(out), split_(split), vocabulary_(vocabulary), shard_tokens_(shard_tokens) {}

  void write(const std::vector<int32_t>& ids) {
    const int32_t* next = ids.data();
    for (int64_t left = static_cast<int64_t>(ids.size()); left > 0;) {
      if (!writer_) writer_.emplace(out_.add(our_shard(split_, shards_++)), vocabulary_);
      const int64_t part = std::min(left, shard_tokens_ - writer_->size());
      writer_->write(next, part);
      largest_ = std::max(largest_, *std::max_element(next, next + part));
      next += part;
      left -= part;
      tokens_ += part;
      if (writer_->size() == shard_tokens_) finish();
    }
  }
  void finish() {
    if (writer_) writer_->finish();
    writer_.reset();
  }
  int64_t tokens() const { return tokens_; }
  int64_t shards() const { return shards_; }
  int32_t largest_token() const { return largest_; }  // -1: no token

 private:
  OutputDirectory& out_;
  Split split_;
  int64_t vocabulary_, shard_tokens_;
  std::optional<ShardWriter> writer_;
  int64_t tokens_ = 0, shards_ = 0;
  int32_t largest_ = -1;
};

// A piece of text that is encoded at once, by one thread.
struct Chunk {
  const TextInput* input;
  size_t begin, end;  // in the input
  Split split;
  bool end_of_text = false;  // an end-of-text token follows it, beside those that end documents
};

struct Encoded {
  std::vector<int32_t> ids;
  std::exception_ptr error;  // threads of the team must not throw

  void encode(const Chunk& chunk, const Tokenizer& tokenizer) noexcept {
    try {
      ids.clear();
      const TextInput& input = *chunk.input;
      const bool has_documents = !input.document_ends().empty() && tokenizer.end_of_text() >= 0;
      for (size_t begin = chunk.begin; begin < chunk.end;) {
        const size_t end_of_document = input.document_end(begin), end = std::min(end_of_document, chunk.end);
        const std::string_view text = input.text().substr(begin, end - begin);
        const bool begins = begin == input.document_begin(begin);
        begins ? tokenizer.encode(text, true, ids) : tokenizer.encode_rest(text, true, ids);
        if (has_documents && end == end_of_document) ids.push_back(tokenizer.end_of_text());
        begin = end;
      }
      if (chunk.end_of_text) ids.push_back(tokenizer.end_of_text());
    } catch (...) {
      error = std::current_exception();
    }
  }
};

// The first place at or after `from` where an input may be cut: in the document that `from` is in, or at its end.
size_t safe_cut(const TextInput& input, size_t from, const Tokenizer& tokenizer) {
  if (from >= input.text().size()) return input.text().size();
  const size_t begin = input.document_begin(from), end = input.document_end(from);
  return begin + tokenizer.safe_cut(input.text().substr(begin, end - begin), from - begin);
}

struct Plan {
  std::vector<Chunk> chunks;
  int64_t bytes[2] = {0, 0};  // of text, by split

  // Appends [begin, end) of an input, cut where the tokenizer may cut.
  void add(const TextInput& input, size_t begin, size_t end, Split split, const Tokenizer& tokenizer) {
    bytes[static_cast<int>(split)] += static_cast<int64_t>(end - begin);
    while (begin < end) {
      const size_t cut =
          end - begin <= kChunkBytes ? end : std::min(end, safe_cut(input, begin + kChunkBytes, tokenizer));
      chunks.push_back({&input, begin, cut, split});
      begin = cut;
    }
  }
};

Plan make_plan(const std::vector<TextInput>& inputs, const Tokenizer& tokenizer, double val_fraction) {
  size_t total = 0;
  for (const TextInput& input : inputs) total += input.text().size();
  const size_t train = total - static_cast<size_t>(static_cast<double>(total) * val_fraction);

  Plan plan;
  size_t first = 0;  // of the input in the joined text
  for (const TextInput& input : inputs) {
    const size_t size = input.text().size();
    size_t cut = 0;
    if (first + size <= train) {
      cut = size;
    } else if (first < train) {
      cut = safe_cut(input, train - first, tokenizer);
    }
    plan.add(input, 0, cut, Split::train, tokenizer);
    plan.add(input, cut, size, Split::val, tokenizer);
    // It ends a document: it goes where the document's end goes.
    plan.chunks.back().end_of_text =
        &input != &inputs.back() && input.document_ends().empty() && tokenizer.end_of_text() >= 0;
    first += size;
  }
  return plan;
}

// Encodes the chunks on all threads, hands them to `write` in order, on the calling thread. While one round of chunks is
// encoded the one before it is written, so that memory for two rounds is enough for any text.
template <class Write>
void encode_in_order(const std::vector<Chunk>& chunks, const Tokenizer& tokenizer, ThreadTeam& threads, Write&& write) {
  const size_t round = static_cast<size_t>(threads.size()) * 2;
  std::vector<Encoded> now(round), before(round);
  size_t written = 0;
  std::exception_ptr error;
  for (size_t first = 0; written < chunks.size(); first += round) {
    const size_t count = first < chunks.size() ? std::min(round, chunks.size() - first) : 0;
    const size_t ready = std::min(first, chunks.size());
    std::atomic<size_t> next{0};
    threads.run([&](int rank) {
      if (rank == 0) try {
          for (; written < ready; ++written) {
            const Encoded& encoded = before[written % round];
            if (encoded.error) std::rethrow_exception(encoded.error);
            write(chunks[written], encoded.ids);
          }
        } catch (...) {
          error = std::current_exception();
        }
      for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;)
        now[i].encode(chunks[first + i], tokenizer);
    });
    if (error) std::rethrow_exception(error);
    std::swap(now, before);
  }
}

}  // namespace

Json sources_json(const std::vector<std::string>& inputs) {
  Json sources = Json::array();
  for (const std::string& input : inputs) {
    if (input == "-") {
      sources.push_back({{"path", input}});
      continue;
    }
    struct stat status {};
    if (::stat(input.c_str(), &status) != 0) fail("cannot open ", input, ": ", std::strerror(errno));
    sources.push_back({{"path", fs::absolute(input).lexically_normal().string()},
                       {"bytes", static_cast<int64_t>(status.st_size)},
                       {"modified_ns", status.st_mtim.tv_sec * int64_t{1'000'000'000} + status.st_mtim.tv_nsec}});
  }
  return parse_json(json_text(sources), "");  // as it looks when it is read back
}

TokenizeResult tokenize_files(const std::vector<std::string>& inputs, const Tokenizer& tokenizer,
                              const std::string& out, double val_fraction, ThreadTeam& threads,
                              const std::function<void(int64_t, int64_t)>& progress, int64_t shard_tokens,
                              const std::string& text_key) {
  return tokenize_texts(open_texts(inputs, out, text_key), tokenizer, out, val_fraction, threads, progress,
                        shard_tokens, text_key);
}

TokenizeResult tokenize_texts(const std::vector<TextInput>& texts, const Tokenizer& tokenizer, const std::string& out,
                              double val_fraction, ThreadTeam& threads,
                              const std::function<void(int64_t, int64_t)>& progress, int64_t shard_tokens,
                              const std::string& text_key) {
  if (!(val_fraction >= 0 && val_fraction < 1)) fail_value("val-fraction", " must be in [0, 1), not ", val_fraction);
  if (shard_tokens < 1 || shard_tokens > std::numeric_limits<int32_t>::max())
    fail_usage("a shard must hold 1 to 2147483647 tokens, not ", shard_tokens);
  std::vector<std::string> names;
  for (const TextInput& text : texts) names.push_back(text.name());
  const Json sources = sources_json(names);
  const Plan plan = make_plan(texts, tokenizer, val_fraction);

  OutputDirectory directory(out);
  const int64_t vocabulary = tokenizer.vocabulary();
  SplitWriter splits[2] = {{directory, Split::train, vocabulary, shard_tokens},
                           {directory, Split::val, vocabulary, shard_tokens}};
  TokenizeResult result;
  result.train_bytes = plan.bytes[0];
  result.val_bytes = plan.bytes[1];
  int64_t done = 0;
  encode_in_order(plan.chunks, tokenizer, threads, [&](const Chunk& chunk, const std::vector<int32_t>& ids) {
    splits[static_cast<int>(chunk.split)].write(ids);
    done += static_cast<int64_t>(chunk.end - chunk.begin);
    if (progress) progress(done, result.train_bytes + result.val_bytes);
  });
  for (SplitWriter& split : splits) split.finish();
  result.train_tokens = splits[0].tokens();
  result.val_tokens = splits[1].tokens();
  result.shards = splits[0].shards() + splits[1].shards();

  write_file_atomically(out + "/" + kTokenizerJson, tokenizer.json());
  const auto described = [](const SplitWriter& split, int64_t bytes) {
    return Json{{"tokens", split.tokens()}, {"bytes", bytes}, {"largest_token", split.largest_token()}};
  };
  directory.finish(json_text({{"tokenizer", kTokenizerJson},
                              {"vocabulary", vocabulary},
                              {"train", described(splits[0], result.train_bytes)},
                              {"val", described(splits[1], result.val_bytes)},
                              {"val_fraction", val_fraction},
                              {"text_key", text_key},
                              {"sources", sources}}));
  return result;
}

}  // namespace llm
