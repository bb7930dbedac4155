// Causal attention with grouped queries on the CPU, in blocks of queries and keys with the online softmax (Milakov and
// Gimelshein 2018; Dao et al. 2022): no T x T matrix is stored, and blocks above the diagonal are skipped.
//
// Queries, keys and values lie in one packed tensor `qkv` (B, T, (H + 2 K) D): H query heads, then K key heads, then K
// value heads, of D channels each; query head h reads key-value head h / (H / K). Scores are multiplied by 1 / sqrt(D).
//
// Where the queries are only a part of their sequences (context parallelism), they have a tensor (B, T, H D) of their
// own, and the keys and values that they may see another, (B, T', 2 K D). The queries of a sequence are then one or two
// chunks of neighbouring tokens, whose positions are counted from the first key. A query sees the keys up to its own
// position, and so all of them where it lies behind the last.
//
// `starts` (B, T), may be null: the first key that each query sees, where its document begins (Llama 3, section 3.2).
// Starts never fall along T. A query whose start lies behind all keys up to its position sees none: its output is 0 and
// its log_sum_exp -infinity, and it adds to no gradient.
#pragma once
#include <array>
#include <cstdint>

#include "llm/base/threads.h"

namespace llm {

struct AttentionShape {
  int64_t batch, tokens, heads, kv_heads, head_size;  // B, T, H, K, D
  int64_t keys = 0;                                   // T'; 0: packed with the queries
  // The queries are so many chunks of equal length; the positions of their first queries, which rise. They may lie
  // behind the keys.
  int64_t chunks = 1;
  std::array<int64_t, 2> firsts = {};

  int64_t chunk() const { return tokens / chunks; }
  int64_t key_rows() const { return keys ? keys : tokens; }
  // Channels in a row of the queries' tensor, and of that of keys and values; in the latter, the first key head.
  int64_t query_width() const { return (heads + (keys ? 0 : 2 * kv_heads)) * head_size; }
  int64_t key_width() const { return ((keys ? 0 : heads) + 2 * kv_heads) * head_size; }
  int64_t first_key_head() const { return keys ? 0 : heads; }
  // How far the positions of a chunk's queries are from the numbers of their rows.
  int64_t shift(int64_t number) const { return firsts[static_cast<size_t>(number)] - number * chunk(); }
};

int64_t attention_workspace(const AttentionShape& s, int threads);           // floats
int64_t attention_backward_workspace(const AttentionShape& s, int threads);  // floats

// out (B, T, H D); log_sum_exp (B, H, T): the natural logarithm of the softmax's denominator, the sum of exp(scaled
// score). `keys_values`: where they are not packed.
void attention_forward(ThreadTeam& threads, const AttentionShape& s, const float* qkv, float* out, float* log_sum_exp,
                       float* workspace, const int32_t* starts = nullptr, const float* keys_values = nullptr);

// Overwrites d_qkv (and d_keys_values, where they are not packed), from d_out (B, T, H D). The bits do not depend on
// the number of threads.
void attention_backward(ThreadTeam& threads, const AttentionShape& s, const float* qkv, const float* out,
                        const float* log_sum_exp, const float* d_out, float* d_qkv, float* workspace,
                        const int32_t* starts = nullptr, const float* keys_values = nullptr,
                        float* d_keys_values = nullptr);

}  // namespace llm
