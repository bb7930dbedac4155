// What the two kernels of merge_attention share.
#pragma once
#include <cmath>

#include "llm/base/bf16.h"
#include "llm/graph/kernel.h"

namespace llm {

struct MergeShape {
  int64_t batch, tokens, heads, head_size;  // B, T, H, D
  int64_t first, part_tokens;               // of each sequence, those that the part has

  // The row (b, t) of the part that belongs to row (b, t) of all tokens; -1: the part does not have the token.
  LLM_HOST_DEVICE int64_t part_row(int64_t row) const {
    const int64_t t = row % tokens - first;
    return t < 0 || t >= part_tokens ? -1 : row / tokens * part_tokens + t;
  }
  // Where the log_sum_exp of a row's head lies in (B, H, of_sequence).
  LLM_HOST_DEVICE int64_t sum_of(int64_t row, int64_t head, int64_t of_sequence) const {
    return (row / of_sequence * heads + head) * of_sequence + row % of_sequence;
  }
};
MergeShape merge_shape(const KernelCall& call);

// By what two partial results of a query are multiplied, and the logarithm of both sums of exponentials together. The sum
// of neither may be there (-infinity): then both weights are 0.
struct MergeWeights {
  float first, second, log_sum_exp;
  LLM_HOST_DEVICE MergeWeights(float a, float b) {
    const float largest = a > b ? a : b, shift = largest == -INFINITY ? 0.0f : largest;
    const float of_a = expf(a - shift), of_b = expf(b - shift), sum = of_a + of_b;
    first = sum > 0 ? of_a / sum : 0.0f, second = sum > 0 ? of_b / sum : 0.0f;
    log_sum_exp = shift + logf(sum);
  }
};

}  // namespace llm
