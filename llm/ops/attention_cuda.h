// The interfaces of the CUDA attention kernels, and their workspaces in bytes, for the op rows' `workspace` and the
// launchers. Plain C++.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "llm/base/bf16.h"
#include "llm/base/shape.h"
#include "llm/ops/attention_cpu.h"

namespace llm {

class CudaDevice;
struct Graph;
struct KernelCall;
struct Node;

// Which of the inputs of attention, and of attention_backward, are the queries, and keys and values where these have a
// tensor of their own.
struct AttentionInputs {
  size_t queries, keys;
};
inline constexpr AttentionInputs kAttentionInputs = {0, 2}, kAttentionBackwardInputs = {1, 5};
// Throws Error where the inputs do not fit each other.
AttentionShape attention_shape(const Graph& graph, const Node& node, AttentionInputs inputs);

// attention_paged on the CPU and on the GPU cuts the keys of a sequence into parts of so many, each with a softmax of its
// own. Up to kPagedFewRows rows the kernel leaves the parts, (R, H, parts, D + 2) floats, in the workspace.
inline constexpr int64_t kPagedPartKeys = 256, kPagedPartKeysCuda = 128, kPagedFewRows = 8;
inline size_t attention_paged_workspace_cuda(int64_t rows, int64_t heads, int64_t head_size, int64_t keys) {
  const int64_t parts = (keys + kPagedPartKeysCuda - 1) / kPagedPartKeysCuda;
  return rows > kPagedFewRows ? 0 : static_cast<size_t>(rows * heads * parts * (head_size + 2)) * sizeof(float);
}

// attention needs no workspace: scores and sums stay in registers and shared memory.
inline size_t attention_workspace_cuda(const AttentionShape&, DType) { return 0; }

// attention_backward needs rowsum(d_out * out) of each query, (B, H, T) floats. The kernels for Hopper need a pair of
// that and log_sum_exp, (B, H, attention_statistic_rows(T), 2) floats, padded since whole tiles are copied. As the op
// row does not know the device, the workspace always has the larger size.
inline int64_t attention_statistic_rows(int64_t tokens) { return (tokens + 127) / 128 * 128; }
inline size_t attention_backward_workspace_cuda(const AttentionShape& s, DType) {
  return static_cast<size_t>(s.batch * s.heads * attention_statistic_rows(s.tokens)) * 2 * sizeof(float);
}

namespace cuda {

// Queries of a chunk that one block of threads takes: the number of the first among the T queries of its sequence, its
// position, and the number behind the chunk's last.
struct QueryTile {
  int row, position, end_row;
  // The position behind the last query of `queries` from the first on.
  LLM_HOST_DEVICE int end_position(int queries) const {
    return position + (row + queries < end_row ? queries : end_row - row);
  }
  // Behind the last key, of `keys`, that one of these queries sees.
  LLM_HOST_DEVICE int end_key(int queries, int keys) const {
    const int end = end_position(queries);
    return end < keys ? end : keys;
  }
};

// Where the heads lie: in a row of the queries' tensor H query heads; in a row of that of keys and values K key heads,
// then K value heads. Packed, both are one tensor, and its rows hold all of them. And where the queries are in their
// sequences: tiles of queries are numbered chunk by chunk, and so in the order of their positions.
struct AttentionHeads {
  int tokens, keys, heads, kv_heads, head_size;  // T, T', H, K, D
  int query_heads_before_keys;                   // in a row of keys and values
  int query_row, key_row;                        // heads in a row
  int chunk, chunks, firsts[2];                  // queries of a chunk; positions

  explicit AttentionHeads(const AttentionShape& s)
      : tokens(static_cast<int>(s.tokens)),
        keys(static_cast<int>(s.key_rows())),
        heads(static_cast<int>(s.heads)),
        kv_heads(static_cast<int>(s.kv_heads)),
        head_size(static_cast<int>(s.head_size)),
        query_heads_before_keys(static_cast<int>(s.first_key_head())),
        query_row(static_cast<int>(s.query_width() / s.head_size)),
        key_row(static_cast<int>(s.key_width() / s.head_size)),
        chunk(static_cast<int>(s.chunk())),
        chunks(static_cast<int>(s.chunks)),
        firsts{static_cast<int>(s.firsts[0]), static_cast<int>(s.firsts[1])} {}

