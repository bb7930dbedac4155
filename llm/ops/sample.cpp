// sample: logits (1, R, V), options (R, 12) int32 -> draws (R, 4) int32. A row of the options is a SampleRow, a row of
// the draws a Draw (sampling.h), which is a pure function of the two others. A row that draws nothing gets zeros.
// Attribute limit: only the tokens below it are drawn (absent or 0: all V).
#include <cstring>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/sample_cuda.h"
#include "llm/ops/sampling.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape logits = g.shape(node.inputs[0]), options = g.shape(node.inputs[1]);
  if (options != Shape{logits.rows(), 12})
    fail("sample: logits (1, R, V) and options (R, 12) do not fit ", logits.text(), " and ", options.text());
  g.add_output(node, "", DType::int32, {logits.rows(), 4});
}

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  const Shape logits = g.shape(node.inputs[0]);
  return target.cuda ? sample_workspace_cuda(logits.rows(), logits.last())
                     : static_cast<size_t>(target.threads * logits.last()) * sizeof(SamplingCandidate);
}

Cost cost(const Graph& g, const Node& node) {
  const Tensor& logits = g.tensor(node.inputs[0]);
  const auto rows = static_cast<double>(logits.shape.rows());
  return {static_cast<double>(logits.shape.elements()), static_cast<double>(logits.bytes()) + rows * sizeof(SampleRow),
          rows * sizeof(Draw)};
}

void cpu(const KernelCall& call) {
  const int64_t rows = call.in_shape(0).rows(), V = call.in_shape(0).last(), drawable = drawable_tokens(call);
  call.threads.for_items(rows, [&](int64_t row, int rank) {
    SampleRow o;
    std::memcpy(static_cast<void*>(&o), call.in_int(1) + row * 12, sizeof o);
    Draw draw;
    if (o.temperature >= 0)
      draw = draw_token(
          {.temperature = o.temperature, .top_k = o.top_k, .top_p = o.top_p, .seed = o.seed, .min_p = o.min_p},
          call.in(0) + row * V, drawable, o.index, call.workspace<SamplingCandidate>() + rank * V);
    std::memcpy(call.out<int32_t>(0) + row * 4, &draw, sizeof draw);
  });
}

std::vector<Example> examples() {
  const auto example = [](int64_t V, double range, const std::vector<SampleRow>& rows, int64_t limit = 0) -> Example {
    const auto R = static_cast<int64_t>(rows.size());
    std::vector<int32_t> words(static_cast<size_t>(12 * R));
    std::memcpy(words.data(), rows.data(), words.size() * sizeof(int32_t));
    return {
        {{"limit", limit}},
        {{.shape = {1, R, V}, .low = -range, .high = range, .differentiable = false},
         {.shape = {R, 12}, .dtype = DType::int32, .differentiable = false, .values = {words.begin(), words.end()}}}};
  };
  const SampleRow plain{.temperature = 1, .index = 6};
  return {example(7, 2, {plain}), example(1030, 3, {plain, {.temperature = 0}}, 5),
          example(2060, 3, {plain, {.temperature = 1, .top_p = 0.8}}, 1026),
          example(37, 5, {{.temperature = 0}, plain, {.temperature = 1, .top_k = 3}, {.temperature = 1, .top_p = 0.7}}),
          example(1030, 3,
                  {{.temperature = 1, .seed = 5, .index = 3},
                   {},
                   {.temperature = 2, .top_p = 0.9, .top_k = 6, .seed = 8, .index = 1},
                   {.temperature = 1, .min_p = 0.2, .seed = 3},
                   {.temperature = 0.7, .top_p = 0.95, .min_p = 0.05, .seed = 4, .index = 9}})};
}

}  // namespace

std::vector<Op> sample_ops() {
  return {{.name = "sample",
           .summary = "a token for each row of logits, drawn by options of its own",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::sample,
           .workspace = workspace,
           .examples = examples}};
}

}  // namespace llm
