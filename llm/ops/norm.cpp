// layernorm: y = (x - mean) / sqrt(variance + epsilon) * weight + bias, over the last dimension (Ba et al. 2016).
//   x (.., C), weight (C), bias (C), [delta (.., C)] -> y (.., C), mean (rows), rstd (rows), [x + delta (.., C)]
// rmsnorm: y = x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019).
//   x (.., C), weight (C), [delta (.., C)] -> y (.., C), rstd (rows), [x + delta (.., C)]
// What is normalised is x + delta as it is stored. On the CPU, where casts stand around the ops, the flag "bf16_sum" says that
// it is stored in bf16.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/cuda_workspaces.h"
#include "llm/ops/norm_rows.h"
#include "llm/ops/norm_slots.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

template <bool kCentered>
constexpr const char* kName = kCentered ? "layernorm" : "rmsnorm";
template <bool kCentered>
constexpr const char* kBackward = kCentered ? "layernorm_backward" : "rmsnorm_backward";

template <bool kCentered>
void infer(Graph& g, Node& node) {
  using Slots = NormSlots<kCentered>;
  const Shape x = g.shape(node.inputs[0]);
  for (int i = 1; i < Slots::kDelta; ++i)
    if (g.shape(node.inputs[static_cast<size_t>(i)]) != Shape{x.last()})
      fail(kName<kCentered>, ": ", i == 1 ? "weight" : "bias", " must have ", x.last(), " elements");
  g.add_output(node, "", g.dtype(node.inputs[0]), x);
  if (kCentered) g.add_output(node, "mean", DType::fp32, {x.rows()});
  g.add_output(node, "rstd", DType::fp32, {x.rows()});
  if (node.input(Slots::kDelta) != kNone) g.add_output(node, "sum", g.dtype(node.inputs[0]), x);
}

template <bool kCentered>
void backward(Graph& g, const Node& node, Gradients& gradients) {
  using Slots = NormSlots<kCentered>;
  const bool residual = node.input(Slots::kDelta) != kNone;
  const TensorId x = residual ? node.outputs[Slots::kSum] : node.inputs[0];
  const TensorId d_sum = residual ? gradients.of(node.outputs[Slots::kSum]) : kNone;
  TensorId dx = d_sum;
  if (gradients.of(node.outputs[0]) != kNone) {
    std::vector<TensorId> inputs = {gradients.of(node.outputs[0]), x, node.inputs[1]};
    inputs.insert(inputs.end(), node.outputs.begin() + 1, node.outputs.begin() + Slots::kSum);  // the statistics
    inputs.push_back(d_sum);
    const auto d = g.add(kBackward<kCentered>, {}, inputs);
    if (kCentered) gradients.contribute(node.inputs[2], d[2]);
    gradients.contribute(node.inputs[1], d[1]);
    dx = d[0];
  }
  gradients.contribute(node.inputs[0], dx);
  if (residual) gradients.contribute(node.inputs[Slots::kDelta], dx);
}

template <int kFlops>  // an element
Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, kFlops * static_cast<double>(g.shape(node.outputs[0]).elements()));
}

template <bool kCentered>
void cpu(const KernelCall& call) {
  using Slots = NormSlots<kCentered>;
  const int64_t C = call.in_shape(0).last(), rows = call.in_shape(0).rows();
  const float *x = call.in(0), *weight = call.in(1), *bias = kCentered ? call.in(2) : nullptr;
  const float* delta = call.in(Slots::kDelta);
  float *y = call.out(0), *rstd = call.out(Slots::kRstd), *sum = call.out(Slots::kSum);
  const bool is_bf16 = call.node.attributes.flag("bf16_sum");
  float* mean = kCentered ? call.out(1) : nullptr;
  const auto epsilon = static_cast<float>(call.node.attributes.number("epsilon"));
  call.threads.for_blocks(rows, row_grain(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* in =
          add_residual(x + r * C, delta ? delta + r * C : nullptr, sum ? sum + r * C : nullptr, C, is_bf16);
      const NormStatistics of = norm_row<kCentered>(in, weight, bias, y + r * C, C, epsilon);
      if (kCentered) mean[r] = of.mean;
      rstd[r] = of.rstd;
    }
  });
}

// (dy, x, weight, [layernorm: mean], rstd, [addend]) -> dx (+ addend), d_weight, [layernorm: d_bias, and, on a GPU,
// sums of dx's columns (C)]
template <bool kCentered>
void infer_backward(Graph& g, Node& node) {
  const Shape x = g.shape(node.inputs[1]);
  g.add_output(node, "input", g.dtype(node.inputs[1]), x);
  g.add_output(node, "weight", DType::fp32, {x.last()});
  if (kCentered) g.add_output(node, "bias", DType::fp32, {x.last()});
}

