// expert_rows and expert_sum: from tokens to the rows of their experts, and back. `order` and `place` are
// expert_order's.
//   expert_rows: x (B, T, C), order (N) int32, place (B, T, K) int32 -> rows (1, N, C): row r is that of token order[r]
//     / K
//     backward: (d_rows, place) -> dx, the sum of a token's K rows
//   expert_sum: y (1, N, C), weights (B, T, K) fp32, order, place -> (B, T, C): the sum of a token's K rows, by weight
//     backward: (d, y, weights, order, place) -> dy, d_weights
// A token's rows are added in the order of its choices.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

// The first two axes of `of`, and rows of the length of those of `like`.
Shape tokens_of(const Graph& g, TensorId of, TensorId like) {
  return {g.shape(of)[0], g.shape(of)[1], g.shape(like).last()};
}

void check(const Graph& g, const Node& node, TensorId order, TensorId place) {
  if (g.shape(place).rank() != 3 || g.shape(order).elements() != g.shape(place).elements())
    fail(node.op->name, ": an order of ", g.shape(order).elements(), " rows for the places ", g.shape(place).text());
}

void infer_rows(Graph& g, Node& node) {
  check(g, node, node.inputs[1], node.inputs[2]);
  if (tokens_of(g, node.inputs[2], node.inputs[0]) != g.shape(node.inputs[0]))
    fail("expert_rows: places ", g.shape(node.inputs[2]).text(), " for x ", g.shape(node.inputs[0]).text());
  g.add_output(node, "", g.dtype(node.inputs[0]),
               {1, g.shape(node.inputs[1]).elements(), g.shape(node.inputs[0]).last()});
}

void backward_rows(Graph& g, const Node& node, Gradients& gradients) {
  gradients.contribute(node.inputs[0],
                       g.add("expert_rows_backward", {}, {gradients.of(node.outputs[0]), node.inputs[2]})[0]);
}

// The places are for the backward pass alone.
Cost cost_of_rows(const Graph& g, const Node& node) {
  Cost c = streaming_cost(g, node, 0);
  c.bytes_read -= static_cast<double>(g.tensor(node.inputs[2]).bytes());
  return c;
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 2.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

// Row r of `to` becomes row order[r] / K of `from`, times weights[order[r]].
void gather(const KernelCall& call, const float* from, const float* weights, const int32_t* order, int64_t K,
            int64_t rows, int64_t C, float* to) {
  call.threads.for_blocks(rows, row_grain(2 * C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = from + order[r] / K * C;
      const float weight = weights ? weights[order[r]] : 1.0f;
      for_vectors(C, [&](int64_t c, auto lanes) { lanes.store(to + r * C + c, lanes.load(row + c) * weight); });
    }
  });
}

// Row t of `to` becomes the sum of the rows place[t K + k] of `from`, times the weights [t K + k].
void add_up(const KernelCall& call, const float* from, const float* weights, const int32_t* place, int64_t K,
            int64_t tokens, int64_t C, float* to) {
  call.threads.for_blocks(tokens, row_grain((K + 1) * C), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for_vectors(C, [&](int64_t c, auto lanes) {
        simd::Vec sum{};
        for (int64_t i = t * K; i < (t + 1) * K; ++i) {
          const simd::Vec row = lanes.load(from + place[i] * C + c);
          sum += weights ? row * weights[i] : row;
        }
        lanes.store(to + t * C + c, sum);
      });
  });
}

void cpu_rows(const KernelCall& call) {
  const Shape& place = call.in_shape(2);
  gather(call, call.in(0), nullptr, call.in_int(1), place[2], place.elements(), call.in_shape(0).last(), call.out(0));
}

void infer_rows_backward(Graph& g, Node& node) {
  g.add_output(node, "", g.dtype(node.inputs[0]), tokens_of(g, node.inputs[1], node.inputs[0]));
}

void cpu_rows_backward(const KernelCall& call) {
  const Shape& place = call.in_shape(1);
  add_up(call, call.in(0), nullptr, call.in_int(1), place[2], place.rows(), call.in_shape(0).last(), call.out(0));
}

void infer_sum(Graph& g, Node& node) {
  check(g, node, node.inputs[2], node.inputs[3]);
  if (g.shape(node.inputs[0]).rows() != g.shape(node.inputs[2]).elements() ||
      g.shape(node.inputs[1]) != g.shape(node.inputs[3]))
    fail("expert_sum: y ", g.shape(node.inputs[0]).text(), " and weights ", g.shape(node.inputs[1]).text(),
         " for the places ", g.shape(node.inputs[3]).text());
  g.add_output(node, "", g.dtype(node.inputs[0]), tokens_of(g, node.inputs[3], node.inputs[0]));
}

