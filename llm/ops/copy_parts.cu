// copy_parts on the GPU: a launch for each rectangle, of which each block of threads copies some rows.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/copy_parts.h"
#include "llm/ops/cuda_kernels.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_rectangle(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    for (int64_t c = threadIdx.x; simt::in_bounds(c < columns); c += kThreads)
      to[row * to_stride + c] = from[row * from_stride + c];
}

template <class T>
void run(const KernelCall& call) {
  constexpr int64_t kMostBlocks = 4096;
  for (const CopiedPart& p : parts_of(call.node.attributes))
    simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(std::min(p.rows, kMostBlocks))), dim3(kThreads), 0,
                 copy_rectangle<T>, call.in<T>(static_cast<size_t>(p.input)) + p.from, p.from_stride,
                 call.out<T>(0) + p.to, p.to_stride, p.rows, p.columns);
}

}  // namespace

void copy_parts(const KernelCall& call) { call.out_dtype(0) == DType::bf16 ? run<bf16>(call) : run<float>(call); }

}  // namespace llm::cuda
