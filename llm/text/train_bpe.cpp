#include "llm/text/train_bpe.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <queue>
#include <unordered_map>
#include <utility>

#include "llm/base/error.h"
#include "llm/text/bytes.h"
#include "llm/text/tokenizer_parts.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;

using Counts = std::unordered_map<std::string_view, int64_t>;  // of pieces, which point into the texts

// Counts the pieces of `text`, as a tokenizer would split it.
void count_pieces(std::string_view text, const PreTokenizer& step, SplitPattern::Matcher& matcher, Counts& counts) {
  while (!text.empty()) {
    const size_t name = std::min(text.find(kEndOfText), text.size());
    std::string_view document = text.substr(0, name);
    text.remove_prefix(std::min(text.size(), name + kEndOfText.size()));
    while (!document.empty()) {
      const size_t good = utf8_prefix(document);
      const std::string_view part = document.substr(0, good);
      cut_by(step, matcher, part, [&](std::string_view piece) { ++counts[piece]; });
      document.remove_prefix(std::min(document.size(), good + 1));  // a byte that is no UTF-8 has no neighbours
    }
  }
}

// Where `text` may be cut at or after `from`: at the beginning of a document, or before a word.
size_t cut_after(std::string_view text, size_t from, bool words) {
  const auto is_letter = [](char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; };
  for (size_t at = std::max<size_t>(from, 1); words && at + 1 < text.size(); ++at)
    if (text[at] == ' ' && is_letter(text[at - 1]) && is_letter(text[at + 1])) return at;
  return text.size();
}

struct Piece {
  std::vector<int32_t> ids;
  int64_t count;
};

