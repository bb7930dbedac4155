// embedding: x = token_table[token] (+ position_table[position]).
//   tokens (B, T) int32, token_table (V, C), [position_table (context, C)], [positions (B, T) int32] -> x (B, T, C)
// Without `positions` those of each sequence are 0, 1, ..., or of chunks (chunks.h); a negative position is taken for
// 0. The table may be packed panels (llm/base/packed_panels.h) or, on the CPU, rows of bf16; with the attribute "widen", a flag, x is fp32 whatever the table is. The backward
// pass on the CPU: a thread owns a block of channels and adds the gradients of all tokens in their order, so that the
// bits do not depend on the number of threads.
#include <algorithm>

#include "llm/base/packed_panels.h"
#include "llm/base/packed_rows.h"
#include "llm/graph/autodiff.h"
#include "llm/ops/chunks.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/cuda_workspaces.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape &tokens = g.shape(node.inputs[0]), &table = g.shape(node.inputs[1]);
  if (tokens.rank() != 2 || g.tensor(node.inputs[0]).dtype != DType::int32)
    fail("embedding: tokens must be (B, T) int32");
  if (node.input(3) != kNone && g.shape(node.inputs[3]) != tokens) fail("embedding: one position a token");
  const int64_t end = chunks_of(node.attributes, tokens[1]).end();
  if (node.input(2) != kNone && node.input(3) == kNone && g.shape(node.inputs[2])[0] < end)
    fail("embedding: ", end, " tokens but only ", g.shape(node.inputs[2])[0], " positions");
  const DType dtype = node.attributes.flag("widen") ? DType::fp32 : g.dtype(node.inputs[1]);
  if (is_quantized(dtype)) fail("embedding: of a quantized table comes fp32");
  g.add_output(node, "", dtype, {tokens[0], tokens[1], table[1]});
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  if (node.input(3) != kNone) fail("embedding: positions that are given have no gradient");
  const TensorId dx = gradients.of(node.outputs[0]);
  std::vector<TensorId> inputs = {node.inputs[0], dx, node.inputs[1]};
  if (node.input(2) != kNone) inputs.push_back(node.inputs[2]);
  Attributes chunks;
  if (node.attributes.has("firsts")) {
    const auto firsts = node.attributes.list("firsts");
    chunks.set("firsts", std::vector<int64_t>(firsts.begin(), firsts.end()));
  }
  const auto d = g.add("embedding_backward", chunks, inputs);
  gradients.contribute(node.inputs[1], d[0]);
  if (node.input(2) != kNone) gradients.contribute(node.inputs[2], d[1]);
}

// Of the token table the rows of the tokens are read: B T rows, but no more than the table has.
Cost cost(const Graph& g, const Node& node) {
  const Shape x = g.shape(node.outputs[0]);
  const auto bytes = [&](TensorId id) { return static_cast<double>(g.tensor(id).bytes()); };
  const double out = bytes(node.outputs[0]);
  Cost c{0, bytes(node.inputs[0]) + std::min(out, bytes(node.inputs[1])), out};
  if (node.input(2) != kNone) {
    c.flops = static_cast<double>(x.elements());
    c.bytes_read += static_cast<double>(size_of(g.dtype(node.inputs[2]))) * static_cast<double>(x[1] * x[2]);
  }
  return c;
}

void cpu(const KernelCall& call) {
  const int32_t *tokens = call.in_int(0), *positions = call.in_int(3);
  const auto* table = call.in<std::byte>(1);
  const float* position_table = call.in(2);
  float* x = call.out(0);
  const int64_t T = call.in_shape(0)[1], C = call.in_shape(1)[1];
  const DType dtype = call.in_dtype(1);
  const bool in_panels = call.in_panel_rows(1) > 0;
  const Chunks chunks = chunks_of(call.node.attributes, T);
  call.threads.for_blocks(call.out_shape(0).rows(), row_grain(C), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (in_panels)
        unpack_panel_row(dtype, table, tokens[row], C, x + row * C);
      else
        unpack_row(dtype, table + tokens[row] * packed_row_bytes(dtype, C), C, x + row * C);
      if (!position_table) continue;
      const int64_t at = positions ? std::max(0, positions[row]) : chunks.position(row % T);
      const float* position = position_table + at * C;
      for_vectors(C, [&](int64_t c, auto lanes) {
        lanes.store(x + row * C + c, lanes.load(x + row * C + c) + lanes.load(position + c));
      });
    }
  });
}

