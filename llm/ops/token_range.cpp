// A range of the tokens of each sequence:
//   take_tokens: x (B, T, ...) -> y (B, t, ...), tokens [first, first + t). With the attribute "axis" 2 tokens are the
//                last axis: (B, H, T) -> (B, H, t). Attributes: "first", "tokens" t.
//   add_tokens:  a (B, T, C), b (B, t, C) -> c (B, T, C): the sum, in fp32, where b has tokens [first, first + t), and a
//                elsewhere. Attributes: "first"; "bf16", a flag: the type of c. a and b may have different types.
#include <algorithm>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"
#include "llm/ops/token_range.h"

namespace llm {
namespace {

void check_range(const Node& node, int64_t first, int64_t tokens, int64_t all) {
  if (first < 0 || tokens < 1 || first + tokens > all)
    fail(node.op->name, ": tokens ", first, " to ", first + tokens, " are not among ", all);
}

void infer_take(Graph& g, Node& node) {
  const Attributes& a = node.attributes;
  const bool is_last = a.integer("axis", 1) == 2;
  const Shape x = g.shape(node.inputs[0]);
  if (x.rank() != 3) fail("take_tokens: x must have three axes, not ", x.text());
  const int64_t tokens = a.integer("tokens");
  check_range(node, a.integer("first"), tokens, is_last ? x[2] : x[1]);
  g.add_output(node, "", g.dtype(node.inputs[0]), is_last ? Shape{x[0], x[1], tokens} : Shape{x[0], tokens, x[2]});
}

Cost cost_of_take(const Graph& g, const Node& node) {
  const auto bytes = static_cast<double>(g.tensor(node.outputs[0]).bytes());
  return {0, bytes, bytes};
}

void cpu_take(const KernelCall& call) {
  const TokenRange r = taken_range(call.node, call.in_shape(0));
  const auto size = static_cast<int64_t>(size_of(call.in_dtype(0)));
  const int64_t bytes = r.tokens * r.width * size;
  call.threads.for_blocks(r.sequences, row_grain(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::copy_n(call.in<std::byte>(0) + (i * r.all + r.first) * r.width * size, bytes,
                  call.out<std::byte>(0) + i * bytes);
  });
}

void infer_add(Graph& g, Node& node) {
  const Shape a = g.shape(node.inputs[0]), b = g.shape(node.inputs[1]);
  if (a.rank() != 3 || b.rank() != 3 || a[0] != b[0] || a[2] != b[2])
    fail("add_tokens: ", b.text(), " are not tokens of ", a.text());
  check_range(node, node.attributes.integer("first"), b[1], a[1]);
  g.add_output(node, "", node.attributes.flag("bf16") ? DType::bf16 : DType::fp32, a);
}

Cost cost_of_add(const Graph& g, const Node& node) {
  return streaming_cost(g, node, static_cast<double>(g.shape(node.inputs[1]).elements()));
}

void cpu_add(const KernelCall& call) {
  const TokenRange r = added_range(call.node, call.in_shape(0), call.in_shape(1));
  const float *a = call.in(0), *b = call.in(1);
  float* const c = call.out(0);
  call.threads.for_blocks(r.sequences * r.all, row_grain(r.width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * r.width, number = r.number(row);
      const float* const other = number < 0 ? nullptr : b + number * r.width;
      for_vectors(r.width, [&](int64_t i, auto lanes) {
        lanes.store(c + at + i, other ? lanes.load(a + at + i) + lanes.load(other + i) : lanes.load(a + at + i));
      });
    }
  });
}

std::vector<Example> take_examples() {
  const auto example = [](Shape x, int64_t first, int64_t tokens, int64_t axis) -> Example {
    return {{{"first", first}, {"tokens", tokens}, {"axis", axis}}, {{.shape = x, .differentiable = false}}};
  };
  return {example({2, 6, 37}, 3, 3, 1), example({1, 5, 64}, 1, 2, 1), example({2, 3, 10}, 5, 5, 2)};
}

std::vector<Example> add_examples() {
  const auto example = [](Shape a, Shape b, int64_t first, bool keeps_fp32, bool bf16) -> Example {
    return {{{"first", first}, {"bf16", bf16}},
            {{.shape = a, .differentiable = false, .keeps_fp32 = keeps_fp32}, {.shape = b, .differentiable = false}}};
  };
  return {example({2, 6, 37}, {2, 3, 37}, 3, false, false), example({1, 5, 64}, {1, 5, 64}, 0, true, true),
          example({3, 4, 40}, {3, 2, 40}, 0, true, false)};
}

}  // namespace

TokenRange taken_range(const Node& node, const Shape& x) {
  const Attributes& a = node.attributes;
  if (a.integer("axis", 1) == 2) return {x[0] * x[1], x[2], 1, a.integer("first"), a.integer("tokens")};
  return {x[0], x[1], x[2], a.integer("first"), a.integer("tokens")};
}

TokenRange added_range(const Node& node, const Shape& a, const Shape& b) {
  return {a[0], a[1], a[2], node.attributes.integer("first"), b[1]};
}

std::vector<Op> token_range_ops() {
  return {{.name = "take_tokens",
           .summary = "some tokens of each sequence",
           .infer = infer_take,
           .cost = cost_of_take,
           .cpu = cpu_take,
           .cuda = cuda::take_tokens,
           .examples = take_examples,
           .cpu_takes_bf16 = true},
          {.name = "add_tokens",
           .summary = "c = a + b, where b has some tokens of each sequence",
           .infer = infer_add,
           .cost = cost_of_add,
           .cpu = cpu_add,
           .cuda = cuda::add_tokens,
           .examples = add_examples,
           .in_place = {{0, 0}}}};
}

}  // namespace llm
