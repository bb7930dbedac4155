// rmsnorm: y = x / sqrt(mean(x^2) + epsilon) * weight, over the last dimension (Zhang and Sennrich 2019).
//   x (.., C), weight (C), [delta (.., C)] -> y (.., C), rstd (rows), [x + delta (.., C)]
#include <cmath>

#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/cuda_workspaces.h"
#include "llm/ops/norm_rows.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape x = g.shape(node.inputs[0]);
  if (g.shape(node.inputs[1]) != Shape{x.last()}) fail("rmsnorm: weight must have ", x.last(), " elements");
  g.add_output(node, "", g.dtype(node.inputs[0]), x);
  g.add_output(node, "rstd", DType::fp32, {x.rows()});
  if (node.input(2) != kNone) g.add_output(node, "sum", g.dtype(node.inputs[0]), x);
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const bool residual = node.input(2) != kNone;
  const TensorId x = residual ? node.outputs[2] : node.inputs[0];
  const TensorId d_sum = residual ? gradients.of(node.outputs[2]) : kNone;
  TensorId dx = d_sum;
  if (gradients.of(node.outputs[0]) != kNone) {
    const auto d =
        g.add("rmsnorm_backward", {}, {gradients.of(node.outputs[0]), x, node.inputs[1], node.outputs[1], d_sum});
    gradients.contribute(node.inputs[1], d[1]);
    dx = d[0];
  }
  gradients.contribute(node.inputs[0], dx);
  if (residual) gradients.contribute(node.inputs[2], dx);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 4 * static_cast<double>(g.shape(node.outputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const int64_t C = call.in_shape(0).last(), rows = call.in_shape(0).rows();
  const float *x = call.in(0), *weight = call.in(1), *delta = call.in(2);
  float *y = call.out(0), *rstd_out = call.out(1), *sum_out = call.out(2);
  const auto epsilon = static_cast<float>(call.node.attributes.number("epsilon"));
  call.threads.for_blocks(rows, row_grain(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* in =
          add_residual(x + r * C, delta ? delta + r * C : nullptr, sum_out ? sum_out + r * C : nullptr, C);
      simd::Vec squares{};
      for_vectors(C, [&](int64_t c, auto lanes) {
        const simd::Vec v = lanes.load(in + c);
        squares += v * v;
      });
      const float rstd = 1.0f / std::sqrt(simd::reduce_add(squares) / static_cast<float>(C) + epsilon);
      for_vectors(C, [&](int64_t c, auto lanes) {
        lanes.store(y + r * C + c, lanes.load(in + c) * rstd * lanes.load(weight + c));
      });
      rstd_out[r] = rstd;
    }
  });
}

// (dy, x, weight, rstd, [addend]) -> dx (+ addend), d_weight
void infer_backward(Graph& g, Node& node) {
  const Shape x = g.shape(node.inputs[1]);
  g.add_output(node, "input", g.dtype(node.inputs[1]), x);
  g.add_output(node, "weight", DType::fp32, {x.last()});
}

size_t backward_workspace(const Graph& g, const Node& node, const Target& target) {
  const Shape x = g.shape(node.inputs[1]);
  return target.cuda ? static_cast<size_t>(rmsnorm_backward_workspace_cuda(x.rows(), x.last()))
                     : static_cast<size_t>(kNormBlocks * x.last()) * 4;
}

Cost backward_cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 10 * static_cast<double>(g.shape(node.outputs[0]).elements()));
}

void cpu_backward(const KernelCall& call) {
  const int64_t C = call.in_shape(1).last(), rows = call.in_shape(1).rows();
  const float *dy = call.in(0), *x = call.in(1), *weight = call.in(2), *rstd = call.in(3), *addend = call.in(4);
  float *dx = call.out(0), *partial = call.workspace();
  const int64_t block = norm_block_rows(rows), blocks = (rows + block - 1) / block;
  call.threads.for_blocks(rows, block, [&](int64_t begin, int64_t end) {
    float* d_weight = partial + begin / block * C;
    std::fill_n(d_weight, C, 0.0f);
    for (int64_t r = begin; r < end; ++r) {
      const float *in = x + r * C, *d = dy + r * C;
      const float s = rstd[r];
      // dx = s (g - n mean(g n)) with g = dy weight and n = x s.
      simd::Vec sum_gn{};
      for_vectors(C, [&](int64_t c, auto lanes) {
        const simd::Vec dv = lanes.load(d + c);
        const simd::Vec n = lanes.load(in + c) * s;
        sum_gn += dv * lanes.load(weight + c) * n;
        lanes.store(d_weight + c, lanes.load(d_weight + c) + dv * n);
      });
      const float mean_gn = simd::reduce_add(sum_gn) / static_cast<float>(C);
      for_vectors(C, [&](int64_t c, auto lanes) {
        const simd::Vec n = lanes.load(in + c) * s;
        simd::Vec v = (lanes.load(d + c) * lanes.load(weight + c) - n * mean_gn) * s;
        if (addend) v += lanes.load(addend + r * C + c);
        lanes.store(dx + r * C + c, v);
      });
    }
  });
  sum_blocks(call.threads, partial, blocks, C, call.accumulates(1), call.out(1));
}

std::vector<Example> examples() {
  const auto row = [](Shape shape, int64_t C) -> std::vector<Example::Input> {
    return {{shape, DType::fp32, -2, 2}, {{C}, DType::fp32, 0.5, 1.5, Role::parameter}};
  };
  auto residual = row({2, 9, 20}, 20);
  residual.push_back({{2, 9, 20}});
  return {{{{"epsilon", 1e-6}}, row({3, 7}, 7)},
          {{{"epsilon", 1e-5}}, row({2, 40, 33}, 33)},
          {{{"epsilon", 1e-5}}, residual}};
}

}  // namespace

std::vector<Op> rmsnorm_ops() {
  return {{.name = "rmsnorm",
           .summary = "y = x rstd weight; with delta: of x + delta",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::rmsnorm,
           .examples = examples,
           .in_place = {{2, 0}, {2, 2}},
           .slots = {.delta = 2, .sum = 2, .largest = 3},
           .recompute = Recompute::norms},
          {.name = "rmsnorm_backward",
           .summary = "dx (+ addend), d_weight",
           .infer = infer_backward,
           .cost = backward_cost,
           .cpu = cpu_backward,
           .cuda = cuda::rmsnorm_backward,
           .workspace = backward_workspace,
           .in_place = {{0, 4}, {0, 0}},
           .slots = {.addend = 4, .largest = 2}}};
}

}  // namespace llm
