#include "llm/text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <queue>

namespace llm {
namespace {

// Up to here looking at all pairs again after each merge is faster than keeping them in a heap.
constexpr size_t kShort = 64;
constexpr int32_t kNone = std::numeric_limits<int32_t>::max();

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t x) {
  x *= 0x9E3779B97F4A7C15u;
  return x ^ x >> 29;
}

}  // namespace

MergeTable::MergeTable(const std::vector<Merge>& merges)
    : entries_(std::bit_ceil(merges.size() * 3 / 2 + 2)), mask_(entries_.size() - 1) {
  for (const Merge& m : merges) {
    const uint64_t pair = pair_of(m.left, m.right);
    uint64_t at = mix(pair) & mask_;
    while (entries_[at].pair != ~uint64_t{0} && entries_[at].pair != pair) at = (at + 1) & mask_;
    entries_[at] = {pair, m.id, m.rank};
  }
}

const MergeTable::Entry* MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (uint64_t at = mix(pair) & mask_;; at = (at + 1) & mask_) {
    if (entries_[at].pair == pair) return &entries_[at];
    if (entries_[at].pair == ~uint64_t{0}) return nullptr;
  }
}

void MergeTable::merge(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const {
  symbols.size() <= kShort ? merge_short(symbols, ids) : merge_long(symbols, ids);
}

void MergeTable::merge_short(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const {
  const Entry* pairs[kShort + 1];  // of symbol i and the next one
  size_t n = symbols.size();
  int32_t* s = symbols.data();
  for (size_t i = 0; i + 1 < n; ++i) pairs[i] = find(s[i], s[i + 1]);
  while (n > 1) {
    size_t best = n;
    int32_t rank = kNone;
    for (size_t i = 0; i + 1 < n; ++i)
      if (pairs[i] && pairs[i]->rank < rank) rank = pairs[i]->rank, best = i;
    if (best == n) break;
    s[best] = pairs[best]->id;
    --n;
    for (size_t i = best + 1; i < n; ++i) s[i] = s[i + 1], pairs[i] = pairs[i + 1];
    if (best > 0) pairs[best - 1] = find(s[best - 1], s[best]);
    if (best + 1 < n) pairs[best] = find(s[best], s[best + 1]);
  }
  ids.insert(ids.end(), s, s + n);
}

// A heap of pairs and a linked list of symbols: n log n. A pair that has changed since it was pushed is passed over.
void MergeTable::merge_long(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const {
  struct Candidate {
    int32_t rank;
    size_t left;
    int32_t left_id, right_id;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  const size_t n = symbols.size();
  std::vector<size_t> next(n), before(n);
  std::vector<Candidate> room;
  room.reserve(n);
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap(std::greater<>(), std::move(room));
  const auto push = [&](size_t left) {
    if (next[left] >= n) return;
    const int32_t a = symbols[left], b = symbols[next[left]];
    if (const Entry* entry = find(a, b)) heap.push({entry->rank, left, a, b});
  };
  for (size_t i = 0; i < n; ++i) next[i] = i + 1, before[i] = i - 1;
  for (size_t i = 0; i < n; ++i) push(i);
  while (!heap.empty()) {
    const Candidate c = heap.top();
    heap.pop();
    const size_t right = next[c.left];
    if (symbols[c.left] != c.left_id || right >= n || symbols[right] != c.right_id) continue;
    symbols[c.left] = find(c.left_id, c.right_id)->id;
    symbols[right] = -1;
    next[c.left] = next[right];
    if (next[right] < n) before[next[right]] = c.left;
    push(c.left);
    if (c.left > 0) push(before[c.left]);
  }
  for (size_t i = 0; i < n; i = next[i]) ids.push_back(symbols[i]);
}

TokenMap::TokenMap(const std::vector<std::string_view>& tokens,
                   const std::vector<std::pair<std::string, int32_t>>& more)
    : slots_(std::bit_ceil((tokens.size() + more.size()) * 2 + 1)), mask_(slots_.size() - 1) {
  for (size_t id = 0; id < tokens.size(); ++id) add(tokens[id], static_cast<int32_t>(id));
  for (const auto& [name, id] : more) add(name, id);
}

void TokenMap::add(std::string_view token, int32_t id) {
  if (token.empty()) return;
  longest_ = std::max(longest_, token.size());
  uint64_t at = std::hash<std::string_view>()(token) & mask_;
  while (slots_[at].id >= 0 && slots_[at].token != token) at = (at + 1) & mask_;
  if (slots_[at].id < 0) slots_[at] = {token, id};
}

int32_t TokenMap::find(std::string_view token) const {
  if (token.empty() || token.size() > longest_) return -1;
  for (uint64_t at = std::hash<std::string_view>()(token) & mask_;; at = (at + 1) & mask_)
    if (slots_[at].id < 0 || slots_[at].token == token) return slots_[at].id;
}

std::vector<Merge> merges_of_ranks(const std::vector<std::string_view>& tokens, const TokenMap& map,
                                   const std::vector<int32_t>& ranks) {
  std::vector<Merge> merges;
  merges.reserve(tokens.size() * 6);
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const int32_t left = map.find(token.substr(0, cut));
      if (left < 0) continue;
      const int32_t right = map.find(token.substr(cut));
      if (right >= 0) merges.push_back({left, right, static_cast<int32_t>(id), ranks[id]});
    }
  }
  return merges;
}

}  // namespace llm
