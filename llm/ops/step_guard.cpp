// step_guard: skips outlier steps, before the weights change.
//   norm (1), loss (1), statistics (5) -> guarded norm (1), statistics, in place
// The guarded norm is the norm, or infinity for a step to skip: then adamw and muon leave everything as it was. A step
// is skipped if its norm or loss is not finite, in which case the statistics stay as they were, too. From step `after`
// on it is also skipped if the loss or the logarithm of the norm is above its running mean by more than `deviations`
// standard deviations, and by more than 0.5 nats (loss) or log 4 (norm). (ZClip, Kumar et al. 2025, uses such a z-score
// of the norm, but scales the step down.) Means and variances are over about the last fifth of the steps so far, at
// most the last 50. They are optimizer state, so that a resumed run skips the same steps. Attributes: deviations,
// after.
#include "llm/ops/step_guard.h"

#include <limits>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape one = {1}, statistics = {kGuardStatistics};
  if (g.shape(node.inputs[0]) != one || g.shape(node.inputs[1]) != one || g.shape(node.inputs[2]) != statistics)
    fail("step_guard: it takes norm (1), loss (1) and statistics ", statistics.text());
  g.add_output(node, "", DType::fp32, one);
  const TensorId updated = g.add_output(node, "statistics", DType::fp32, statistics);
  g.tensor(updated).alias = node.inputs[2];
  g.tensor(updated).role = g.tensor(node.inputs[2]).role;
}

Cost cost(const Graph& g, const Node& node) { return streaming_cost(g, node, 30); }

void cpu(const KernelCall& call) {
  const float norm = *call.in(0), loss = *call.in(1);
  const Attributes& a = call.node.attributes;
  const GuardRule rule{a.number("deviations"), a.number("after")};
  const bool finite = std::isfinite(norm) && std::isfinite(loss);
  *call.out(0) = !finite || rule.look(norm, loss, call.out(1)) ? std::numeric_limits<float>::infinity() : norm;
}

std::vector<Example> examples() {
  const auto example = [](double after, double norm, double loss) -> Example {
    const auto input = [](Shape shape, double low, double high, Role role) {
      return Example::Input{
          .shape = shape, .low = low, .high = high, .role = role, .differentiable = false, .keeps_fp32 = true};
    };
    // All statistics, the number of steps included, lie in [0.1, 0.2).
    return {{{"deviations", 6}, {"after", after}},
            {input({1}, norm, norm + 0.1, Role::activation), input({1}, loss, loss + 0.1, Role::activation),
             input({kGuardStatistics}, 0.1, 0.2, Role::state)}};
  };
  // An ordinary step; an outlier before step `after`; an outlier by its loss; an outlier by its norm.
  return {example(0, 1, 0.5), example(1, 1e4, 9), example(0, 1, 9), example(0, 1e4, 0.5)};
}

}  // namespace

std::vector<Op> step_guard_ops() {
  return {{.name = "step_guard",
           .summary = "the norm, or infinity for a step that sticks out",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::step_guard,
           .examples = examples}};
}

}  // namespace llm
