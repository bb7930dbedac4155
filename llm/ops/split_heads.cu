// split_heads and join_heads on the GPU: rows are copied by packs, each byte read once and written once.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/typed_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

// to[row][0, columns) = from[row][0, columns); columns and strides in elements, multiples of kWidth.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(const T* __restrict__ from, int64_t from_stride, T* __restrict__ to, int64_t to_stride,
                     int64_t rows, int64_t columns) {
  using Pack = simt::Pack<T, kWidth>;
  const int64_t packs = columns / kWidth, i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (simt::in_bounds(i < rows * packs)) {
    const int64_t row = i / packs, column = i % packs * kWidth;
    *reinterpret_cast<Pack*>(to + row * to_stride + column) =
        *reinterpret_cast<const Pack*>(from + row * from_stride + column);
  }
}

template <class T>
void copy_rows(const KernelCall& call, const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
               int64_t columns) {
  if (!from || rows * columns == 0) return;
  const bool packs = simt::packs(from, from_stride) && simt::packs(to, to_stride) && simt::packs(to, columns);
  const int64_t items = rows * columns / (packs ? simt::kPack<T> : 1);
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads)), dim3(kThreads), 0,
               packs ? copy_rows_kernel<T, simt::kPack<T>> : copy_rows_kernel<T, 1>, from, from_stride, to, to_stride,
               rows, columns);
}

}  // namespace

void split_heads(const KernelCall& call) {
  const int64_t rows = call.in_shape(0).rows(), queries = call.out_shape(0).last(), keys = call.out_shape(1).last();
  with_type(call.in_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    const T* from = call.in<T>(0);
    copy_rows<T>(call, from, queries + keys, call.out<T>(0), queries, rows, queries);
    copy_rows<T>(call, from + queries, queries + keys, call.out<T>(1), keys, rows, keys);
  });
}

void join_heads(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const int64_t rows = call.out_shape(0).rows(), queries = a.integer("heads") * a.integer("head_size"),
                keys = call.out_shape(0).last() - queries;
  // What is absent is 0.
  if ((!call.has_input(0) || !call.has_input(1)) &&
      cudaMemsetAsync(call.out<void>(0), 0, call.graph.tensor(call.node.outputs[0]).bytes(), call.cuda->stream()) !=
          cudaSuccess)
    fail("CUDA: join_heads: the output cannot be cleared");
  with_type(call.out_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    T* to = call.out<T>(0);
    copy_rows<T>(call, call.in<T>(0), queries, to, queries + keys, rows, queries);
    copy_rows<T>(call, call.in<T>(1), keys, to + queries, queries + keys, rows, keys);
  });
}

}  // namespace llm::cuda
