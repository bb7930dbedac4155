// The MLP's activation functions and their derivatives on vectors. One definition serves the ops on their own and the
// epilogues of the matrix products, so fusing changes no bit.
#pragma once
#include "llm/base/simd.h"

namespace llm {

struct Gelu {  // the tanh form of Hendrycks and Gimpel 2016: 0.5 x (1 + tanh(u)) = x sigmoid(2 u)
  static constexpr float kA = 0.7978845608028654f, kB = 0.044715f;  // u = kA (x + kB x^3)
  static simd::Vec value(simd::Vec x) { return x * simd::sigmoid(2.0f * kA * x * (1.0f + kB * x * x)); }
  static simd::Vec derivative(simd::Vec x) {
    const simd::Vec s = simd::sigmoid(2.0f * kA * x * (1.0f + kB * x * x));
    return s + x * s * (1.0f - s) * (2.0f * kA) * (1.0f + 3.0f * kB * x * x);
  }
};

struct Relu2 {  // relu(x)^2 (So et al. 2021)
  static simd::Vec value(simd::Vec x) {
    const simd::Vec r = simd::max(x, simd::Vec{});
    return r * r;
  }
  static simd::Vec derivative(simd::Vec x) { return 2.0f * simd::max(x, simd::Vec{}); }
};

}  // namespace llm
