// layernorm: y = (x - mean) / sqrt(variance + epsilon) * weight + bias, over the last dimension (Ba et al. 2016).
//   x (.., C), weight (C), bias (C), [delta (.., C)] -> y (.., C), mean (rows), rstd (rows), [x + delta (.., C)]
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
  if (g.shape(node.inputs[1]) != Shape{x.last()} || g.shape(node.inputs[2]) != Shape{x.last()})
    fail("layernorm: weight and bias must have ", x.last(), " elements");
  g.add_output(node, "", g.dtype(node.inputs[0]), x);
  g.add_output(node, "mean", DType::fp32, {x.rows()});
  g.add_output(node, "rstd", DType::fp32, {x.rows()});
  if (node.input(3) != kNone) g.add_output(node, "sum", g.dtype(node.inputs[0]), x);
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const bool residual = node.input(3) != kNone;
  const TensorId x = residual ? node.outputs[3] : node.inputs[0];
  const TensorId d_sum = residual ? gradients.of(node.outputs[3]) : kNone;
  TensorId dx = d_sum;
  if (gradients.of(node.outputs[0]) != kNone) {
    const auto d = g.add("layernorm_backward", {},
                         {gradients.of(node.outputs[0]), x, node.inputs[1], node.outputs[1], node.outputs[2], d_sum});
    gradients.contribute(node.inputs[2], d[2]);
    gradients.contribute(node.inputs[1], d[1]);
    dx = d[0];
  }
  gradients.contribute(node.inputs[0], dx);
  if (residual) gradients.contribute(node.inputs[3], dx);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 8 * static_cast<double>(g.shape(node.outputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const int64_t C = call.in_shape(0).last(), rows = call.in_shape(0).rows();
  const float *x = call.in(0), *weight = call.in(1), *bias = call.in(2), *delta = call.in(3);
  float *y = call.out(0), *mean_out = call.out(1), *rstd_out = call.out(2), *sum_out = call.out(3);
  const auto epsilon = static_cast<float>(call.node.attributes.number("epsilon"));
  const float inverse = 1.0f / static_cast<float>(C);
  call.threads.for_blocks(rows, row_grain(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* in =
          add_residual(x + r * C, delta ? delta + r * C : nullptr, sum_out ? sum_out + r * C : nullptr, C);
      simd::Vec sum{};
      for_vectors(C, [&](int64_t c, auto lanes) { sum += lanes.load(in + c); });
      const float mean = simd::reduce_add(sum) * inverse;
      simd::Vec squares{};
      for_vectors(C, [&](int64_t c, auto lanes) {
        const simd::Vec d = lanes.keep(lanes.load(in + c) - mean);
        squares += d * d;
      });
      const float rstd = 1.0f / std::sqrt(simd::reduce_add(squares) * inverse + epsilon);
      for_vectors(C, [&](int64_t c, auto lanes) {
        const simd::Vec normal = (lanes.load(in + c) - mean) * rstd;
        lanes.store(y + r * C + c, normal * lanes.load(weight + c) + lanes.load(bias + c));
      });
      mean_out[r] = mean;
      rstd_out[r] = rstd;
    }
  });
}

// (dy, x, weight, mean, rstd, [addend]) -> dx (+ addend), d_weight, d_bias, [on a GPU, sums of dx's columns (C)]
void infer_backward(Graph& g, Node& node) {
  const Shape x = g.shape(node.inputs[1]);
  g.add_output(node, "input", g.dtype(node.inputs[1]), x);
  g.add_output(node, "weight", DType::fp32, {x.last()});
  g.add_output(node, "bias", DType::fp32, {x.last()});
}

size_t backward_workspace(const Graph& g, const Node& node, const Target& target) {
  const Shape x = g.shape(node.inputs[1]);
  return target.cuda
             ? static_cast<size_t>(layernorm_backward_workspace_cuda(x.rows(), x.last(), node.output(3) != kNone))
             : static_cast<size_t>(kNormBlocks * x.last() * 2) * 4;
}

