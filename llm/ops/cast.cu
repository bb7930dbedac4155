// cast: the same values in bf16 or fp32, rounded to the nearest (elementwise_cuda.h). Reads the input and writes the
// output once.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"

namespace llm::cuda {
namespace {

struct Identity {
  __device__ float operator()(float x) const { return x; }
};

template <class From, class To>
void cast_as(const KernelCall& call) {
  elementwise(call.cuda->stream(), call.out_shape(0).elements(), Identity{}, call.out<To>(0), call.in<From>(0));
}

template <class From>
void cast_from(const KernelCall& call) {
  call.out_dtype(0) == DType::bf16 ? cast_as<From, bf16>(call) : cast_as<From, float>(call);
}

}  // namespace

void cast(const KernelCall& call) { call.in_dtype(0) == DType::bf16 ? cast_from<bf16>(call) : cast_from<float>(call); }

}  // namespace llm::cuda
