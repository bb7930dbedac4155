// The way that gemm() takes for up to 8 rows of A against a transposed B.
#pragma once
#include "llm/device/gemm_cpu.h"

namespace llm {

bool has_few_rows(const Gemm& g);

// `alone`: on the calling thread.
void gemm_few_rows(ThreadTeam& threads, const Gemm& g, bool alone);

}  // namespace llm
