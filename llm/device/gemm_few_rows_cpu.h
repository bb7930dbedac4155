// The product of few rows of A and a transposed B that lies as it is, such as the weights that are being trained when a
// sample is drawn: part of gemm(), with its order of sums. All the time goes into reading B, so B is read once and packed
// nowhere.
#pragma once
#include "llm/device/gemm_cpu.h"

namespace llm {

// The most rows for which this is faster than to pack B.
inline constexpr int64_t kMostFewRows = 3;

// `alone`: on the calling thread, without the team.
void gemm_few_rows(ThreadTeam& threads, const Gemm& g, bool alone);

}  // namespace llm
