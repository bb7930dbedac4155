// Matrix product in fp32 on the CPU: C = A B (+ addend), any strides of A and B, with an epilogue on finished rows.
//
// Each element of C is one sum over k in a fixed order, in blocks whose size depends on k and on whether A is transposed:
// the bits do not depend on the number of threads, nor on m: a row has the same bits in every batch of more than 8 rows,
// and in every batch of up to 8. Up to 8 rows against a transposed B (token-by-token decoding) take a way of their own, bound by the reading
// of B, which sums in another order; so its bits are not those of the larger batches.
#pragma once
#include <cstdint>

#include "llm/base/threads.h"

namespace llm {

// A matrix in memory, element (i, j) at data[i * row_stride + j * column_stride]; one of the strides is 1.
struct MatrixView {
  const float* data;
  int64_t row_stride, column_stride;
};
inline MatrixView row_major(const float* data, int64_t columns) { return {data, columns, 1}; }
inline MatrixView transposed(const float* data, int64_t columns) { return {data, 1, columns}; }

// A piece of C whose elements are final: `rows` rows of `columns` elements from C(row, column) on, the first of them at c.
struct FinishedTile {
  float* c;
  int64_t stride;  // elements between rows
  int64_t row, rows, column, columns;
};
// Called once for each tile of C when it is finished.
struct Epilogue {
  void (*apply)(const void* context, const FinishedTile& tile) = nullptr;
  const void* context = nullptr;
  // A matrix of C's shape and stride that it reads or writes in the same places: they are brought into the cache while
  // the tile is multiplied.
  const float* beside = nullptr;
};

struct Gemm {
  int64_t m, n, k;
  MatrixView a;      // (m, k)
  MatrixView b;      // (k, n)
  float* c;          // (m, n), row-major
  int64_t c_stride;  // elements between rows of C
  // Added to the product: (m, n), may be C itself; with addend_stride 0 one row (n) that is added to each.
  const float* addend = nullptr;
  int64_t addend_stride = 0;
  Epilogue epilogue = {};
  // Of a transposed A also the sums of its rows, (m), are wanted here, on top of what is there or not.
  float* row_sums = nullptr;
  bool add_to_row_sums = false;
  // B is A's transpose, so C is symmetric: one triangle is multiplied and copied into the other, to the same bits. Neither
  // addend nor epilogue goes with it.
  bool symmetric = false;
};

// Floats of workspace that gemm() needs for these sizes with a team of `threads`.
int64_t gemm_workspace(int64_t m, int64_t n, int64_t k, int threads);

void gemm(ThreadTeam& threads, const Gemm& g, float* workspace);

}  // namespace llm