void backward_sum(Graph& g, const Node& node, Gradients& gradients) {
  const auto d = g.add("expert_sum_backward", {},
                       {gradients.of(node.outputs[0]), node.inputs[0], node.inputs[1], node.inputs[2], node.inputs[3]});
  gradients.contribute(node.inputs[0], d[0]);
  gradients.contribute(node.inputs[1], d[1]);
}

// The order is for the backward pass alone.
Cost cost_of_sum(const Graph& g, const Node& node) {
  Cost c = cost(g, node);
  c.bytes_read -= static_cast<double>(g.tensor(node.inputs[2]).bytes());
  return c;
}

void cpu_sum(const KernelCall& call) {
  const Shape& place = call.in_shape(3);
  add_up(call, call.in(0), call.in(1), call.in_int(3), place[2], place.rows(), call.in_shape(0).last(), call.out(0));
}

void infer_sum_backward(Graph& g, Node& node) {
  g.add_output(node, "rows", g.dtype(node.inputs[1]), g.shape(node.inputs[1]));
  g.add_output(node, "weights", DType::fp32, g.shape(node.inputs[2]));
}

Cost cost_of_sum_backward(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 3.0 * static_cast<double>(g.shape(node.inputs[1]).elements()));
}

void cpu_sum_backward(const KernelCall& call) {
  const Shape& place = call.in_shape(4);
  const int64_t K = place[2], C = call.in_shape(0).last();
  const float *d = call.in(0), *y = call.in(1);
  const int32_t* places = call.in_int(4);
  float* d_weights = call.out(1);
  gather(call, d, call.in(2), call.in_int(3), K, place.elements(), C, call.out(0));
  call.threads.for_blocks(place.rows(), row_grain((K + 1) * C), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * K; i < end * K; ++i) {
      const float *of_token = d + i / K * C, *row = y + places[i] * C;
      simd::Vec sum{};
      for_vectors(C, [&](int64_t c, auto lanes) { sum += lanes.load(of_token + c) * lanes.load(row + c); });
      d_weights[i] = simd::reduce_add(sum);
    }
  });
}

// Of tokens that choose experts at random, sorted by these.
struct Sorted {
  std::vector<double> order, place;
};
Sorted sorted(int64_t choices, int64_t experts) {
  Sorted s;
  s.place.resize(static_cast<size_t>(choices));
  for (int64_t e = 0; e < experts; ++e)
    for (int64_t i = 0; i < choices; ++i)
      if (i * i % 101 % experts == e) {
        s.place[static_cast<size_t>(i)] = static_cast<double>(s.order.size());
        s.order.push_back(static_cast<double>(i));
      }
  return s;
}

std::vector<Example> examples(bool sums) {
  const auto example = [&](int64_t B, int64_t T, int64_t K, int64_t C) -> Example {
    const Sorted s = sorted(B * T * K, 5);
    const Example::Input order{.shape = {B * T * K}, .dtype = DType::int32, .values = s.order};
    const Example::Input place{.shape = {B, T, K}, .dtype = DType::int32, .values = s.place};
    if (!sums) return {{}, {{.shape = {B, T, C}}, order, place}};
    return {{}, {{.shape = {1, B * T * K, C}}, {.shape = {B, T, K}, .low = 0, .keeps_fp32 = true}, order, place}};
  };
  return {example(2, 3, 2, 9), example(1, 40, 3, 37), example(1, 5, 2, 64), example(1, 1, 4, 200)};
}

}  // namespace

std::vector<Op> expert_rows_ops() {
  return {{.name = "expert_rows",
           .summary = "each token's row once for each of its experts, by expert",
           .infer = infer_rows,
           .backward = backward_rows,
           .cost = cost_of_rows,
           .cpu = cpu_rows,
           .cuda = cuda::expert_rows,
           .examples = [] { return examples(false); },
           .recompute = Recompute::norms},
          {.name = "expert_rows_backward",
           .summary = "dx, the sum of a token's rows",
           .infer = infer_rows_backward,
           .cost = cost,
           .cpu = cpu_rows_backward,
           .cuda = cuda::expert_rows_backward},
          {.name = "expert_sum",
           .summary = "what a token's experts give, by weight",
           .infer = infer_sum,
           .backward = backward_sum,
           .cost = cost_of_sum,
           .cpu = cpu_sum,
           .cuda = cuda::expert_sum,
           .examples = [] { return examples(true); }},
          {.name = "expert_sum_backward",
           .summary = "dy, d_weights",
           .infer = infer_sum_backward,
           .cost = cost_of_sum_backward,
           .cpu = cpu_sum_backward,
           .cuda = cuda::expert_sum_backward}};
}

}  // namespace llm