template <bool kCentered>
size_t backward_workspace(const Graph& g, const Node& node, const Target& target) {
  const Shape x = g.shape(node.inputs[1]);
  const int64_t sums = NormSlots<kCentered>::kSums;
  if (!target.cuda) return static_cast<size_t>(kNormBlocks * x.last() * sums) * 4;
  const bool sums_columns = kCentered && node.output(NormSlots<kCentered>::kColumnSums) != kNone;
  return static_cast<size_t>(norm_backward_workspace_cuda(x.rows(), x.last(), sums + (sums_columns ? 1 : 0)));
}

template <bool kCentered>
void cpu_backward(const KernelCall& call) {
  using Slots = NormSlots<kCentered>;
  const int64_t C = call.in_shape(1).last(), rows = call.in_shape(1).rows();
  const float *dy = call.in(0), *x = call.in(1), *weight = call.in(2), *rstd = call.in(Slots::kBackwardRstd);
  const float *mean = kCentered ? call.in(3) : nullptr, *addend = call.in(Slots::kAddend);
  float *dx = call.out(0), *partial = call.workspace();
  const int64_t block = norm_block_rows(rows), blocks = (rows + block - 1) / block;
  call.threads.for_blocks(rows, block, [&](int64_t begin, int64_t end) {
    float* d_weight = partial + begin / block * C;
    float* d_bias = kCentered ? d_weight + blocks * C : nullptr;
    std::fill_n(d_weight, C, 0.0f);
    if (kCentered) std::fill_n(d_bias, C, 0.0f);
    for (int64_t r = begin; r < end; ++r)
      norm_row_backward<kCentered>(dy + r * C, x + r * C, weight, {kCentered ? mean[r] : 0, rstd[r]},
                                   addend ? addend + r * C : nullptr, dx + r * C, d_weight, d_bias, C);
  });
  for (int64_t i = 0; i < Slots::kSums; ++i) {
    const auto output = static_cast<size_t>(i + 1);
    sum_blocks(call.threads, partial + i * blocks * C, blocks, C, call.accumulates(output), call.out(output));
  }
}

template <bool kCentered>
std::vector<Example> examples() {
  const auto example = [](Shape shape, bool residual) -> Example {
    const Shape C = {shape.last()};
    Example e = {{{"epsilon", 1e-5}}, {{shape, DType::fp32, -2, 2}, {C, DType::fp32, 0.5, 1.5, Role::parameter}}};
    if (kCentered) e.inputs.push_back({C, DType::fp32, -1, 1, Role::parameter});
    if (residual) e.inputs.push_back({shape});
    return e;
  };
  return {example({3, 7}, false), example({2, 40, 33}, false), example({2, 9, 20}, true)};
}

using Kernel = void(const KernelCall&);

template <bool kCentered>
void add_rows(std::vector<Op>& rows, const char* formula, const char* gradients, Kernel* cuda, Kernel* cuda_backward) {
  using Slots = NormSlots<kCentered>;
  rows.push_back(
      {.name = kName<kCentered>,
       .summary = formula,
       .infer = infer<kCentered>,
       .backward = backward<kCentered>,
       .cost = cost < kCentered ? 8 : 4 >,
       .cpu = cpu<kCentered>,
       .cuda = cuda,
       .examples = examples<kCentered>,
       .in_place = {{Slots::kSum, 0}, {Slots::kSum, Slots::kDelta}},
       .slots = {.delta = Slots::kDelta, .sum = Slots::kSum, .bias = kCentered ? 2 : -1, .largest = Slots::kLargest},
       .recompute = Recompute::norms});
  rows.push_back({.name = kBackward<kCentered>,
                  .summary = gradients,
                  .infer = infer_backward<kCentered>,
                  .cost = cost < kCentered ? 14 : 10 >,
                  .cpu = cpu_backward<kCentered>,
                  .cuda = cuda_backward,
                  .workspace = backward_workspace<kCentered>,
                  .in_place = {{0, Slots::kAddend}, {0, 0}},
                  .slots = {.addend = Slots::kAddend,
                            .column_sums = kCentered ? Slots::kColumnSums : -1,
                            .largest = Slots::kBackwardLargest}});
}

}  // namespace

std::vector<Op> norm_ops() {
  std::vector<Op> rows;
  add_rows<true>(rows, "y = (x - mean) rstd weight + bias; with delta: of x + delta", "dx (+ addend), d_weight, d_bias",
                 cuda::layernorm, cuda::layernorm_backward);
  add_rows<false>(rows, "y = x rstd weight; with delta: of x + delta", "dx (+ addend), d_weight", cuda::rmsnorm,
                  cuda::rmsnorm_backward);
  return rows;
}

}  // namespace llm
