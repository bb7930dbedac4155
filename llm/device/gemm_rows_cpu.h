// The product of rows of A and a transposed B, in an order of sums that does not depend on the number of rows: gemm()
// uses it for up to 8 rows, and for any number where Gemm::row_invariant asks for it.
#pragma once
#include "llm/device/gemm_cpu.h"

namespace llm {

inline constexpr int64_t kMostRowsUnasked = 8;

// Whether the kernels below are for this product. Throws Error where `row_invariant` asks for what they cannot do.
bool sums_by_rows(const Gemm& g);

// Floats, for a team of `threads`.
int64_t gemm_rows_workspace(int64_t m, int64_t k, int threads);
// The same for every m and k up to these.
int64_t gemm_rows_workspace_up_to(int64_t m, int64_t k, int threads);

// `alone`: on the calling thread, without the team.
void gemm_rows(ThreadTeam& threads, const Gemm& g, bool alone, float* workspace);

}  // namespace llm
