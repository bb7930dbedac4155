// Compiled with `make ONEDNN=1` alone.
#include "llm/cli/bench_onednn.h"

#include <dnnl.h>
#include <omp.h>

#include <algorithm>

#include "llm/base/error.h"

namespace llm {

void onednn_gemm(const Gemm& g, int threads) {
  omp_set_num_threads(threads);
  // Row-major too; the leading dimension is the stride between rows of a matrix as it lies in memory.
  const bool a_transposed = g.a.column_stride != 1, b_transposed = g.b.column_stride != 1;
  const dnnl_status_t status = dnnl_sgemm(a_transposed ? 'T' : 'N', b_transposed ? 'T' : 'N', g.m, g.n, g.k, 1.0f,
                                          g.a.data, a_transposed ? g.a.column_stride : g.a.row_stride, g.b.data,
                                          b_transposed ? g.b.column_stride : g.b.row_stride, 0.0f, g.c, g.c_stride);
  if (status != dnnl_success) fail("oneDNN: dnnl_sgemm gave status ", static_cast<int>(status));
}

}  // namespace llm
