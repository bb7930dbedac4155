// Causal attention with grouped queries on the CPU, by blocks of queries and keys with the online softmax (Milakov and
// Gimelshein 2018; Dao et al. 2022): no T x T matrix is ever made, blocks above the diagonal are skipped.
//
// All of q, k and v lie in one packed tensor `qkv` (B, T, (H + 2 K) D): H query heads, then K key heads, then K value
// heads, of D channels each; query head h reads key-value head h / (H / K). Scores are scaled by 1 / sqrt(D).
//
// `starts` (B, T), may be null: the first position that a token sees, where its document begins (Llama 3, section 3.2).
// It is at most the token's own and never falls along T.
#pragma once
#include <cstdint>

#include "llm/base/threads.h"

namespace llm {

struct AttentionShape {
  int64_t batch, tokens, heads, kv_heads, head_size;
};

int64_t attention_workspace(const AttentionShape& s, int threads);           // floats
int64_t attention_backward_workspace(const AttentionShape& s, int threads);  // floats

// out (B, T, H D); log_sum_exp (B, H, T): the natural log of the softmax's denominator, of the scaled scores.
void attention_forward(ThreadTeam& threads, const AttentionShape& s, const float* qkv, float* out, float* log_sum_exp,
                       float* workspace, const int32_t* starts = nullptr);

// d_qkv (B, T, (H + 2 K) D), overwritten, from d_out (B, T, H D). Deterministic for any number of threads.
void attention_backward(ThreadTeam& threads, const AttentionShape& s, const float* qkv, const float* out,
                        const float* log_sum_exp, const float* d_out, float* d_qkv, float* workspace,
                        const int32_t* starts = nullptr);

// Inference: `tokens` new positions from `position` on (qkv as above, of the new tokens alone). Their keys and values
// are first written to the caches (B, capacity, K, D) each; then each new query attends to all positions up to its own.
void attention_cached(ThreadTeam& threads, const AttentionShape& s, int64_t position, int64_t capacity,
                      const float* qkv, float* key_cache, float* value_cache, float* out, float* workspace);
int64_t attention_cached_workspace(const AttentionShape& s, int64_t capacity, int threads);  // floats

}  // namespace llm
