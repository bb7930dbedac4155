// cast: the same values in bf16 or fp32, rounded to the nearest (elementwise_cuda.h). The kernel reads the input and
// writes the output once.
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"

namespace llm::cuda {
namespace {

struct Identity {
  __device__ float operator()(float x) const { return x; }
};

}  // namespace

void cast(const KernelCall& call) {
  with_type(call.in_dtype(0), [&](auto from) {
    with_type(call.out_dtype(0), [&](auto to) {
      elementwise(call.cuda->stream(), call.out_shape(0).elements(), Identity{}, call.out<decltype(to)>(0),
                  call.in<decltype(from)>(0));
    });
  });
}

}  // namespace llm::cuda
