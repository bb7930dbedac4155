// rope: rotary positions (Su et al. 2021) on the query and key heads, in the half-split layout of Hugging Face:
// channels i and i + D/2 of a head are rotated by the angle position * theta^(-2 i / D). The values pass unchanged.
//   rope_angles: [positions (.., T) int32], [are far (.., T) int32] -> (T, D): for each position D/2 cosines, then D/2
//     sines; without `positions` those are 0, 1, ..., or of chunks (chunks.h). Attributes: tokens T, head_size D, theta;
//     and factor (absent: 1, no stretching), stretch, low, high, original, magnitude, and the lists of D/2 numbers divisors
//     and long_divisors, as in rope_frequency.h. The latter are for the tokens whose number in `are far` is not 0.
//   rope: qkv (B, T, (H + 2 K) D), angles (T, R) -> the shape of qkv. Attributes: heads H, kv_heads K, head_size D,
//     rotary_size R (absent: D), of which i and i + R/2 are turned and the other channels of a head are not.
// The backward pass rotates back by the same angles. All layers share the angles of one node.
#include <algorithm>
#include <cmath>

#include "llm/graph/autodiff.h"
#include "llm/ops/chunks.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rope_frequency.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer_angles(Graph& g, Node& node) {
  const int64_t D = node.attributes.integer("head_size");
  if (D % 2) fail("rope: the head size must be even, not ", D);
  if (node.input(0) != kNone && g.shape(node.inputs[0]).elements() != node.attributes.integer("tokens"))
    fail("rope_angles: one position a token");
  for (const char* list : {"divisors", "long_divisors"})
    if (node.attributes.has(list) && std::ssize(node.attributes.numbers(list)) != D / 2)
      fail("rope_angles: ", list, " must be ", D / 2, " numbers");
  if (D / 2 > RopeDivisors::kMost && node.attributes.has("divisors"))
    fail("rope_angles: a head of ", D, " channels has more pairs than the ", RopeDivisors::kMost,
         " that divisors have");
  if (node.input(1) != kNone && g.shape(node.inputs[1]).elements() != node.attributes.integer("tokens"))
    fail("rope_angles: whether a token is far is one number");
  chunks_of(node.attributes, node.attributes.integer("tokens"));
  g.add_output(node, "", DType::fp32, {node.attributes.integer("tokens"), D});
}

Cost angles_cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 2.0 * static_cast<double>(g.shape(node.outputs[0]).elements()));
}

void cpu_angles(const KernelCall& call) {
  const int64_t T = call.out_shape(0)[0], D = call.out_shape(0)[1], half = D / 2;
  const Attributes& a = call.node.attributes;
  const double theta = a.number("theta");
  const RopeScaling scaling = rope_scaling(a);
  const int32_t *positions = call.in_int(0), *are_far = call.in_int(1);
  const std::span<const double> near = a.has("divisors") ? a.numbers("divisors") : std::span<const double>(),
                                far = are_far ? a.numbers("long_divisors") : near;
  const Chunks chunks = chunks_of(a, T);
  float* angles = call.out(0);
  // The angles are computed in double: at position 8192 a float is wrong by up to 5e-4.
  call.threads.for_blocks(T, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < half; ++i) {
      const double frequency = rope_frequency(theta, static_cast<double>(i), static_cast<double>(half), scaling);
      for (int64_t t = begin; t < end; ++t) {
        double angle = static_cast<double>(positions ? positions[t] : chunks.position(t)) * frequency;
        if (!near.empty()) angle /= (are_far && are_far[t] ? far : near)[static_cast<size_t>(i)];
        angles[t * D + i] = static_cast<float>(scaling.magnitude * std::cos(angle));
        angles[t * D + half + i] = static_cast<float>(scaling.magnitude * std::sin(angle));
      }
    }
  });
}

int64_t rotary_size(const Attributes& a) { return a.integer("rotary_size", a.integer("head_size")); }

void infer(Graph& g, Node& node) {
  const Attributes& a = node.attributes;
  const int64_t D = a.integer("head_size"), width = (a.integer("heads") + 2 * a.integer("kv_heads")) * D;
  const Shape qkv = g.shape(node.inputs[0]);
  if (qkv.rank() != 3 || qkv.last() != width) fail("rope: qkv must be (B, T, ", width, "), not ", qkv.text());
  const int64_t R = rotary_size(a);
  if (R < 2 || R % 2 || R > D) fail("rope: ", R, " of ", D, " channels cannot be turned");
  if (g.shape(node.inputs[1]) != Shape{qkv[1], R}) fail("rope: angles must be (", qkv[1], ", ", R, ")");
  g.add_output(node, "", g.dtype(node.inputs[0]), qkv);
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  gradients.contribute(node.inputs[0],
                       g.add("rope_backward", node.attributes, {gradients.of(node.outputs[0]), node.inputs[1]})[0]);
}

