// rmsnorm and rmsnorm_backward: the kernels and their layout are in norm_forward_cuda.h and norm_backward_cuda.h.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/norm_backward_cuda.h"
#include "llm/ops/norm_forward_cuda.h"

namespace llm::cuda {
namespace {

template <class T>
void forward(const KernelCall& call) {
  norm_forward<T, false>(*call.cuda, {.x = call.in<T>(0),
                                      .delta = call.in<T>(2),
                                      .weight = call.in<T>(1),
                                      .bias = nullptr,
                                      .y = call.out<T>(0),
                                      .sum = call.out<T>(2),
                                      .mean = nullptr,
                                      .rstd = call.out(1),
                                      .rows = call.in_shape(0).rows(),
                                      .columns = static_cast<int>(call.in_shape(0).last()),
                                      .epsilon = static_cast<float>(call.node.attributes.number("epsilon")),
                                      .largest = largest_of(call)});
}

template <class T>
void backward(const KernelCall& call) {
  const int64_t rows = call.in_shape(1).rows(), columns = call.in_shape(1).last();
  norm_backward<T, false>(call.cuda->stream(), {.dy = call.in<T>(0),
                                                .x = call.in<T>(1),
                                                .weight = call.in<T>(2),
                                                .mean = nullptr,
                                                .rstd = call.in(3),
                                                .addend = call.in<T>(4),
                                                .dx = call.out<T>(0),
                                                .partial = call.workspace(),
                                                .sums_columns = false,
                                                .rows = rows,
                                                .columns = static_cast<int>(columns),
                                                .block_rows = static_cast<int>(norm_block_rows_cuda(rows)),
                                                .largest = largest_of(call)});
  sum_partials<1>(call.cuda->stream(), call.workspace(), norm_blocks_cuda(rows), columns,
                  {{call.out(1)}, {call.accumulates(1)}});
}

}  // namespace

void rmsnorm(const KernelCall& call) { call.in_dtype(0) == DType::bf16 ? forward<bf16>(call) : forward<float>(call); }
void rmsnorm_backward(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? backward<bf16>(call) : backward<float>(call);
}

}  // namespace llm::cuda
