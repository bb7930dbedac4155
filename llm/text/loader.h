// Batches in an order that is a pure function of (seed, epoch): no shuffle buffer, no state but a sample count, the same
// samples whatever the number of ranks.
//
// The stream is cut into windows of `context` tokens from an offset that differs from epoch to epoch (so that a window's
// edges do, but their number W does not); window number w of an epoch is the permutation of (seed, epoch) at w. A sample is a window and its targets,
// the same tokens one later. Samples are counted over the whole run: sample s is window s % W of epoch s / W.
#pragma once
#include <cstdint>

#include "llm/text/shards.h"

namespace llm {

// A bijection of [0, n) chosen by (seed, epoch): a Feistel network with Philox rounds, cycle-walked into range
// (Black and Rogaway 2002).
int64_t permute(int64_t index, int64_t n, uint64_t seed, uint64_t epoch);

class Loader {
 public:
  // Throws Error when the stream is shorter than context + 1 tokens.
  Loader(const TokenStream& stream, int64_t context, uint64_t seed, int64_t vocabulary = int64_t{1} << 31);

  int64_t windows() const { return windows_; }  // W, samples an epoch
  // Where in the stream sample `sample` begins.
  int64_t position(int64_t sample) const;
  // Fills tokens and targets (count, context) with samples [first, first + count). Throws Error for a token outside the
  // vocabulary, whatever the files say of themselves.
  void read(int64_t first, int64_t count, int32_t* tokens, int32_t* targets) const;

 private:
  const TokenStream& stream_;
  int64_t context_, vocabulary_, windows_;
  int64_t offsets_;  // an epoch's windows begin at an offset in [0, offsets_)
  uint64_t seed_;
};

}  // namespace llm
