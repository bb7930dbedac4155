// The numbers of the inputs and outputs of layernorm (kCentered) and rmsnorm, and of their backward ops, where they
// differ: only layernorm has a bias and a mean, which stands before rstd.
#pragma once

namespace llm {

template <bool kCentered>
struct NormSlots {
  static constexpr int kDelta = kCentered ? 3 : 2;                                        // an input
  static constexpr int kRstd = kCentered ? 2 : 1, kSum = kRstd + 1, kLargest = kSum + 1;  // outputs

  static constexpr int kBackwardRstd = kCentered ? 4 : 3, kAddend = kBackwardRstd + 1;  // inputs
  static constexpr int kSums = kCentered ? 2 : 1;  // how many outputs, from number 1 on, are sums over the rows
  static constexpr int kColumnSums = 3;            // an output of layernorm_backward alone
  static constexpr int kBackwardLargest = kCentered ? 4 : 2;
};

}  // namespace llm
