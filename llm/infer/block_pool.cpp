#include "llm/infer/block_pool.h"

#include <algorithm>

namespace llm {

BlockPool::BlockPool(int64_t blocks) : blocks_(static_cast<size_t>(blocks)) {
  for (int64_t block = 0; block < blocks; ++block) list_last(static_cast<Block>(block));
}

// FNV-1a by whole words (Fowler, Noll and Vo 1991). Equal hashes are compared, so that no prompt can pass for another.
size_t BlockPool::Hash::operator()(const Key& key) const {
  uint64_t hash = 0xcbf29ce484222325;
  const auto mix = [&](uint64_t word) { hash = (hash ^ word) * 0x100000001b3, hash ^= hash >> 32; };
  mix(key.before);
  for (const int32_t token : key.tokens) mix(static_cast<uint32_t>(token));
  return hash;
}

BlockPool::Key BlockPool::key_of(Link before, const int32_t* tokens) {
  Key key{before, {}};
  std::copy_n(tokens, kBlockTokens, key.tokens.begin());
  return key;
}

BlockPool::Block BlockPool::take() {
  const Block block = first_;
  if (block == kNoBlock) return kNoBlock;
  unlist(block);
  State& state = at(block);
  if (state.link != kStart) known_.erase(state.key);
  state.link = kStart;
  state.holders = 1;
  return block;
}

void BlockPool::hold(Block block) {
  if (at(block).holders == 0) unlist(block);
  ++at(block).holders;
}

void BlockPool::release(Block block) {
  if (--at(block).holders > 0) return;
  at(block).link == kStart ? list_first(block) : list_last(block);
}

BlockPool::Block BlockPool::find(Link before, const int32_t* tokens) const {
  const auto found = known_.find(key_of(before, tokens));
  return found == known_.end() ? kNoBlock : found->second;
}

BlockPool::Link BlockPool::publish(Block block, Link before, const int32_t* tokens) {
  const auto [entry, is_new] = known_.try_emplace(key_of(before, tokens), block);
  if (!is_new) return at(entry->second).link;
  at(block).key = entry->first;
  return at(block).link = ++last_link_;
}

void BlockPool::unlist(Block block) {
  State& state = at(block);
  (state.previous == kNoBlock ? first_ : at(state.previous).next) = state.next;
  (state.next == kNoBlock ? last_ : at(state.next).previous) = state.previous;
  --free_;
  cached_ -= state.link != kStart;
}

void BlockPool::list_first(Block block) {
  State& state = at(block);
  state.previous = kNoBlock, state.next = first_;
  (first_ == kNoBlock ? last_ : at(first_).previous) = block;
  first_ = block;
  ++free_;
  cached_ += state.link != kStart;
}

void BlockPool::list_last(Block block) {
  State& state = at(block);
  state.previous = last_, state.next = kNoBlock;
  (last_ == kNoBlock ? first_ : at(last_).next) = block;
  last_ = block;
  ++free_;
  cached_ += state.link != kStart;
}

}  // namespace llm
