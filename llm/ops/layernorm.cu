// layernorm and layernorm_backward: the kernels and their layout are in norm_forward_cuda.h and norm_backward_cuda.h.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/norm_backward_cuda.h"
#include "llm/ops/norm_forward_cuda.h"

namespace llm::cuda {
namespace {

template <class T>
void forward(const KernelCall& call) {
  norm_forward<T, true>(*call.cuda, {.x = call.in<T>(0),
                                     .delta = call.in<T>(3),
                                     .weight = call.in<T>(1),
                                     .bias = call.in<T>(2),
                                     .y = call.out<T>(0),
                                     .sum = call.out<T>(3),
                                     .mean = call.out(1),
                                     .rstd = call.out(2),
                                     .rows = call.in_shape(0).rows(),
                                     .columns = static_cast<int>(call.in_shape(0).last()),
                                     .epsilon = static_cast<float>(call.node.attributes.number("epsilon")),
                                     .largest = largest_of(call)});
}

template <class T>
void backward(const KernelCall& call) {
  const int64_t rows = call.in_shape(1).rows(), columns = call.in_shape(1).last();
  norm_backward<T, true>(call.cuda->stream(), {.dy = call.in<T>(0),
                                               .x = call.in<T>(1),
                                               .weight = call.in<T>(2),
                                               .mean = call.in(3),
                                               .rstd = call.in(4),
                                               .addend = call.in<T>(5),
                                               .dx = call.out<T>(0),
                                               .partial = call.workspace(),
                                               .sums_columns = call.has_output(3),
                                               .rows = rows,
                                               .columns = static_cast<int>(columns),
                                               .block_rows = static_cast<int>(norm_block_rows_cuda(rows)),
                                               .largest = largest_of(call)});
  const int64_t blocks = norm_blocks_cuda(rows);
  if (call.has_output(3))
    sum_partials<3>(
        call.cuda->stream(), call.workspace(), blocks, columns,
        {{call.out(1), call.out(2), call.out(3)}, {call.accumulates(1), call.accumulates(2), call.accumulates(3)}});
  else
    sum_partials<2>(call.cuda->stream(), call.workspace(), blocks, columns,
                    {{call.out(1), call.out(2)}, {call.accumulates(1), call.accumulates(2)}});
}

}  // namespace

void layernorm(const KernelCall& call) { call.in_dtype(0) == DType::bf16 ? forward<bf16>(call) : forward<float>(call); }
void layernorm_backward(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? backward<bf16>(call) : backward<float>(call);
}

}  // namespace llm::cuda
