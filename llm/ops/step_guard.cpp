// step_guard: leaves out steps that stick out, before the weights change.
//   norm (1), loss (1), statistics (5) -> guarded norm (1), statistics, in place
// The guarded norm is the norm, or infinity, at which adamw and muon leave everything as it was. It is infinity where norm or
// loss are not finite, and where, from step `after` on, the loss or the norm's logarithm lies above its running mean by more
// than `deviations` standard deviations and by more than 0.5 nats or log 4. (A z-score on running statistics of the norm is
// ZClip's rule, Kumar et al. 2025; there the step is scaled down.) Means and variances are of about the last 50 steps,
// or the last fifth of those so far; they are optimizer state, so that a resumed run leaves out the same steps.
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
    // All of the statistics lie in [0.1, 0.2), the number of steps as well.
    return {{{"deviations", 6}, {"after", after}},
            {input({1}, norm, norm + 0.1, Role::activation), input({1}, loss, loss + 0.1, Role::activation),
             input({kGuardStatistics}, 0.1, 0.2, Role::state)}};
  };
  // Ordinary; too early to tell; a loss and a norm that stick out.
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
