// oneDNN's matrix product, which `bench --products` measures ours beside in a binary built with `make ONEDNN=1`. The name
// is weak: null in any other binary.
#pragma once
#include "llm/device/gemm_cpu.h"

namespace llm {

// C = A B with as many threads of its own. Throws Error where oneDNN reports one.
[[gnu::weak]] void onednn_gemm(const Gemm& g, int threads);

}  // namespace llm
