// The matrix product in fp32 on the CPU: C = A B (+ addend), for any strides of A and B, with an epilogue on finished
// tiles.
//
// Each element of C is one sum over k in a fixed order, in stages whose length depends on k and on whether A is
// transposed. So the bits depend neither on the number of threads nor on m, nor on how B lies in memory.
#pragma once
#include <cstdint>

#include "llm/base/shape.h"
#include "llm/base/threads.h"

namespace llm {

// A matrix in memory, element (i, j) at data[i * row_stride + j * column_stride]; one of the strides is 1.
struct MatrixView {
  const float* data;
  int64_t row_stride, column_stride;
};
inline MatrixView row_major(const float* data, int64_t columns) { return {data, columns, 1}; }
inline MatrixView transposed(const float* data, int64_t columns) { return {data, 1, columns}; }

// A piece of C whose elements are final: `rows` x `columns` elements, the first of which is C(row, column) and lies at
// c.
struct FinishedTile {
  float* c;
  int64_t stride;  // elements between rows
  int64_t row, rows, column, columns;
};
// B's transpose (n, k), as weights lie in memory: packed panels (llm/base/packed_panels.h), or rows of bf16.
struct PackedB {
  const std::byte* data = nullptr;
  DType dtype = DType::fp32;
  bool in_rows = false;
};
// A function that is called once for each tile of C when the tile is finished.
struct Epilogue {
  void (*apply)(const void* context, const FinishedTile& tile) = nullptr;
  const void* context = nullptr;
  // A matrix of C's shape and stride of which the function reads or writes the same places: these are prefetched while
  // the tile is multiplied.
  const float* beside = nullptr;
};

struct Gemm {
  int64_t m, n, k;
  MatrixView a;      // (m, k)
  MatrixView b;      // (k, n)
  float* c;          // (m, n), row-major
  int64_t c_stride;  // elements between rows of C
  // Added to the product: (m, n), may be C itself; with addend_stride 0, one row (n) that is added to each row of C.
  const float* addend = nullptr;
  int64_t addend_stride = 0;
  Epilogue epilogue = {};
  // For a transposed A: where the sums of the rows of A (m) go, or null; they are added to what is there or overwrite
  // it.
  float* row_sums = nullptr;
  bool add_to_row_sums = false;
  // B is A's transpose, so C is symmetric: one triangle is computed and copied into the other, to the same bits. Not
  // together with an addend, an epilogue or row sums (throws Error).
  bool symmetric = false;
  // In place of `b`, for a row-major A: the product has the bits of one with the floats that the weights stand for, except
  // for types that round A (gemm_rounded_cpu.h). Not with row sums, nor symmetric (throws Error).
  PackedB packed_b = {};
};

// The steps of k in a stage of a product with a row-major A: a multiple of the blocks of weights in 8 and 4 bits.
int64_t gemm_stage_depth(int64_t k);

// How many floats of workspace gemm() needs for these sizes with a team of `threads`, for every layout of A and B.
int64_t gemm_workspace(int64_t m, int64_t n, int64_t k, int threads);
// The same for every m, n and k up to these.
int64_t gemm_workspace_up_to(int64_t m, int64_t n, int64_t k, int threads);
// The same with a packed B, for every n and every m up to this one.
int64_t gemm_packed_workspace(DType dtype, int64_t m, int64_t k, int threads);

void gemm(ThreadTeam& threads, const Gemm& g, float* workspace);

}  // namespace llm
