// The activation functions of activation_functions.h for floats on the GPU, and the sigmoid, which swiglu uses too.
#pragma once
#include "llm/device/simt.h"

namespace llm::cuda {

// 1 / (1 + e^-x) to about 1e-6 of its value. It uses the GPU's instructions for 2^x and 1/x, so that the kernels stay
// bound by memory.
__device__ inline float sigmoid(float x) {
  return simt::reciprocal_fast(1 + simt::exp2_fast(-1.4426950408889634f * x));
}

struct Gelu {  // the tanh form of Hendrycks and Gimpel 2016: 0.5 x (1 + tanh(u)) = x sigmoid(2 u)
  static constexpr float kA = 0.7978845608028654f, kB = 0.044715f;  // u = kA (x + kB x^3)
  __device__ static float value(float x) { return x * sigmoid(2 * kA * x * (1 + kB * x * x)); }
  __device__ static float derivative(float x) {
    const float s = sigmoid(2 * kA * x * (1 + kB * x * x));
    return s + x * s * (1 - s) * (2 * kA) * (1 + 3 * kB * x * x);
  }
};

struct Relu2 {  // relu(x)^2 (So et al. 2021)
  __device__ static float value(float x) { return x > 0 ? x * x : 0; }
  __device__ static float derivative(float x) { return x > 0 ? 2 * x : 0; }
};

// For elementwise_cuda.h.
template <class Activation>
struct Activate {
  __device__ float operator()(float x) const { return Activation::value(x); }
};
template <class Activation>
struct MultiplyByDerivative {
  __device__ float operator()(float d, float x) const { return d * Activation::derivative(x); }
};

}  // namespace llm::cuda
