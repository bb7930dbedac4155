// The product of rows of A and weights in 8 or 4 bits in which A is rounded, too (DType::w8a8, w4a8): each 32 elements of
// a row of A become whole numbers from -127 to 127 with one scale, as in llama.cpp's products with Q8_0 and Q4_0. The sums
// of a block's products are whole numbers; they are multiplied with both scales and added in fp32, in the order of k, to
// the addend or zero. So a row has the same bits in a batch of any size here, too.
#pragma once
#include "llm/device/gemm_cpu.h"

namespace llm {

// Floats, for a team of `threads` and any number of columns.
int64_t gemm_rounded_workspace(int64_t m, int64_t k, int threads);

// `alone`: on the calling thread, without the team.
void gemm_rounded(ThreadTeam& threads, const Gemm& g, bool alone, float* workspace);

}  // namespace llm
