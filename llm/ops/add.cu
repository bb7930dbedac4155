// add: c = a + b, element by element (elementwise_cuda.h). Reads both inputs and writes the output once.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"

namespace llm::cuda {
namespace {

template <class T>
void add_as(const KernelCall& call) {
  elementwise(call.cuda->stream(), call.out_shape(0).elements(), Add{}, call.out<T>(0), call.in<T>(0), call.in<T>(1));
}

}  // namespace

void add(const KernelCall& call) { call.in_dtype(0) == DType::bf16 ? add_as<bf16>(call) : add_as<float>(call); }

}  // namespace llm::cuda
