// dropout on the GPU: a thread computes the random bits of four neighbouring elements of a row of the batch. Each
// element is read once and written once.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/dropout_mask.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(DropoutMask mask, DropoutPlace place, float scale, const StepState* __restrict__ step, const T* x,
                   T* y,                // (rows, elements)
                   int64_t elements) {  // of a row
  using Four = simt::Pack<T, 4>;
  const int64_t row = blockIdx.x, group = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  const int64_t first = row * elements + 4 * group, end = (row + 1) * elements;
  const auto bits = mask.bits(*step, place.row(row), place.group(group));
  const auto masked = [&](float value, int i) {
    return bits[static_cast<size_t>(i)] >= mask.threshold ? value * scale : 0;
  };
  const auto aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % sizeof(Four) == 0; };
  if (simt::in_bounds(first + 4 <= end) && aligned(x + first) && aligned(y + first)) {
    auto four = *reinterpret_cast<const Four*>(x + first);
#pragma unroll
    for (int i = 0; i < 4; ++i) four.set(i, masked(four.get(i), i));
    *reinterpret_cast<Four*>(y + first) = four;
  } else {
    for (int i = 0; i < 4 && simt::in_bounds(first + i < end); ++i)
      y[first + i] = simt::stored<T>(masked(to_float(x[first + i]), i));
  }
}

template <class T>
void run(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const DropoutGroups of(call.out_shape(0));
  const dim3 grid(static_cast<unsigned>(of.rows), static_cast<unsigned>((of.groups + kThreads - 1) / kThreads));
  simt::launch(call.cuda->stream(), grid, dim3(kThreads), 0, dropout_kernel<T>,
               DropoutMask(a.number("probability"), a.integer("stream")), DropoutPlace(a, call.out_shape(0).last()),
               static_cast<float>(1 / (1 - a.number("probability"))), call.device_step, call.in<T>(0), call.out<T>(0),
               of.elements);
}

}  // namespace

void dropout(const KernelCall& call) { call.in_dtype(0) == DType::bf16 ? run<bf16>(call) : run<float>(call); }

}  // namespace llm::cuda