// All different pieces of the texts, in the order of their bytes: the same whatever the threads.
std::vector<std::pair<std::string_view, int64_t>> count_all(const std::vector<std::string_view>& texts,
                                                            const PreTokenizer& step, ThreadTeam& threads,
                                                            const std::function<void(int64_t, int64_t)>& progress) {
  std::vector<std::string_view> chunks;
  int64_t total = 0;
  for (std::string_view text : texts) {
    total += static_cast<int64_t>(text.size());
    while (!text.empty()) {
      const size_t cut =
          text.size() <= kChunkBytes ? text.size() : cut_after(text, kChunkBytes, step.cuts_before_words);
      chunks.push_back(text.substr(0, cut));
      text.remove_prefix(cut);
    }
  }
  std::vector<Counts> counts(static_cast<size_t>(threads.size()));
  std::vector<std::exception_ptr> errors(counts.size());
  std::atomic<size_t> next{0};
  std::atomic<int64_t> done{0};
  threads.run([&](int rank) {
    const auto mine = static_cast<size_t>(rank);
    try {
      SplitPattern::Matcher matcher(*step.pattern);
      for (size_t i; (i = next.fetch_add(1)) < chunks.size();) {
        count_pieces(chunks[i], step, matcher, counts[mine]);
        done += static_cast<int64_t>(chunks[i].size());
        if (rank == 0 && progress) progress(done, total);
      }
    } catch (...) {
      errors[mine] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  for (size_t i = 1; i < counts.size(); ++i)
    for (auto& [piece, count] : counts[i]) counts[0][piece] += count;
  std::vector<std::pair<std::string_view, int64_t>> all(counts[0].begin(), counts[0].end());
  std::sort(all.begin(), all.end());
  return all;
}

// The pairs of neighbours in all pieces, how often they occur, and in which pieces.
class Pairs {
 public:
  explicit Pairs(std::vector<Piece> pieces) : pieces_(std::move(pieces)) {
    for (size_t p = 0; p < pieces_.size(); ++p) {
      const std::vector<int32_t>& ids = pieces_[p].ids;
      for (size_t i = 0; i + 1 < ids.size(); ++i) add(ids[i], ids[i + 1], pieces_[p].count, p);
    }
    for (auto& [pair, state] : states_) heap_.push({state.count, pair});
  }

  // The most frequent pair, of equals that with the lowest ids; false when none occurs twice.
  bool next(int32_t& left, int32_t& right) {
    while (!heap_.empty()) {
      const Candidate top = heap_.top();
      heap_.pop();
      const int64_t count = states_.find(top.pair)->second.count;
      if (count != top.count) {  // it has become less frequent since
        if (count > 0) heap_.push({count, top.pair});
        continue;
      }
      if (count < 2) return false;
      left = static_cast<int32_t>(top.pair >> 32), right = static_cast<int32_t>(top.pair & 0xFFFFFFFF);
      return true;
    }
    return false;
  }

  void merge(int32_t left, int32_t right, int32_t id) {
    const auto merged = states_.find(key(left, right));
    const std::vector<uint32_t> where = std::move(merged->second.pieces);
    touched_.clear();
    for (const uint32_t p : where) {
      std::vector<int32_t>& ids = pieces_[p].ids;
      const int64_t count = pieces_[p].count;
      size_t kept = 0;
      for (size_t i = 0; i < ids.size(); ++i, ++kept) {
        if (ids[i] != left || i + 1 == ids.size() || ids[i + 1] != right) {
          ids[kept] = ids[i];
          continue;
        }
        if (kept > 0) {
          remove(ids[kept - 1], left, count);
          add(ids[kept - 1], id, count, p);
        }
        if (i + 2 < ids.size()) {
          remove(right, ids[i + 2], count);
          add(id, ids[i + 2], count, p);
        }
        ids[kept] = id;
        ++i;
      }
      ids.resize(kept);
    }
    states_.find(key(left, right))->second.count = 0;
    // What has become more frequent is pushed again; a count that has only sunk is corrected when it comes up.
    for (const uint64_t pair : touched_) {
      State& state = states_.find(pair)->second;
      if (std::exchange(state.touched, false) && state.count > 0) heap_.push({state.count, pair});
    }
  }

 private:
  struct State {
    int64_t count = 0;
    std::vector<uint32_t> pieces;  // by ascending number; some may have lost the pair
    bool touched = false;
  };
  struct Candidate {
    int64_t count;
    uint64_t pair;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };
  struct Hash {
    size_t operator()(uint64_t x) const { return (x * 0x9E3779B97F4A7C15u) >> 16; }
  };
  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }

  void add(int32_t left, int32_t right, int64_t count, size_t piece) {
    const uint64_t pair = key(left, right);
    State& state = states_[pair];
    state.count += count;
    if (state.pieces.empty() || state.pieces.back() != piece) state.pieces.push_back(static_cast<uint32_t>(piece));
    if (!std::exchange(state.touched, true)) touched_.push_back(pair);
  }
  void remove(int32_t left, int32_t right, int64_t count) { states_.find(key(left, right))->second.count -= count; }

  std::vector<Piece> pieces_;
  std::unordered_map<uint64_t, State, Hash> states_;
  std::priority_queue<Candidate> heap_;
  std::vector<uint64_t> touched_;
};

}  // namespace

std::unique_ptr<Tokenizer> train_bpe(const std::vector<std::string_view>& texts, int64_t vocabulary,
                                     const std::string& pattern, ThreadTeam& threads,
                                     const std::function<void(int64_t, int64_t)>& progress) {
  if (vocabulary < 257 || vocabulary > 1 << 22)
    fail_usage("a vocabulary to train has 257 to 4194304 ids, not ", vocabulary);
  TokenizerParts parts;
  BpeRules bpe;
  std::vector<std::string>& tokens = parts.vocabulary.tokens;
  parts.vocabulary.where = "the trained tokenizer";
  parts.pre_tokenizers.push_back(isolated_split(pattern, parts.vocabulary.where));
  const auto counted = count_all(texts, parts.pre_tokenizers[0], threads, progress);

  // GPT-2's order: the printable bytes first, as their characters are ordered.
  std::vector<std::pair<std::string, int>> characters;
  for (int byte = 0; byte < 256; ++byte) characters.emplace_back(byte_character(byte), byte);
  std::sort(characters.begin(), characters.end());
  for (size_t id = 0; id < 256; ++id) {
    const int byte = characters[id].second;
    bpe.byte_ids[static_cast<size_t>(byte)] = static_cast<int32_t>(id);
    tokens.emplace_back(1, static_cast<char>(byte));
  }

  std::vector<Piece> pieces;
  for (const auto& [text, count] : counted) {
    if (text.size() < 2) continue;
    pieces.push_back({{}, count});
    for (const char c : text) pieces.back().ids.push_back(bpe.byte_ids[static_cast<unsigned char>(c)]);
  }
  Pairs pairs(std::move(pieces));
  for (int32_t left, right; static_cast<int64_t>(tokens.size()) + 1 < vocabulary && pairs.next(left, right);) {
    const auto id = static_cast<int32_t>(tokens.size());
    pairs.merge(left, right, id);
    tokens.push_back(tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)]);
    bpe.merges.push_back({left, right, id, static_cast<int32_t>(bpe.merges.size())});
  }
  const auto end_of_text = static_cast<int32_t>(tokens.size());
  parts.added = AddedTokens({{std::string(kEndOfText), end_of_text}});
  parts.model = std::move(bpe);
  return make_tokenizer(std::move(parts));
}

}  // namespace llm
