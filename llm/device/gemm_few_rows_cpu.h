// The part of gemm_rows_cpu.h for so few rows that reading B from memory takes all the time.
#pragma once
#include "llm/base/simd.h"
#include "llm/device/gemm_cpu.h"

namespace llm {

inline constexpr int64_t kMostFewRows = simd::kLanes == 16 ? 5 : 3;

// Up to how many rows these kernels are the faster ones.
inline int64_t few_rows(bool packed) { return packed ? kMostFewRows : 3; }

// Floats: room for a copy of A that is filled up with zeros, where B is quantized.
int64_t few_rows_workspace(int64_t m, int64_t k);

// Columns [begin, end) of a product of g.m <= kMostFewRows rows, without the epilogue. `a`: A, from fill_up_rows().
void multiply_few_rows(const Gemm& g, const MatrixView& a, int64_t begin, int64_t end);

// A, or a copy of it in the workspace with as many columns as the rows of packed B have.
MatrixView fill_up_rows(const Gemm& g, float* workspace);

}  // namespace llm
