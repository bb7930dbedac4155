// The MLP's activation functions and their derivatives on vectors, for the CPU. The unfused ops and the epilogues of
// the matrix products share one definition, so fusing changes no bit.
#pragma once
#include "llm/base/simd.h"

namespace llm {

struct Both {
  simd::Vec value, derivative;
};

struct Gelu {  // the tanh form of Hendrycks and Gimpel 2016: 0.5 x (1 + tanh(u)) = x sigmoid(2 u)
  static constexpr float kA = 2 * 0.7978845608028654f, kB = 0.044715f;  // 2 u = kA (x + kB x^3)
  static simd::Vec sigmoid(simd::Vec x, simd::Vec square) {
    constexpr float kScale = -kA * simd::kLog2E;
    return simd::sigmoid2(x * (square * (kScale * kB) + kScale));
  }
  static simd::Vec value(simd::Vec x) { return x * sigmoid(x, x * x); }
  static simd::Vec derivative(simd::Vec x) { return both(x).derivative; }
  static Both both(simd::Vec x) {
    const simd::Vec square = x * x, s = sigmoid(x, square);
    return {x * s, s + x * (square * (3 * kB * kA) + kA) * (s - s * s)};
  }
};

struct Relu2 {  // relu(x)^2 (So et al. 2021)
  static simd::Vec value(simd::Vec x) {
    const simd::Vec r = simd::max(x, simd::Vec{});
    return r * r;
  }
  static simd::Vec derivative(simd::Vec x) { return 2.0f * simd::max(x, simd::Vec{}); }
  static Both both(simd::Vec x) { return {value(x), derivative(x)}; }
};

}  // namespace llm