Cost backward_cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 14 * static_cast<double>(g.shape(node.outputs[0]).elements()));
}

void cpu_backward(const KernelCall& call) {
  const int64_t C = call.in_shape(1).last(), rows = call.in_shape(1).rows();
  const float *dy = call.in(0), *x = call.in(1), *weight = call.in(2), *mean = call.in(3), *rstd = call.in(4);
  const float* addend = call.in(5);
  float *dx = call.out(0), *partial = call.workspace();
  const int64_t block = norm_block_rows(rows), blocks = (rows + block - 1) / block;
  const float inverse = 1.0f / static_cast<float>(C);
  call.threads.for_blocks(rows, block, [&](int64_t begin, int64_t end) {
    float* d_weight = partial + begin / block * C;
    float* d_bias = partial + (blocks + begin / block) * C;
    std::fill_n(d_weight, C, 0.0f);
    std::fill_n(d_bias, C, 0.0f);
    for (int64_t r = begin; r < end; ++r) {
      const float *in = x + r * C, *d = dy + r * C;
      const float m = mean[r], s = rstd[r];
      // dx = s (g - mean(g) - n mean(g n)) with g = dy weight and n = (x - mean) s.
      simd::Vec sum_g{}, sum_gn{};
      for_vectors(C, [&](int64_t c, auto lanes) {
        const simd::Vec dv = lanes.load(d + c);
        const simd::Vec n = (lanes.load(in + c) - m) * s;
        const simd::Vec g = dv * lanes.load(weight + c);
        sum_g += g;
        sum_gn += g * n;
        lanes.store(d_weight + c, lanes.load(d_weight + c) + dv * n);
        lanes.store(d_bias + c, lanes.load(d_bias + c) + dv);
      });
      const float mean_g = simd::reduce_add(sum_g) * inverse, mean_gn = simd::reduce_add(sum_gn) * inverse;
      for_vectors(C, [&](int64_t c, auto lanes) {
        const simd::Vec n = (lanes.load(in + c) - m) * s;
        simd::Vec v = (lanes.load(d + c) * lanes.load(weight + c) - mean_g - n * mean_gn) * s;
        if (addend) v += lanes.load(addend + r * C + c);
        lanes.store(dx + r * C + c, v);
      });
    }
  });
  sum_blocks(call.threads, partial, blocks, C, call.accumulates(1), call.out(1));
  sum_blocks(call.threads, partial + blocks * C, blocks, C, call.accumulates(2), call.out(2));
}

std::vector<Example> examples() {
  const auto row = [](Shape shape, int64_t C) -> std::vector<Example::Input> {
    return {{shape, DType::fp32, -2, 2},
            {{C}, DType::fp32, 0.5, 1.5, Role::parameter},
            {{C}, DType::fp32, -1, 1, Role::parameter}};
  };
  auto residual = row({2, 9, 20}, 20);
  residual.push_back({{2, 9, 20}});
  return {{{{"epsilon", 1e-5}}, row({3, 7}, 7)},
          {{{"epsilon", 1e-5}}, row({2, 40, 33}, 33)},
          {{{"epsilon", 1e-5}}, residual}};
}

}  // namespace

std::vector<Op> layernorm_ops() {
  return {{.name = "layernorm",
           .summary = "y = (x - mean) rstd weight + bias; with delta: of x + delta",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::layernorm,
           .examples = examples,
           .in_place = {{3, 0}, {3, 3}},
           .slots = {.delta = 3, .sum = 3, .largest = 4},
           .recompute = Recompute::norms},
          {.name = "layernorm_backward",
           .summary = "dx (+ addend), d_weight, d_bias",
           .infer = infer_backward,
           .cost = backward_cost,
           .cpu = cpu_backward,
           .cuda = cuda::layernorm_backward,
           .workspace = backward_workspace,
           .in_place = {{0, 5}, {0, 0}},
           .slots = {.addend = 5, .column_sums = 3, .largest = 4}}};
}

}  // namespace llm
