// The linear ops on the GPU: their workspaces in bytes, for the op rows' `workspace` and the launchers, and the
// gradient of a bias. Plain C++.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "llm/base/shape.h"

struct CUstream_st;

namespace llm {

// The gradient of a bias is a sum over all rows: over the rows of each of at most 64 chunks, then over the chunks, in
// an order that follows from the shape alone.
inline constexpr int64_t kBiasChunkRows = 128, kBiasChunks = 64;

inline int64_t bias_chunk_rows(int64_t rows) {
  return std::max(kBiasChunkRows, (rows + kBiasChunks - 1) / kBiasChunks);
}

// linear and linear_backward_input need no workspace: the device holds that of cuBLASLt.
inline size_t linear_workspace_cuda() { return 0; }

// linear_backward_weight with a bias: the partial sums, (chunks, O) floats, or the epilogue's sum, (O) floats.
inline size_t linear_backward_weight_workspace_cuda(int64_t rows, int64_t O, bool bias) {
  const int64_t chunks = (rows + bias_chunk_rows(rows) - 1) / bias_chunk_rows(rows);
  return bias ? static_cast<size_t>(std::max<int64_t>(1, chunks) * O) * sizeof(float) : 0;
}

struct KernelCall;

namespace cuda {

// Runs `linear` by its kernel for few rows, which also does all that fuse_few_rows adds; false: there are more than
// kFewRows rows, and nothing was done.
bool linear_few_rows(const KernelCall& call);

// db (O) = the sum over the rows of dy (rows, O), or with `accumulate` db += that sum. `workspace` is that of
// linear_backward_weight.
void bias_gradient(CUstream_st* stream, const void* dy, DType dtype, int64_t rows, int64_t O, bool accumulate,
                   float* workspace, float* db);

}  // namespace cuda
}  // namespace llm
