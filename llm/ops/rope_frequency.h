// The rotary frequency of a pair of channels, with Llama 3's stretching of slow ones for longer contexts (Grattafiori et
// al. 2024; transformers' modeling_rope_utils.py). For the CPU's kernel and CUDA's.
#pragma once
#include <cmath>

#include "llm/base/bf16.h"

namespace llm {

// factor 1: no stretching. Wavelengths below original / high stay, those above original / low are stretched by `factor`,
// those between by something between.
struct RopeScaling {
  double factor, low, high, original;
};

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
