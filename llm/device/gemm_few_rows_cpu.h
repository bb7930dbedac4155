// The kernel that gemm() uses for up to 8 rows of A and a transposed B.
#pragma once
#include "llm/device/gemm_cpu.h"

namespace llm {

bool has_few_rows(const Gemm& g);  // whether the kernel below is for this product

// `alone`: on the calling thread, without the team.
void gemm_few_rows(ThreadTeam& threads, const Gemm& g, bool alone);

}  // namespace llm
