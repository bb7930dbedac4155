// merge_attention: what queries make of some keys, and of others, becomes what they make of both (Milakov and Gimelshein
// 2018; Liu et al. 2023):
//   out (B, T, H D), log_sum_exp (B, H, T), part (B, t, H D), its log_sum_exp (B, H, t) -> out (B, T, H D) and
//   log_sum_exp (B, H, T). `part` is of tokens [first, first + t); the others stay as they are.
// Attributes: "first"; "bf16", a flag: the type of the result, which is computed in fp32. out and part may have different
// types.
#include "llm/ops/merge_attention.h"

#include <algorithm>
#include <cmath>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape out = g.shape(node.inputs[0]), sums = g.shape(node.inputs[1]), part = g.shape(node.inputs[2]);
  const int64_t first = node.attributes.integer("first");
  if (out.rank() != 3 || part.rank() != 3 || sums.rank() != 3 || sums != Shape{out[0], sums[1], out[1]} ||
      out[2] % sums[1])
    fail("merge_attention: ", sums.text(), " is not the log_sum_exp of ", out.text());
  if (part != Shape{out[0], part[1], out[2]} || g.shape(node.inputs[3]) != Shape{out[0], sums[1], part[1]} ||
      first < 0 || first + part[1] > out[1])
    fail("merge_attention: ", part.text(), " from token ", first, " on is not a part of ", out.text());
  g.add_output(node, "", node.attributes.flag("bf16") ? DType::bf16 : DType::fp32, out);
  g.add_output(node, "log_sum_exp", DType::fp32, sums);
}

// Of each element two products, a sum and a product; weights and their sums count less.
Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 4 * static_cast<double>(g.shape(node.inputs[2]).elements()));
}

void cpu(const KernelCall& call) {
  const MergeShape s = merge_shape(call);
  const float *out = call.in(0), *sums = call.in(1), *part = call.in(2), *part_sums = call.in(3);
  float *const merged = call.out(0), *const merged_sums = call.out(1);
  call.threads.for_blocks(s.batch * s.tokens, row_grain(s.heads * s.head_size), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t head = 0; head < s.heads; ++head) {
        const int64_t at = (row * s.heads + head) * s.head_size, sum = s.sum_of(row, head, s.tokens);
        const int64_t other = s.part_row(row);
        if (other < 0) {
          merged_sums[sum] = sums[sum];
          if (merged != out) std::copy_n(out + at, s.head_size, merged + at);
          continue;
        }
        const MergeWeights w(sums[sum], part_sums[s.sum_of(other, head, s.part_tokens)]);
        const float* const from = part + (other * s.heads + head) * s.head_size;
        merged_sums[sum] = w.log_sum_exp;
        for_vectors(s.head_size, [&](int64_t i, auto lanes) {
          lanes.store(merged + at + i, lanes.load(out + at + i) * w.first + lanes.load(from + i) * w.second);
        });
      }
  });
}

std::vector<Example> examples() {
  constexpr double kNothing = -std::numeric_limits<double>::infinity();
  const auto example = [](int64_t B, int64_t H, int64_t T, int64_t t, int64_t D, int64_t first, bool keeps_fp32,
                          bool bf16, std::vector<double> part_sums = {}) -> Example {
    const auto fixed = [](Shape shape, bool is_fp32) {
      return Example::Input{.shape = shape, .low = -3, .high = 3, .differentiable = false, .keeps_fp32 = is_fp32};
    };
    Example e{{{"first", first}, {"bf16", bf16}},
              {fixed({B, T, H * D}, keeps_fp32), fixed({B, H, T}, true), fixed({B, t, H * D}, false),
               fixed({B, H, t}, true)}};
    e.inputs[3].values = std::move(part_sums);
    return e;
  };
  // In the last one the first part's queries saw no key of theirs, or very much larger ones.
  return {example(2, 2, 6, 3, 20, 3, false, false), example(1, 3, 5, 5, 8, 0, true, true),
          example(2, 1, 4, 2, 64, 0, true, false), example(1, 1, 3, 3, 7, 0, false, false, {kNothing, 90, -90})};
}

}  // namespace

MergeShape merge_shape(const KernelCall& call) {
  const Shape out = call.in_shape(0), part = call.in_shape(2);
  const int64_t heads = call.in_shape(1)[1];
  return {out[0], out[1], heads, out[2] / heads, call.node.attributes.integer("first"), part[1]};
}

std::vector<Op> merge_attention_ops() {
  return {{.name = "merge_attention",
           .summary = "attention to some keys and to others as that to both",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::merge_attention,
           .examples = examples,
           .in_place = {{0, 0}}}};
}

}  // namespace llm
