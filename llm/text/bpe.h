// Byte-pair encoding: the table of merges, and what it makes of a piece of text.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llm {

// The tokens `left` and `right`, side by side, become `id`. Of all pairs in a piece the one with the lowest rank is merged
// first, of equals the leftmost.
struct Merge {
  int32_t left, right, id, rank;
};

class MergeTable {
 public:
  // Of two merges of the same pair the last one counts.
  explicit MergeTable(const std::vector<Merge>& merges);

  // Appends to `ids` what remains of `symbols` (which are overwritten) when nothing can be merged any more.
  void merge(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const;

 private:
  struct Entry {
    uint64_t pair = ~uint64_t{0};
    int32_t id = 0, rank = 0;
  };
  const Entry* find(int32_t left, int32_t right) const;
  void merge_short(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const;
  void merge_long(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const;

  std::vector<Entry> entries_;  // open addressing, linear probing
  uint64_t mask_;
};

// The tokens' bytes and the way back to their ids.
class TokenMap {
 public:
  TokenMap() = default;
  // `tokens[id]`, and `more` names of ids; views into both, which must stay. Empty tokens are not entered; of equals the
  // first counts.
  explicit TokenMap(const std::vector<std::string_view>& tokens,
                    const std::vector<std::pair<std::string, int32_t>>& more = {});
  int32_t find(std::string_view token) const;  // -1: there is none
  size_t longest() const { return longest_; }

 private:
  struct Slot {
    std::string_view token;
    int32_t id = -1;
  };
  void add(std::string_view token, int32_t id);

  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
  size_t longest_ = 0;
};

// All the merges by which tiktoken and llama2.c work: any two tokens that make up a third one become it, at that token's
// rank. `ranks[id]`, the lower the sooner.
std::vector<Merge> merges_of_ranks(const std::vector<std::string_view>& tokens, const TokenMap& map,
                                   const std::vector<int32_t>& ranks);

}  // namespace llm
