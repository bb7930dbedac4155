// grouped_linear: the matrix product of a layer of experts. The rows of x are sorted by expert; those of each expert
// are multiplied by its own matrix, and no row is multiplied in vain.
//   grouped_linear:                 x (1, N, I), W (E O, I), counts (E) int32 -> y (1, N, O)
//   grouped_linear_backward_input:  dy (1, N, O), W (E O, I), counts -> dx (1, N, I)
//   grouped_linear_backward_weight: dy (1, N, O), x (1, N, I), counts -> dW (E O, I)
// Expert e's rows of W are [e O, (e + 1) O), its rows of x the counts[e] behind those of the experts before it. Where
// all counts together are less than N, the rows behind them become zeros.
// The attribute "row_invariant", a flag, of `grouped_linear`: the sums have one order for any number of rows, as they
// always have on the CPU. There W may then be packed panels (llm/base/packed_panels.h), or rows of bf16.
#include <algorithm>

#include "llm/base/packed_panels.h"
#include "llm/device/gemm_cpu.h"
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

// E O rows of W: O of each of E experts.
int64_t rows_of_expert(const Graph& g, const Node& node) {
  return g.shape(node.inputs[1])[0] / g.shape(node.inputs[2]).elements();
}

void check(const Graph& g, const Node& node, int64_t width, const char* of) {
  const Shape w = g.shape(node.inputs[1]), counts = g.shape(node.inputs[2]);
  if (g.shape(node.inputs[0]).rank() != 3 || w.rank() != 2 || counts.rank() != 1 || w[0] % counts[0] ||
      g.shape(node.inputs[0]).last() != width)
    fail(node.op->name, ": ", of, " ", g.shape(node.inputs[0]).text(), " does not fit the weight ", w.text(), " of ",
         counts.elements(), " experts");
}

void infer(Graph& g, Node& node) {
  check(g, node, g.shape(node.inputs[1]).last(), "x");
  g.add_output(node, "", g.dtype(node.inputs[0]), {1, g.shape(node.inputs[0]).rows(), rows_of_expert(g, node)});
}

void infer_backward_input(Graph& g, Node& node) {
  check(g, node, rows_of_expert(g, node), "dy");
  g.add_output(node, "", g.dtype(node.inputs[0]), {1, g.shape(node.inputs[0]).rows(), g.shape(node.inputs[1]).last()});
}

void infer_backward_weight(Graph& g, Node& node) {
  const Shape dy = g.shape(node.inputs[0]), x = g.shape(node.inputs[1]);
  if (dy.rows() != x.rows()) fail("grouped_linear_backward_weight: dy ", dy.text(), " and x ", x.text());
  g.add_output(node, "", DType::fp32, {g.shape(node.inputs[2]).elements() * dy.last(), x.last()});
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const TensorId dy = gradients.of(node.outputs[0]), x = node.inputs[0], w = node.inputs[1], counts = node.inputs[2];
  if (gradients.wanted(x)) gradients.contribute(x, g.add("grouped_linear_backward_input", {}, {dy, w, counts})[0]);
  gradients.contribute(w, g.add("grouped_linear_backward_weight", {}, {dy, x, counts})[0]);
}

// Of all three: two for each row, input and output.
Cost cost(const Graph& g, const Node& node) {
  const Shape a = g.shape(node.inputs[0]);
  const bool of_weight = node.op == op_named("grouped_linear_backward_weight");
  const int64_t other = of_weight ? g.shape(node.inputs[1]).last() : g.shape(node.outputs[0]).last();
  return streaming_cost(g, node, 2.0 * static_cast<double>(a.elements()) * static_cast<double>(other));
}

// Any number of the rows may be one expert's.
size_t workspace(const Graph& g, const Node& node, const Target& target) {
  if (target.cuda) return 0;
  const int64_t rows = g.shape(node.inputs[0]).rows(), in = g.shape(node.inputs[0]).last();
  const bool of_weight = node.op == op_named("grouped_linear_backward_weight");
  const int64_t m = of_weight ? in : rows, k = of_weight ? rows : in;
  const int64_t n = of_weight ? g.shape(node.inputs[1]).last() : g.shape(node.outputs[0]).last();
  const Tensor& w = g.tensor(node.inputs[1]);
  const bool is_packed = !of_weight && (w.panel_rows > 0 || w.dtype != DType::fp32);
  return static_cast<size_t>(is_packed ? gemm_packed_workspace(w.dtype, m, k, target.threads)
                                       : gemm_workspace_up_to(m, n, k, target.threads)) *
         4;
}

