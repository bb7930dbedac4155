// The blocks of the key-value memory: who holds them, and what those that nobody holds still contain.
//
// A published block is full and known by its tokens and by the published block in front of it (a chain, so that two
// blocks are the same only after the same tokens). A block that nobody holds is free. It keeps its contents until it is
// taken; the one that became free first is taken first, those without contents before all others.
#pragma once
#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "llm/infer/engine.h"

namespace llm {

class BlockPool {
 public:
  using Block = int32_t;
  static constexpr Block kNoBlock = -1;
  // A place in a chain of published blocks; a number is never used twice.
  using Link = uint64_t;
  static constexpr Link kStart = 0;
  static constexpr Link kFarStart =
      1;  // of texts whose keys are others from the first token on (ModelConfig::is_far())

  explicit BlockPool(int64_t blocks);

  int64_t total() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t free() const { return free_; }
  int64_t cached() const { return cached_; }  // free ones with contents

  // A free block, which the caller now holds; kNoBlock where there is none.
  Block take();
  // One more holder, of a published block.
  void hold(Block block);
  void release(Block block);

  // The published block of these kBlockTokens tokens behind `before`; kNoBlock where there is none.
  Block find(Link before, const int32_t* tokens) const;
  Link link(Block block) const { return at(block).link; }
  // Makes a block known, which the caller holds and never writes again. Returns the link for the block that follows. Of
  // two blocks with the same contents the first one stays known.
  Link publish(Block block, Link before, const int32_t* tokens);

 private:
  struct Key {
    Link before;
    std::array<int32_t, kBlockTokens> tokens;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  struct State {
    int64_t holders = 0;
    Link link = kStart;  // kStart: not published
    Key key = {};
    Block previous = kNoBlock, next = kNoBlock;  // in the list of free blocks
  };
  static Key key_of(Link before, const int32_t* tokens);
  State& at(Block block) { return blocks_[static_cast<size_t>(block)]; }
  const State& at(Block block) const { return blocks_[static_cast<size_t>(block)]; }
  void unlist(Block block);
  void list_first(Block block);
  void list_last(Block block);

  std::vector<State> blocks_;
  std::unordered_map<Key, Block, Hash> known_;
  Link last_link_ = kFarStart;
  Block first_ = kNoBlock, last_ = kNoBlock;  // free blocks, in the order in which they are taken
  int64_t free_ = 0, cached_ = 0;
};

}  // namespace llm
