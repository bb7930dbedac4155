// The product of rows of A and weights that lie as packed panels (llm/base/packed_panels.h): part of gemm(), with its
// order of sums.
#pragma once
#include "llm/device/gemm_cpu.h"

namespace llm {

// Floats, for a team of `threads` and any number of rows and columns.
int64_t gemm_panels_workspace(int64_t k, int threads);

// `alone`: on the calling thread, without the team.
void gemm_panels(ThreadTeam& threads, const Gemm& g, bool alone, float* workspace);

}  // namespace llm
