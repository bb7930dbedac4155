// adamw: one step of Adam with decoupled weight decay (Loshchilov and Hutter 2019), with gradients clipped by the
// global norm, in one pass over memory, for all parameters that share their settings. All outputs lie in place of their
// inputs.
//   norm (1), then for each parameter: parameter, gradient, first moment, second moment, [master], all of one shape
//   -> for each parameter: parameter, first moment, second moment, [master]
// Attributes: beta1, beta2, epsilon, weight_decay, grad_clip (0: none), learning_rate_scale.
// As PyTorch: g *= min(1, clip / (norm + 1e-6)); p *= 1 - lr decay; p -= lr m^ / (sqrt(v^) + epsilon).
// A bf16 parameter has an fp32 master, to which the step is applied. The parameter is the master rounded
// stochastically, so that steps smaller than the parameter's last bit are not lost on average.
// A parameter may be a piece of one, the part of it that a rank steps: "firsts" are the numbers of the pieces' first
// elements, multiples of 8, and a piece is rounded as that part of the whole is.
// If the norm is not finite, the op leaves everything as it was; the trainer reports the skipped step.
#include <cmath>

#include "llm/base/random.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

constexpr size_t kInputs = 5, kOutputs = 4;  // for each parameter

// Of a piece of a parameter, the number of its first element.
int64_t first_of(const Attributes& a, size_t p) { return a.has("firsts") ? a.list("firsts")[p] : 0; }

size_t parameters_of(const Node& node) { return (node.inputs.size() - 1) / kInputs; }

void infer(Graph& g, Node& node) {
  if (node.inputs.size() % kInputs != 1) fail("adamw: it takes the norm and five tensors of each parameter");
  for (size_t p = 0; p < parameters_of(node); ++p) {
    const TensorId* in = &node.inputs[1 + p * kInputs];
    const bool has_master = in[4] != kNone;
    if (has_master != (g.dtype(in[0]) == DType::bf16)) fail("adamw: a bf16 parameter has a master, another has none");
    for (const size_t i : {0u, 2u, 3u, 4u}) {
      if (in[i] == kNone) {
        node.outputs.push_back(kNone);
        continue;
      }
      if (g.shape(in[i]) != g.shape(in[1])) fail("adamw: the shapes of a parameter's tensors differ");
      const Tensor owner = g.tensor(in[i]);
      const TensorId updated = g.add_output(node, owner.name, owner.dtype, owner.shape);
      g.tensor(updated).alias = in[i];
      g.tensor(updated).role = owner.role;
    }
  }
}

Cost cost(const Graph& g, const Node& node) {
  double elements = 0;
  for (size_t p = 0; p < parameters_of(node); ++p)
    elements += static_cast<double>(g.shape(node.inputs[1 + p * kInputs]).elements());
  Cost c = streaming_cost(g, node, 14.0 * elements);
  // A parameter that has a master is written but not read.
  for (size_t p = 0; p < parameters_of(node); ++p)
    if (node.inputs[1 + p * kInputs + 4] != kNone)
      c.bytes_read -= static_cast<double>(g.tensor(node.inputs[1 + p * kInputs]).bytes());
  return c;
}

// The square root of each lane: vectors have no operator for it, and the compiler makes the loop one instruction.
simd::Vec square_root(simd::Vec v) {
  for (int i = 0; i < simd::kLanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
}

void cpu(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const float norm = *call.in(0);
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
  const auto size_of = [&](size_t p) { return call.in_shape(1 + p * kInputs).elements(); };
  const auto update = [&](size_t p, int64_t, int64_t begin, int64_t end) {
    const size_t in = 1 + p * kInputs, out = p * kOutputs;
    const float* gradient = call.in(in + 1);
    const bool has_master = call.has_input(in + 4);
    float *first = call.out(out + 1), *second = call.out(out + 2);
    float* parameter = has_master ? call.out(out + 3) : call.out(out);
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
    if (!has_master) return;
    const TensorId rounded = call.node.inputs[in];
    const uint64_t stream = stream_of(call.graph.tensor(call.graph.storage(rounded)).name);
    round_stochastically(parameter, call.out<bf16>(out), begin, end, call.step.seed, call.step.step, stream,
                         first_of(a, p));
  };
  call.threads.for_blocks_of(parameters_of(call.node), size_of, 16384, update);
}

std::vector<Example> examples() {
  const auto fixed = [](Shape shape, double low, double high, Role role) {
    return Example::Input{
        .shape = shape, .low = low, .high = high, .role = role, .differentiable = false, .keeps_fp32 = true};
  };
  const auto example = [&](std::initializer_list<Shape> shapes, double decay, double clip, bool master) {
    Example e{{{"beta1", 0.9},
               {"beta2", 0.95},
               {"epsilon", 1e-8},
               {"weight_decay", decay},
               {"grad_clip", clip},
               {"learning_rate_scale", 0.5}},
              {fixed({1}, 0.5, 3, Role::activation)}};
    for (const Shape& shape : shapes) {
      e.inputs.push_back(fixed(shape, -1, 1, Role::parameter));
      if (master) e.inputs.back().dtype = DType::bf16;
      e.inputs.push_back(fixed(shape, -1, 1, Role::activation));
      e.inputs.push_back(fixed(shape, -0.1, 0.1, Role::state));
      e.inputs.push_back(fixed(shape, 0.001, 0.1, Role::state));
      e.inputs.push_back(master ? fixed(shape, -1, 1, Role::state) : Example::Input{});
    }
    return e;
  };
  return {example({{5, 7}}, 0.1, 1.0, false), example({{40}, {3, 11}}, 0, 0, false),
          example({{64}, {5, 9}}, 0.1, 1.0, true)};
}

}  // namespace

std::vector<Op> adamw_ops() {
  return {{.name = "adamw",
           .summary = "AdamW in place, with clipping by the global norm",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::adamw,
           .examples = examples,
           .cpu_takes_bf16 = true}};
}

}  // namespace llm