// (tokens, dx, token_table, [position_table]) -> d_token_table, [d_position_table]. Only the shapes of the tables are
// used.
void infer_backward(Graph& g, Node& node) {
  g.add_output(node, "token_table", DType::fp32, g.shape(node.inputs[2]));
  if (node.input(3) != kNone) g.add_output(node, "position_table", DType::fp32, g.shape(node.inputs[3]));
}

size_t backward_workspace(const Graph& g, const Node& node, const Target& target) {
  if (!target.cuda) return 0;
  const int64_t tokens = g.shape(node.inputs[0]).elements(), channels = g.shape(node.inputs[2])[1];
  return static_cast<size_t>(embedding_backward_workspace_cuda(tokens, channels));
}

// All rows of the tables are cleared, which counts as the writing; the additions to the rows that occur are not
// counted.
Cost backward_cost(const Graph& g, const Node& node) {
  Cost c = streaming_cost(
      g, node, (node.input(3) != kNone ? 2.0 : 1.0) * static_cast<double>(g.shape(node.inputs[1]).elements()));
  c.bytes_read = static_cast<double>(g.tensor(node.inputs[0]).bytes() + g.tensor(node.inputs[1]).bytes());
  return c;
}

void cpu_backward(const KernelCall& call) {
  const int32_t* tokens = call.in_int(0);
  const float* dx = call.in(1);
  float *d_table = call.out(0), *d_positions = call.out(1);
  const int64_t V = call.in_shape(2)[0], C = call.in_shape(2)[1];
  const int64_t B = call.in_shape(0)[0], T = call.in_shape(0)[1];
  const bool add_table = call.accumulates(0), add_positions = d_positions && call.accumulates(1);
  const int64_t rows_of_positions = d_positions ? call.in_shape(3)[0] : 0;
  const Chunks chunks = chunks_of(call.node.attributes, T);
  call.threads.for_blocks(C, 64, [&](int64_t begin, int64_t end) {
    const int64_t width = end - begin;
    if (!add_table)
      for (int64_t v = 0; v < V; ++v) std::fill_n(d_table + v * C + begin, width, 0.0f);
    if (d_positions && !add_positions)
      for (int64_t t = 0; t < rows_of_positions; ++t) std::fill_n(d_positions + t * C + begin, width, 0.0f);
    for (int64_t row = 0; row < B * T; ++row) {
      const float* d = dx + row * C + begin;
      float* table_row = d_table + tokens[row] * C + begin;
      float* position_row = d_positions ? d_positions + chunks.position(row % T) * C + begin : nullptr;
      for_vectors(width, [&](int64_t c, auto lanes) {
        const simd::Vec v = lanes.load(d + c);
        lanes.store(table_row + c, lanes.load(table_row + c) + v);
        if (position_row) lanes.store(position_row + c, lanes.load(position_row + c) + v);
      });
    }
  });
}

std::vector<Example> examples() {
  const Example::Input tokens{{2, 5}, DType::int32, 0, 7};
  const Example::Input table{{7, 6}, DType::fp32, -1, 1, Role::parameter};
  const Example::Input positions{{8, 6}, DType::fp32, -1, 1, Role::parameter};
  Example::Input given{{2, 5}, DType::int32, 0, 8};
  given.values = {3, 7, 0, 1, 6, 2, 2, 5, -1, 4};
  Example with_positions = {{}, {tokens, table, positions, given}};
  with_positions.inputs[1].differentiable = with_positions.inputs[2].differentiable = false;
  const Example chunks = {{{"firsts", std::vector<int64_t>{1, 5}}}, {{{2, 6}, DType::int32, 0, 7}, table, positions}};
  return {{{}, {tokens, table}}, {{}, {tokens, table, positions}}, with_positions, chunks};
}

}  // namespace

std::vector<Op> embedding_ops() {
  return {{.name = "embedding",
           .summary = "x = token_table[token] + position_table[position]",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::embedding,
           .examples = examples,
           .packed_input = 1},
          {.name = "embedding_backward",
           .summary = "d_token_table[token] += dx, d_position_table[position] += dx",
           .infer = infer_backward,
           .cost = backward_cost,
           .cpu = cpu_backward,
           .cuda = cuda::embedding_backward,
           .workspace = backward_workspace}};
}

}  // namespace llm