// Calls work(e, first row, number of rows) for each expert; returns the number of all experts' rows.
template <class Work>
int64_t for_experts(const KernelCall& call, Work&& work) {
  const int32_t* counts = call.in_int(2);
  int64_t first = 0;
  for (int64_t e = 0; e < call.in_shape(2).elements(); first += counts[e++]) work(e, first, int64_t{counts[e]});
  return first;
}

// x W^T or, `backwards`, dy W: rows of `in` elements to rows of `out` elements.
void multiply(const KernelCall& call, bool backwards) {
  const int64_t in = call.in_shape(0).last(), out = call.out_shape(0).last();
  const DType dtype = call.in_dtype(1);
  const bool in_panels = call.in_panel_rows(1) > 0;
  const std::byte* const packed = in_panels || dtype != DType::fp32 ? call.in<std::byte>(1) : nullptr;
  const int64_t packed_bytes = in_panels ? packed_panels_bytes(dtype, out, in) : out * in * 2;  // of an expert
  const int64_t rows = for_experts(call, [&](int64_t e, int64_t first, int64_t count) {
    const float* w = packed ? nullptr : call.in(1) + e * in * out;
    gemm(call.threads,
         {.m = count,
          .n = out,
          .k = in,
          .a = row_major(call.in(0) + first * in, in),
          .b = packed      ? MatrixView{}
               : backwards ? row_major(w, out)
                           : transposed(w, in),
          .c = call.out(0) + first * out,
          .c_stride = out,
          .packed_b = {packed ? packed + e * packed_bytes : nullptr, dtype, !in_panels}},
         call.workspace());
  });
  std::fill(call.out(0) + rows * out, call.out(0) + call.out_shape(0).elements(), 0.0f);
}

void cpu(const KernelCall& call) { multiply(call, false); }
void cpu_backward_input(const KernelCall& call) { multiply(call, true); }

void cpu_backward_weight(const KernelCall& call) {
  const int64_t O = call.in_shape(0).last(), I = call.in_shape(1).last();
  const bool adds = call.accumulates(0);
  for_experts(call, [&](int64_t e, int64_t first, int64_t count) {
    float* dw = call.out(0) + e * O * I;
    if (count == 0 && !adds) std::fill_n(dw, O * I, 0.0f);
    if (count == 0) return;
    gemm(call.threads,
         {.m = O,
          .n = I,
          .k = count,
          .a = transposed(call.in(0) + first * O, O),
          .b = row_major(call.in(1) + first * I, I),
          .c = dw,
          .c_stride = I,
          .addend = adds ? dw : nullptr,
          .addend_stride = I},
         call.workspace());
  });
}

std::vector<Example> examples() {
  const auto example = [](std::vector<double> counts, int64_t rows, int64_t in, int64_t out) -> Example {
    const auto E = static_cast<int64_t>(counts.size());
    return {{},
            {{.shape = {1, rows, in}},
             {.shape = {E * out, in}, .role = Role::parameter},
             {.shape = {E}, .dtype = DType::int32, .values = std::move(counts)}}};
  };
  Example alike = example({1, 9, 0, 30}, 40, 33, 17);
  alike.attributes.set("row_invariant", true);
  // Experts without rows, and with more than a tile of them; rows of no expert; widths with packs of 16 bytes and
  // without.
  return {example({3, 0, 5}, 8, 5, 7), alike, example({0, 70, 1, 20}, 100, 16, 24), example({130}, 130, 72, 8)};
}

}  // namespace

std::vector<Op> grouped_linear_ops() {
  return {{.name = "grouped_linear",
           .summary = "y = x W^T with a W of its own for each expert's rows",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::grouped_linear,
           .workspace = workspace,
           .examples = examples,
           .recompute = Recompute::block,
           .packed_input = 1,
           .packed_where_row_invariant = true},
          {.name = "grouped_linear_backward_input",
           .summary = "dx = dy W of each expert's rows",
           .infer = infer_backward_input,
           .cost = cost,
           .cpu = cpu_backward_input,
           .cuda = cuda::grouped_linear_backward_input,
           .workspace = workspace},
          {.name = "grouped_linear_backward_weight",
           .summary = "dW = dy^T x of each expert's rows",
           .infer = infer_backward_weight,
           .cost = cost,
           .cpu = cpu_backward_weight,
           .cuda = cuda::grouped_linear_backward_weight,
           .workspace = workspace}};
}

}  // namespace llm
