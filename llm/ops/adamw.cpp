// adamw: one step of Adam with decoupled weight decay (Loshchilov and Hutter 2019), clipped by the global norm, in one
// pass over memory. All outputs lie in place of their inputs.
//   parameter, gradient, first moment, second moment (all of one shape), norm (1) -> parameter, first, second
// Attributes: beta1, beta2, epsilon, weight_decay, grad_clip (0: none), learning_rate_scale.
// As PyTorch: g *= min(1, clip / (norm + 1e-6)); p *= 1 - lr decay; p -= lr m^ / (sqrt(v^) + epsilon).
// A norm that is not finite leaves everything as it was; the trainer reports the step.
#include <cmath>

#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  for (size_t i : {0u, 2u, 3u}) {
    if (g.shape(node.inputs[i]) != g.shape(node.inputs[1])) fail("adamw: the shapes of its tensors differ");
    const Tensor owner = g.tensor(node.inputs[i]);
    const TensorId updated = g.add_output(node,
                                          i == 0   ? "parameter"
                                          : i == 2 ? "first"
                                                   : "second",
                                          owner.dtype, owner.shape);
    g.tensor(updated).alias = node.inputs[i];
    g.tensor(updated).role = owner.role;
  }
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 14.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

// Vectors of square roots: there is no operator for it, and the loop becomes one instruction.
simd::Vec square_root(simd::Vec v) {
  for (int i = 0; i < simd::kLanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
}

void cpu(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const float* gradient = call.in(1);
  float *parameter = call.out(0), *first = call.out(1), *second = call.out(2);
  const float norm = *call.in(4);
  if (!std::isfinite(norm)) return;
  const auto clip = static_cast<float>(a.number("grad_clip"));
  const float scale = clip > 0 && norm + 1e-6f > clip ? clip / (norm + 1e-6f) : 1.0f;
  const double beta1 = a.number("beta1"), beta2 = a.number("beta2"), t = static_cast<double>(call.step.step + 1);
  const double learning_rate = call.step.learning_rate * a.number("learning_rate_scale");
  const auto step_size = static_cast<float>(learning_rate / (1 - std::pow(beta1, t)));
  const auto second_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t)));
  const auto keep = static_cast<float>(1 - learning_rate * a.number("weight_decay"));
  const auto b1 = static_cast<float>(beta1), b2 = static_cast<float>(beta2);
  const auto c1 = static_cast<float>(1 - beta1), c2 = static_cast<float>(1 - beta2);
  const auto epsilon = static_cast<float>(a.number("epsilon"));
  call.threads.for_blocks(call.out_shape(0).elements(), 16384, [&](int64_t begin, int64_t end) {
    for_vectors(end - begin, [&](int64_t c, auto lanes) {
      const int64_t i = begin + c;
      const simd::Vec g = lanes.load(gradient + i) * scale;
      const simd::Vec m = lanes.load(first + i) * b1 + g * c1;
      const simd::Vec v = lanes.load(second + i) * b2 + g * g * c2;
      lanes.store(first + i, m);
      lanes.store(second + i, v);
      lanes.store(parameter + i,
                  lanes.load(parameter + i) * keep - step_size * m / (square_root(v) * second_scale + epsilon));
    });
  });
}

std::vector<Example> examples() {
  const auto example = [](Shape shape, double decay, double clip) -> Example {
    const auto fixed = [&](double low, double high, Role role) {
      return Example::Input{.shape = shape, .low = low, .high = high, .role = role, .differentiable = false};
    };
    return {{{"beta1", 0.9},
             {"beta2", 0.95},
             {"epsilon", 1e-8},
             {"weight_decay", decay},
             {"grad_clip", clip},
             {"learning_rate_scale", 0.5}},
            {fixed(-1, 1, Role::parameter),
             fixed(-1, 1, Role::activation),
             fixed(-0.1, 0.1, Role::state),
             fixed(0.001, 0.1, Role::state),
             {.shape = {1}, .low = 0.5, .high = 3, .differentiable = false}}};
  };
  return {example({5, 7}, 0.1, 1.0), example({40}, 0, 0)};
}

}  // namespace

std::vector<Op> adamw_ops() {
  return {{.name = "adamw",
           .summary = "AdamW in place, with clipping by the global norm",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .examples = examples}};
}

}  // namespace llm
