// The rotary frequency of a pair of channels, in radians per position, with the ways to stretch frequencies for longer
// contexts (transformers' modeling_rope_utils.py). Shared by the CPU and the CUDA kernel.
#pragma once
#include <cmath>

#include "llm/base/bf16.h"
#include "llm/graph/graph.h"

namespace llm {

// Which frequencies are divided by a factor:
// - wavelengths: those whose wavelength (in positions) is over original / low; those under original / high stay; between
//   these, frequencies are interpolated linearly (Llama 3, Grattafiori et al. 2024);
// - all: every one (Chen et al. 2023, "Extending context window of large language models via positional interpolation");
// - turns: those that make fewer than `low` turns in the original context; those with more than `high` stay; between
//   these, frequencies are interpolated linearly by the number of the channel, and cosines and sines are multiplied by
//   `magnitude` (YaRN, Peng et al. 2023).
// `original` is the context length of the pretraining. factor 1: nothing is stretched.
enum class RopeStretch : int { wavelengths, all, turns };

// LongRoPE (Ding et al. 2024) divides each pair's frequency by a number of its own: by those in "divisors", or, in a text
// longer than the original context, by those in "long_divisors" (rope.cpp).
struct RopeDivisors {
  static constexpr int64_t kMost = 128;  // pairs of a head
  double near[kMost], far[kMost];
};

struct RopeScaling {
  double factor, low, high, original, magnitude;
  RopeStretch stretch;
};

// Of a node's attributes, which are those of RopeScaling; "factor" absent: none.
inline RopeScaling rope_scaling(const Attributes& a) {
  return {a.number("factor", 1),      a.number("low", 1),       a.number("high", 4),
          a.number("original", 8192), a.number("magnitude", 1), static_cast<RopeStretch>(a.integer("stretch", 0))};
}

// Of channels i and i + half of a head of 2 half channels.
LLM_HOST_DEVICE inline double rope_frequency(double theta, double i, double half, const RopeScaling& scaling) {
  constexpr double kTurn = 2 * 3.14159265358979323846;
  const double frequency = ::pow(theta, -i / half);
  if (scaling.factor == 1) return frequency;
  if (scaling.stretch == RopeStretch::all) return frequency / scaling.factor;
  if (scaling.stretch == RopeStretch::turns) {
    // The channel that makes so many turns is half ln(original / turns) / ln(theta); YaRN rounds it outwards.
    const double scale = half / ::log(theta);
    const double begin = ::fmax(::floor(scale * ::log(scaling.original / (scaling.high * kTurn))), 0.0);
    const double end = ::fmin(::ceil(scale * ::log(scaling.original / (scaling.low * kTurn))), 2 * half - 1);
    const double share = ::fmin(::fmax((i - begin) / (end == begin ? 0.001 : end - begin), 0.0), 1.0);
    return frequency * (1 - share) + frequency / scaling.factor * share;
  }
  const double wavelength = kTurn / frequency;
  if (wavelength < scaling.original / scaling.high) return frequency;
  if (wavelength > scaling.original / scaling.low) return frequency / scaling.factor;
  const double smooth = (scaling.original / wavelength - scaling.low) / (scaling.high - scaling.low);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

}  // namespace llm
