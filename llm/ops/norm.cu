// layernorm, rmsnorm and their backward: the kernels and their layout are in norm_forward_cuda.h and
// norm_backward_cuda.h.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/norm_backward_cuda.h"
#include "llm/ops/norm_forward_cuda.h"
#include "llm/ops/norm_slots.h"

namespace llm::cuda {
namespace {

template <class T, bool kCentered>
void forward(const KernelCall& call) {
  using Slots = NormSlots<kCentered>;
  norm_forward<T, kCentered>(*call.cuda, {.x = call.in<T>(0),
                                          .delta = call.in<T>(Slots::kDelta),
                                          .weight = call.in<T>(1),
                                          .bias = kCentered ? call.in<T>(2) : nullptr,
                                          .y = call.out<T>(0),
                                          .sum = call.out<T>(Slots::kSum),
                                          .mean = kCentered ? call.out(1) : nullptr,
                                          .rstd = call.out(Slots::kRstd),
                                          .rows = call.in_shape(0).rows(),
                                          .columns = static_cast<int>(call.in_shape(0).last()),
                                          .epsilon = static_cast<float>(call.node.attributes.number("epsilon")),
                                          .largest = largest_of(call)});
}

// The sums over rows: outputs from 1 on, added up from what each block has left.
template <int kSums>
void sum_outputs(const KernelCall& call) {
  PartialOutputs<kSums> outputs;
  for (size_t i = 0; i < kSums; ++i) outputs.out[i] = call.out(i + 1), outputs.add[i] = call.accumulates(i + 1);
  sum_partials<kSums>(call.cuda->stream(), call.workspace(), norm_blocks_cuda(call.in_shape(1).rows()),
                      call.in_shape(1).last(), outputs);
}

template <class T, bool kCentered>
void backward(const KernelCall& call) {
  using Slots = NormSlots<kCentered>;
  const int64_t rows = call.in_shape(1).rows();
  const bool sums_columns = kCentered && call.has_output(Slots::kColumnSums);
  norm_backward<T, kCentered>(call.cuda->stream(), {.dy = call.in<T>(0),
                                                    .x = call.in<T>(1),
                                                    .weight = call.in<T>(2),
                                                    .mean = kCentered ? call.in(3) : nullptr,
                                                    .rstd = call.in(Slots::kBackwardRstd),
                                                    .addend = call.in<T>(Slots::kAddend),
                                                    .dx = call.out<T>(0),
                                                    .partial = call.workspace(),
                                                    .sums_columns = sums_columns,
                                                    .rows = rows,
                                                    .columns = static_cast<int>(call.in_shape(1).last()),
                                                    .block_rows = static_cast<int>(norm_block_rows_cuda(rows)),
                                                    .largest = largest_of(call)});
  sums_columns ? sum_outputs<Slots::kSums + 1>(call) : sum_outputs<Slots::kSums>(call);
}

bool is_bf16(const KernelCall& call) { return call.in_dtype(0) == DType::bf16; }

}  // namespace

void layernorm(const KernelCall& call) { is_bf16(call) ? forward<bf16, true>(call) : forward<float, true>(call); }
void layernorm_backward(const KernelCall& call) {
  is_bf16(call) ? backward<bf16, true>(call) : backward<float, true>(call);
}
void rmsnorm(const KernelCall& call) { is_bf16(call) ? forward<bf16, false>(call) : forward<float, false>(call); }
void rmsnorm_backward(const KernelCall& call) {
  is_bf16(call) ? backward<bf16, false>(call) : backward<float, false>(call);
}

}  // namespace llm::cuda
