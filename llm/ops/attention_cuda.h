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
struct KernelCall;

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

// Where the heads lie in a row of qkv, ((H + 2 K) D): H query heads, K key heads, K value heads.
struct PackedHeads {
  int tokens, heads, kv_heads, head_size;  // T, H, K, D

  explicit PackedHeads(const AttentionShape& s)
      : tokens(static_cast<int>(s.tokens)),
        heads(static_cast<int>(s.heads)),
        kv_heads(static_cast<int>(s.kv_heads)),
        head_size(static_cast<int>(s.head_size)) {}

  LLM_HOST_DEVICE int64_t width() const { return int64_t{heads + 2 * kv_heads} * head_size; }
  LLM_HOST_DEVICE int64_t out_width() const { return int64_t{heads} * head_size; }
  LLM_HOST_DEVICE int64_t query(int head) const { return int64_t{head} * head_size; }
  LLM_HOST_DEVICE int64_t key(int kv_head) const { return int64_t{heads + kv_head} * head_size; }
  LLM_HOST_DEVICE int64_t value(int kv_head) const { return int64_t{heads + kv_heads + kv_head} * head_size; }
  LLM_HOST_DEVICE int group() const { return heads / kv_heads; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(head_size)); }
};

// Where the documents of a row of a batch begin. Without kDocuments the row is one document, and nothing is read.
template <bool kDocuments>
struct DocumentStarts {
  const int32_t* starts;  // (T), of the row
  int tokens;

  LLM_HOST_DEVICE DocumentStarts(const int32_t* all, int64_t batch, int row_tokens)
      : starts(kDocuments ? all + batch * row_tokens : nullptr), tokens(row_tokens) {}
  // The start of a token's document; 0 for tokens beyond the row's end.
  LLM_HOST_DEVICE int of(int token) const { return kDocuments && token < tokens ? starts[token] : 0; }
};

AttentionShape attention_shape(const KernelCall& call, size_t qkv);  // from the attributes and input number `qkv`

// The plain kernels: arithmetic in fp32, head sizes up to kPlainHeadSize.
inline constexpr int64_t kPlainHeadSize = 256;
void attention_plain(const KernelCall& call);
void attention_backward_plain(const KernelCall& call);

// Kernels with bf16 products on the tensor cores, for the head sizes for which `has_flash_attention` is true.
bool has_flash_attention(int64_t head_size);
void flash_attention(const KernelCall& call);
void flash_attention_backward(const KernelCall& call);

// The same with wgmma and TMA, where the device is a Hopper and the binary has code for sm_90a.
bool has_flash_attention_hopper(const CudaDevice& device, int64_t head_size);
void flash_attention_hopper(const KernelCall& call);
void flash_attention_backward_hopper(const KernelCall& call);

}  // namespace cuda
}  // namespace llm