  LLM_HOST_DEVICE int64_t query_width() const { return int64_t{query_row} * head_size; }
  LLM_HOST_DEVICE int64_t key_width() const { return int64_t{key_row} * head_size; }
  LLM_HOST_DEVICE int64_t out_width() const { return int64_t{heads} * head_size; }
  LLM_HOST_DEVICE int64_t query(int head) const { return int64_t{head} * head_size; }
  LLM_HOST_DEVICE int64_t key(int kv_head) const { return int64_t{query_heads_before_keys + kv_head} * head_size; }
  LLM_HOST_DEVICE int64_t value(int kv_head) const { return key(kv_head + kv_heads); }
  LLM_HOST_DEVICE int group() const { return heads / kv_heads; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(head_size)); }

  // Of `size` queries each.
  LLM_HOST_DEVICE int tiles(int size) const { return (chunk + size - 1) / size * chunks; }
  LLM_HOST_DEVICE QueryTile tile(int number, int size) const {
    const int each = (chunk + size - 1) / size;
    const bool is_second = number >= each;
    const int at = (is_second ? number - each : number) * size, first_row = is_second ? chunk : 0;
    return {first_row + at, (is_second ? firsts[1] : firsts[0]) + at, first_row + chunk};
  }
  // The first tile with a query at position `key` or behind it, which sees that key; tiles(size): there is none.
  LLM_HOST_DEVICE int first_tile_seeing(int key, int size) const {
    const int each = (chunk + size - 1) / size;
    for (int i = 0; i < chunks; ++i)
      if (key < firsts[i] + chunk) return i * each + (key > firsts[i] ? (key - firsts[i]) / size : 0);
    return each * chunks;
  }
};

// The first keys that the queries of a chunk see, where their documents begin. Without kDocuments the sequence is one
// document, and nothing is read.
template <bool kDocuments>
struct DocumentStarts {
  const int32_t* starts;  // at a query's position its start
  int begin, end;         // the positions of the tile's first query, and behind the chunk's last

  // `all`: (B, T); `tile` is one of the chunk.
  LLM_HOST_DEVICE DocumentStarts(const int32_t* all, int64_t batch, int tokens, const QueryTile& tile)
      : starts(kDocuments ? all + batch * tokens + tile.row - tile.position : nullptr),
        begin(tile.position),
        end(tile.position + tile.end_row - tile.row) {}
  // The start of the query at a position; 0 behind the chunk.
  LLM_HOST_DEVICE int of(int position) const { return kDocuments && position < end ? starts[position] : 0; }
  LLM_HOST_DEVICE int first() const { return of(begin); }
  // That of the last query before a position.
  LLM_HOST_DEVICE int last_before(int position) const { return of((position < end ? position : end) - 1); }
};

// The logarithm of the sum of a query's exponentials, or infinity where it sees no key and there is no sum: its
// probabilities are then 0.
LLM_HOST_DEVICE inline float finite_or_infinity(float log_sum_exp) {
  return log_sum_exp == -INFINITY ? INFINITY : log_sum_exp;
}

// Of a node whose queries are that input.
AttentionShape attention_shape(const KernelCall& call, size_t queries);

// The plain kernels: arithmetic in fp32, head sizes up to kPlainHeadSize.
inline constexpr int64_t kPlainHeadSize = 256;
void attention_plain(const KernelCall& call);
void attention_backward_plain(const KernelCall& call);

// Kernels with bf16 products on the tensor cores, for the head sizes for which `has_flash_attention` is true.
bool has_flash_attention(int64_t head_size);
void flash_attention(const KernelCall& call);
void flash_attention_backward(const KernelCall& call);

// The same with wgmma and TMA, where the device is a Hopper and the binary has code for sm_90a. Chunks of queries must
// begin and end at multiples of 64 tokens, or lie behind all keys.
bool has_flash_attention_hopper(const CudaDevice& device, const AttentionShape& shape);
void flash_attention_hopper(const KernelCall& call);
void flash_attention_backward_hopper(const KernelCall& call);

}  // namespace cuda
}  // namespace llm
