// Batches in an order that is a pure function of (seed, epoch): no shuffle buffer, no state but a sample count, the same
// samples whatever the number of ranks.
//
// The stream is cut into windows of `context` tokens from an offset that differs from epoch to epoch (so that a window's
// edges do, but their number W does not); window number w of an epoch is the permutation of (seed, epoch) at w. A sample is a window and its targets,
// the same tokens one later. Samples are counted over the whole run: sample s is window s % W of epoch s / W.
//
// Of a mixture each part is a stream of its own. Every 10,000 samples, from the first on, hold each part as often as its
// share says, in an order that is a permutation of (seed, number of the 10,000): so which part sample s is of, and how many
// samples of that part came before, is a pure function of (seed, s), too.
#pragma once
#include <cstdint>
#include <vector>

#include "llm/text/shards.h"

namespace llm {

// A bijection of [0, n) chosen by (seed, epoch): a Feistel network with Philox rounds, cycle-walked into range
// (Black and Rogaway 2002).
int64_t permute(int64_t index, int64_t n, uint64_t seed, uint64_t epoch);

class Loader {
 public:
  // Throws Error when the stream, or a part of the mixture, is shorter than context + 1 tokens.
  Loader(const TokenStream& stream, int64_t context, uint64_t seed, int64_t vocabulary = int64_t{1} << 31,
         const std::vector<MixedPart>& mixture = {});

  int64_t windows() const { return parts_.front().windows; }  // W, samples an epoch (of the first part)
  // Where in the stream sample `sample` begins.
  int64_t position(int64_t sample) const;
  // Fills tokens and targets (count, context) with samples [first, first + count). Throws Error for a token outside the
  // vocabulary, whatever the files say of themselves.
  void read(int64_t first, int64_t count, int32_t* tokens, int32_t* targets) const;

 private:
  struct Part {
    int64_t first;    // token of the stream
    int64_t windows;  // W
    int64_t offsets;  // an epoch's windows begin at an offset in [0, offsets)
    int64_t share;    // samples of 10,000
  };
  int64_t position_in(const Part& part, int64_t sample) const;

  const TokenStream& stream_;
  int64_t context_, vocabulary_;
  std::vector<Part> parts_;
  uint64_t seed_;
};

}  // namespace llm
