// product_fp8: c = a_scale b_scale a b^T + bias, of 8-bit matrices with a scale each; all sums are fp32.
//   a (.., K), a_scale (1), b (N, K), b_scale (1), [bias (N)] -> c (.., N)
// Attribute "gradient", a flag: c is the gradient of a parameter, fp32 and added up over micro-steps; otherwise c is
// bf16. All three products of a linear layer have this form; the pass llm/graph/fp8.cpp makes them.
#include <algorithm>

#include "llm/base/rounding.h"
#include "llm/device/gemm_cpu.h"

#include "llm/base/fp8.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape a = g.shape(node.inputs[0]), b = g.shape(node.inputs[2]);
  if (b.rank() != 2 || a.last() != b[1]) fail("product_fp8: a ", a.text(), " does not fit b ", b.text());
  const bool gradient = node.attributes.flag("gradient");
  const Shape c = a.rank() == 3 ? Shape{a[0], a[1], b[0]} : Shape{a.rows(), b[0]};
  g.add_output(node, "", gradient ? DType::fp32 : DType::bf16, c);
}

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  if (target.cuda) return 0;
  const Shape a = g.shape(node.inputs[0]), b = g.shape(node.inputs[2]);
  return static_cast<size_t>(round_up(a.elements(), 16) + round_up(b.elements(), 16) +
                             gemm_workspace(a.rows(), b[0], b[1], target.threads)) *
         4;
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node,
                        2.0 * static_cast<double>(g.shape(node.inputs[0]).rows()) *
                            static_cast<double>(g.shape(node.inputs[2]).elements()));
}

void widen(const KernelCall& call, size_t input, float scale, float* to) {
  call.threads.for_blocks(call.in_shape(input).elements(), 16384, [&](int64_t begin, int64_t end) {
    if (call.in_dtype(input) == DType::e5m2)
      for (int64_t i = begin; i < end; ++i) to[i] = to_float(call.in<e5m2>(input)[i]) * scale;
    else
      for (int64_t i = begin; i < end; ++i) to[i] = to_float(call.in<e4m3>(input)[i]) * scale;
  });
}

// Computes what the GPU computes, slowly: a reference for it.
void cpu(const KernelCall& call) {
  const int64_t m = call.in_shape(0).rows(), k = call.in_shape(0).last(), n = call.in_shape(2)[0];
  float *a = call.workspace(), *b = a + round_up(m * k, 16), *more = b + round_up(n * k, 16), *c = call.out(0);
  widen(call, 0, *call.in(1), a);
  widen(call, 2, *call.in(3), b);
  gemm(call.threads,
       {.m = m,
        .n = n,
        .k = k,
        .a = row_major(a, k),
        .b = transposed(b, k),
        .c = c,
        .c_stride = n,
        .addend = call.accumulates(0) ? c : nullptr,
        .addend_stride = n},
       more);
  const float* bias = call.in(4);
  if (!bias) return;
  call.threads.for_blocks(m, row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for_vectors(n, [&](int64_t i, auto lanes) {
        lanes.store(c + r * n + i, lanes.load(c + r * n + i) + lanes.load(bias + i));
      });
  });
}

std::vector<Example> examples() {
  const auto example = [](Shape a, Shape b, DType a_type, bool bias, bool gradient) -> Example {
    const auto fixed = [](Shape shape, DType dtype, double low, double high) {
      return Example::Input{
          .shape = shape, .dtype = dtype, .low = low, .high = high, .differentiable = false, .keeps_fp32 = true};
    };
    Example e{{{"gradient", gradient}},
              {fixed(a, a_type, -4, 4), fixed({1}, DType::fp32, 0.1, 1), fixed(b, DType::e4m3, -4, 4),
               fixed({1}, DType::fp32, 0.1, 1)}};
    if (bias) e.inputs.push_back(fixed({b[0]}, DType::bf16, -1, 1));
    return e;
  };
  return {example({2, 3, 32}, {16, 32}, DType::e4m3, true, false),
          example({48, 16}, {32, 16}, DType::e5m2, false, true),
          example({1, 5, 64}, {80, 64}, DType::e5m2, false, false)};
}

}  // namespace

std::vector<Op> product_fp8_ops() {
  return {{.name = "product_fp8",
           .summary = "c = a b^T + bias of 8-bit matrices",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::product_fp8,
           .workspace = workspace,
           .examples = examples}};
}

}  // namespace llm
