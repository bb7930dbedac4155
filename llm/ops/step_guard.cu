// step_guard on the GPU, by one thread. The decision is made there so that no step waits for the host.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/step_guard.h"

namespace llm::cuda {
namespace {

__global__ void step_guard_kernel(GuardRule rule, const float* __restrict__ norm,
                                  const float* __restrict__ loss,  // (1)
                                  float* guarded,                  // (1)
                                  float* statistics) {             // (5)
  float kept[kGuardStatistics];
  for (int i = 0; i < kGuardStatistics; ++i) kept[i] = statistics[i];
  const bool finite = isfinite(*norm) && isfinite(*loss);
  *guarded = !finite || rule.look(*norm, *loss, kept) ? INFINITY : *norm;
  for (int i = 0; i < kGuardStatistics; ++i) statistics[i] = kept[i];
}

}  // namespace

void step_guard(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const GuardRule rule{a.number("deviations"), a.number("after")};
  simt::launch(call.cuda->stream(), dim3(1), dim3(1), 0, step_guard_kernel, rule, call.in(0), call.in(1), call.out(0),
               call.out(1));
}

}  // namespace llm::cuda