Cost cost(const Graph& g, const Node& node) {
  const Attributes& a = node.attributes;
  const int64_t turned = (a.integer("heads") + a.integer("kv_heads")) * rotary_size(a);
  return streaming_cost(g, node, 3.0 * static_cast<double>(g.shape(node.inputs[0]).rows() * turned));
}

void turn(const KernelCall& call, float direction) {
  const Attributes& a = call.node.attributes;
  const int64_t D = a.integer("head_size"), R = rotary_size(a), half = R / 2, kv = a.integer("kv_heads");
  const int64_t turned = a.integer("heads") + kv, width = (turned + kv) * D;
  const int64_t rows = call.in_shape(0).rows(), T = call.in_shape(0)[1];
  const float *in = call.in(0), *angles = call.in(1);
  float* out = call.out(0);
  call.threads.for_blocks(rows, row_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float *cosine = angles + r % T * R, *sine = cosine + half;
      for (int64_t head = 0; head < turned; ++head) {
        const float* x = in + r * width + head * D;
        float* y = out + r * width + head * D;
        for_vectors(half, [&](int64_t i, auto lanes) {
          const simd::Vec x1 = lanes.load(x + i), x2 = lanes.load(x + half + i);
          const simd::Vec c = lanes.load(cosine + i), s = lanes.load(sine + i) * direction;
          lanes.store(y + i, x1 * c - x2 * s);
          lanes.store(y + half + i, x2 * c + x1 * s);
        });
        if (in != out) std::copy_n(x + R, D - R, y + R);
      }
      const int64_t values = r * width + turned * D;
      if (in != out) std::copy_n(in + values, kv * D, out + values);
    }
  });
}

void cpu(const KernelCall& call) { turn(call, 1.0f); }
void cpu_backward(const KernelCall& call) { turn(call, -1.0f); }

std::vector<Example> angles_examples() {
  const std::vector<double> near = {1, 1.5, 2.25}, far = {1.25, 4, 31.5};
  const Example::Input given{.shape = {1, 4}, .dtype = DType::int32, .values = {3, 900, 0, 7}};
  return {{{{"tokens", 9}, {"head_size", 8}, {"theta", 10000}}, {}},
          {{{"tokens", 40}, {"head_size", 6}, {"theta", 500}}, {}},
          {{{"tokens", 40}, {"head_size", 32}, {"theta", 500}, {"factor", 3}, {"original", 20}}, {}},
          {{{"tokens", 40}, {"head_size", 32}, {"theta", 500}, {"factor", 2.5}, {"stretch", 1}}, {}},
          {{{"tokens", 40},
            {"head_size", 32},
            {"theta", 500},
            {"factor", 4},
            {"stretch", 2},
            {"low", 0.5},
            {"high", 2},
            {"original", 20},
            {"magnitude", 1.14}},
           {}},
          {{{"tokens", 6}, {"head_size", 6}, {"theta", 500}, {"firsts", std::vector<int64_t>{3, 20}}}, {}},
          {{{"tokens", 4}, {"head_size", 6}, {"theta", 500}}, {given}},
          {{{"tokens", 9}, {"head_size", 6}, {"theta", 500}, {"divisors", near}, {"magnitude", 1.2}}, {}},
          {{{"tokens", 4}, {"head_size", 6}, {"theta", 500}, {"divisors", near}, {"long_divisors", far}},
           {given, {.shape = {1, 4}, .dtype = DType::int32, .values = {0, 1, 0, 1}}}}};
}

std::vector<Example> examples() {
  const auto example = [](int64_t heads, int64_t kv_heads, int64_t size, int64_t tokens) -> Example {
    const int64_t width = (heads + 2 * kv_heads) * size;
    return {{{"heads", heads}, {"kv_heads", kv_heads}, {"head_size", size}},
            {{{2, tokens, width}}, {.shape = {tokens, size}, .differentiable = false, .keeps_fp32 = true}}};
  };
  Example part = example(2, 1, 20, 7), aligned = example(2, 1, 48, 5);  // of which some channels are turned
  part.attributes.set("rotary_size", 6), part.inputs[1].shape = {7, 6};
  aligned.attributes.set("rotary_size", 32), aligned.inputs[1].shape = {5, 32};
  return {example(2, 2, 8, 5), example(4, 2, 6, 3), example(1, 1, 40, 9), part, aligned};
}

}  // namespace

std::vector<Op> rope_ops() {
  return {{.name = "rope_angles",
           .summary = "cosines and sines of all positions",
           .infer = infer_angles,
           .cost = angles_cost,
           .cpu = cpu_angles,
           .cuda = cuda::rope_angles,
           .examples = angles_examples},
          {.name = "rope",
           .summary = "rotary positions on query and key heads",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::rope,
           .examples = examples,
           .in_place = {{0, 0}},
           .recompute = Recompute::norms},
          {.name = "rope_backward",
           .summary = "the rotation undone",
           .infer = infer,
           .cost = cost,
           .cpu = cpu_backward,
           .cuda = cuda::rope_backward,
           .in_place = {{0, 0}},
           .slots = {.largest = 1}}};
}

}  // namespace llm
