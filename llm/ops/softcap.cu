// softcap and its backward, element by element (elementwise_cuda.h). Each kernel reads its inputs and writes its output
// once.
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"

namespace llm::cuda {
namespace {

struct Cap {
  float cap;
  __device__ float operator()(float x) const { return cap * tanhf(x / cap); }
};

struct CapBackward {
  float cap;
  __device__ float operator()(float dy, float y) const { return dy * (1 - (y / cap) * (y / cap)); }
};

float cap_of(const KernelCall& call) { return static_cast<float>(call.node.attributes.number("cap")); }

}  // namespace

void softcap(const KernelCall& call) { elementwise_op<1>(call, Cap{cap_of(call)}); }
void softcap_backward(const KernelCall& call) { elementwise_op<2>(call, CapBackward{cap_of(call)}); }

}  // namespace llm::cuda
