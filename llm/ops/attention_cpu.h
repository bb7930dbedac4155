// Causal attention with grouped queries on the CPU, in blocks of queries and keys with the online softmax (Milakov and
// Gimelshein 2018; Dao et al. 2022): no T x T matrix is stored, and blocks above the diagonal are skipped.
//
// Queries, keys and values lie in one packed tensor `qkv` (B, T, (H + 2 K) D): H query heads, then K key heads, then K
// value heads, of D channels each; query head h reads key-value head h / (H / K). Scores are multiplied by 1 / sqrt(D).
//
// `starts` (B, T), may be null: the first position that each token sees, where its document begins (Llama 3, section
// 3.2). A start is at most the token's own position and never falls along T.
#pragma once
#include <cstdint>

#include "llm/base/threads.h"

namespace llm {

struct AttentionShape {
  int64_t batch, tokens, heads, kv_heads, head_size;  // B, T, H, K, D
};

int64_t attention_workspace(const AttentionShape& s, int threads);           // floats
int64_t attention_backward_workspace(const AttentionShape& s, int threads);  // floats

// out (B, T, H D); log_sum_exp (B, H, T): the natural logarithm of the softmax's denominator, the sum of exp(scaled
// score).
void attention_forward(ThreadTeam& threads, const AttentionShape& s, const float* qkv, float* out, float* log_sum_exp,
                       float* workspace, const int32_t* starts = nullptr);

// Overwrites d_qkv (B, T, (H + 2 K) D), from d_out (B, T, H D). The bits do not depend on the number of threads.
void attention_backward(ThreadTeam& threads, const AttentionShape& s, const float* qkv, const float* out,
                        const float* log_sum_exp, const float* d_out, float* d_qkv, float* workspace,
                        const int32_t* starts = nullptr);

}  // namespace llm
