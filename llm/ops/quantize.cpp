// quantize: an 8-bit copy of a matrix for a product on the tensor cores, with one scale, by which the matrix's largest
// absolute value becomes the largest 8-bit value (per-tensor current scaling; Micikevicius et al. 2022).
//   x (.., C), [largest (1)] -> [q (.., C)], [transposed (C, rows)], scale (1); x is about scale q
// `largest` is the largest absolute value of x, where the kernel that wrote x has found it (llm/graph/fuse_scales.cpp).
// Attributes, all flags: "e5m2" (otherwise e4m3); "rows" and "transposed", the layouts to write. Products read both of
// their matrices along k, so the backward products need transposed ones.
#include <cmath>

#include "llm/base/fp8.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/quantize_cuda.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

constexpr int64_t kBlock = 8192;  // elements

void infer(Graph& g, Node& node) {
  const Shape x = g.shape(node.inputs[0]);
  const DType dtype = node.attributes.flag("e5m2") ? DType::e5m2 : DType::e4m3;
  if (node.attributes.flag("rows"))
    g.add_output(node, "", dtype, x);
  else
    node.outputs.push_back(kNone);
  if (node.attributes.flag("transposed"))
    g.add_output(node, "transposed", dtype, {x.last(), x.rows()});
  else
    node.outputs.push_back(kNone);
  g.add_output(node, "scale", DType::fp32, {1});
}

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  if (node.input(1) != kNone) return 0;
  return target.cuda ? quantize_workspace_cuda()
                     : static_cast<size_t>((g.shape(node.inputs[0]).elements() + kBlock - 1) / kBlock) * 4;
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 2.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

template <class T>
void quantize(const KernelCall& call) {
  const float* x = call.in(0);
  T *q = call.out<T>(0), *transposed = call.out<T>(1);
  const int64_t rows = call.in_shape(0).rows(), C = call.in_shape(0).last(), count = rows * C;
  float* largest = call.workspace();
  const float* given = call.in(1);
  if (!given)
    call.threads.for_blocks(count, kBlock, [&](int64_t begin, int64_t end) {
      float most = 0;
      for (int64_t i = begin; i < end; ++i) most = std::max(most, std::abs(x[i]));
      largest[begin / kBlock] = most;
    });
  float most = given ? *given : 0;
  for (int64_t b = 0; !given && b < (count + kBlock - 1) / kBlock; ++b) most = std::max(most, largest[b]);
  const float inverse = inverse_scale<T>(most);
  *call.out(2) = scale_of<T>(most);
  call.threads.for_blocks(rows, row_grain(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < C; ++c) {
        const T value = nearest_fp8<T>(x[r * C + c] * inverse);
        if (q) q[r * C + c] = value;
        if (transposed) transposed[c * rows + r] = value;
      }
  });
}

void cpu(const KernelCall& call) {
  if (call.node.attributes.flag("e5m2"))
    quantize<e5m2>(call);
  else
    quantize<e4m3>(call);
}

Example with_largest(Example example) {
  example.inputs.push_back({.shape = {1}, .low = 3, .high = 4, .differentiable = false, .keeps_fp32 = true});
  return example;
}

std::vector<Example> examples() {
  const auto example = [](bool e5m2, bool rows, bool transposed, Shape shape, double size) -> Example {
    return {{{"e5m2", e5m2}, {"rows", rows}, {"transposed", transposed}},
            {{.shape = shape, .low = -size, .high = size, .differentiable = false}}};
  };
  return {example(false, true, true, {2, 3, 37}, 3), example(true, true, true, {5, 64}, 1e-4),
          example(false, true, false, {70, 80}, 1e3), example(true, false, true, {130, 67}, 1),
          with_largest(example(false, true, true, {66, 40}, 2))};
}

}  // namespace

std::vector<Op> quantize_ops() {
  return {{.name = "quantize",
           .summary = "8 bits and one scale: rows, transposed, or both",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::quantize,
           .workspace = workspace,
           .examples = examples}};
}

}  // namespace llm
