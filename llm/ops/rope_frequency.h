// The rotary frequency of a pair of channels, in radians per position, with Llama 3's stretching of low frequencies for
// longer contexts (Grattafiori et al. 2024; transformers' modeling_rope_utils.py). Shared by the CPU and the CUDA
// kernel.
#pragma once
#include <cmath>

#include "llm/base/bf16.h"

namespace llm {

// Wavelengths (in positions) below original / high stay, those above original / low are multiplied by `factor`; between
// these, frequencies are interpolated linearly. `original` is the context length of the pretraining. factor 1: no
// stretching.
struct RopeScaling {
  double factor, low, high, original;
};

// Of channels i and i + half of a head of 2 half channels.
LLM_HOST_DEVICE inline double rope_frequency(double theta, double i, double half, const RopeScaling& scaling) {
  const double frequency = ::pow(theta, -i / half);
  if (scaling.factor == 1) return frequency;
  const double wavelength = 2 * 3.14159265358979323846 / frequency;
  if (wavelength < scaling.original / scaling.high) return frequency;
  if (wavelength > scaling.original / scaling.low) return frequency / scaling.factor;
  const double smooth = (scaling.original / wavelength - scaling.low) / (scaling.high - scaling.low);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

}  // namespace llm
