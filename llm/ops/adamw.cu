// adamw: one step of AdamW for many parameters, in place (formulas: adamw.cpp). A block of threads takes 16384 elements
// of one parameter, a thread takes four at a time. Bytes: gradient, moments and fp32 parameter (or master) are read
// once, moments and fp32 parameter are written once, and so is the rounded parameter of a master. One launch takes up
// to kTensors parameters.
#include <cmath>

#include "llm/base/random.h"
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/multi_tensor_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kTensors = 56;
constexpr int64_t kBlock = 16384;  // elements

struct Settings {
  double beta1, beta2, learning_rate_scale, weight_decay;
  float epsilon, clip;
};

struct Tensors {
  const float* gradient[kTensors];
  float *first[kTensors], *second[kTensors];
  float* parameter[kTensors];  // the master, where there is one
  bf16* rounded[kTensors];     // the parameter where there is a master, or null
  uint64_t stream[kTensors];   // of the random bits that round the master
  int first_group[kTensors];   // where a piece of a parameter begins, in groups of 8 elements
  int64_t elements[kTensors];
  int first_block[kTensors];
  int count;
};
static_assert(sizeof(Tensors) + sizeof(Settings) <= 4000, "a kernel's parameters are 4 KiB together");

// The factors that are the same for all elements; one thread of a block computes them, in double.
struct Step {
  float scale;         // of the gradient, by clipping
  float size;          // learning rate / (1 - beta1^t)
  float second_scale;  // 1 / sqrt(1 - beta2^t)
  float keep;          // 1 - learning rate * weight decay
  float b1, b2, c1, c2, epsilon;

  __device__ void compute(const Settings& settings, const StepState& state, float norm) {
    scale = settings.clip > 0 && norm + 1e-6f > settings.clip ? settings.clip / (norm + 1e-6f) : 1.0f;
    const auto t = static_cast<double>(state.step + 1);
    const double learning_rate = static_cast<double>(state.learning_rate) * settings.learning_rate_scale;
    size = static_cast<float>(learning_rate / (1 - pow(settings.beta1, t)));
    second_scale = static_cast<float>(1 / sqrt(1 - pow(settings.beta2, t)));
    keep = static_cast<float>(1 - learning_rate * settings.weight_decay);
    b1 = static_cast<float>(settings.beta1), b2 = static_cast<float>(settings.beta2);
    c1 = static_cast<float>(1 - settings.beta1), c2 = static_cast<float>(1 - settings.beta2);
    epsilon = settings.epsilon;
  }
};

// Updates kWidth elements from `at` on. `bits` are the random bits for rounding elements 8 (at / 8) to 8 (at / 8) + 7.
template <int kWidth>
__device__ void update(const Tensors& tensors, int tensor, int64_t at, const Step& step,
                       const std::array<uint32_t, 4>& bits) {
  using Pack = simt::Pack<float, kWidth>;
  const Pack g = *reinterpret_cast<const Pack*>(tensors.gradient[tensor] + at);
  auto& first = *reinterpret_cast<Pack*>(tensors.first[tensor] + at);
  auto& second = *reinterpret_cast<Pack*>(tensors.second[tensor] + at);
  auto& parameter = *reinterpret_cast<Pack*>(tensors.parameter[tensor] + at);
  Pack m = first, v = second, p = parameter;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    const float gradient = g.values[k] * step.scale;
    m.values[k] = m.values[k] * step.b1 + gradient * step.c1;
    v.values[k] = v.values[k] * step.b2 + gradient * gradient * step.c2;
    p.values[k] =
        p.values[k] * step.keep - step.size * m.values[k] / (sqrtf(v.values[k]) * step.second_scale + step.epsilon);
  }
  first = m, second = v, parameter = p;
  if (bf16* rounded = tensors.rounded[tensor]) {
    simt::Pack<bf16, kWidth> r;
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      r.values[k] = stochastic_bf16(p.values[k], rounding_bits_of(bits, static_cast<int>((at + k) % 8)));
    *reinterpret_cast<simt::Pack<bf16, kWidth>*>(rounded + at) = r;
  }
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const __grid_constant__ Tensors tensors, const __grid_constant__ Settings settings,
                 const StepState* __restrict__ state, const float* __restrict__ norm) {  // (1)
  auto& step = simt::shared_memory<Step>();
  if (!isfinite(*norm)) return;  // everything stays as it was; the trainer reports the skipped step
  if (threadIdx.x == 0) step.compute(settings, *state, *norm);
  const int block = static_cast<int>(blockIdx.x);
  const int tensor = tensor_of_block(tensors.first_block, tensors.count, block);
  const int64_t begin = (block - tensors.first_block[tensor]) * kBlock;
  const int64_t end = min(begin + kBlock, tensors.elements[tensor]);
  const auto misaligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 != 0; };
  const bool packs = !misaligned(tensors.gradient[tensor]) && !misaligned(tensors.first[tensor]) &&
                     !misaligned(tensors.second[tensor]) && !misaligned(tensors.parameter[tensor]) &&
                     !misaligned(tensors.rounded[tensor]);
  const int64_t packed = packs ? begin + (end - begin) / 4 * 4 : begin;  // the rest is updated one by one
  const bool rounds = tensors.rounded[tensor] != nullptr;
  const auto bits = [&](int64_t at) {
    return rounds
               ? rounding_bits(state->seed, state->step, tensors.stream[tensor], tensors.first_group[tensor] + at / 8)
               : std::array<uint32_t, 4>{};
  };
  __syncthreads();  // for `step`
#pragma unroll 2
  for (int64_t i = begin + 4 * threadIdx.x; i < packed; i += 4 * kThreads) update<4>(tensors, tensor, i, step, bits(i));
  for (int64_t i = packed + threadIdx.x; i < end; i += kThreads) update<1>(tensors, tensor, i, step, bits(i));
}

}  // namespace

void adamw(const KernelCall& call) {
  constexpr size_t kInputs = 5, kOutputs = 4;  // for each parameter
  const Attributes& a = call.node.attributes;
  const Settings settings{a.number("beta1"),
                          a.number("beta2"),
                          a.number("learning_rate_scale"),
                          a.number("weight_decay"),
                          static_cast<float>(a.number("epsilon")),
                          static_cast<float>(a.number("grad_clip"))};
  Tensors tensors;
  tensors.count = 0;
  int blocks = 0;
  const auto flush = [&] {
    if (blocks > 0)
      simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), sizeof(Step), adamw_kernel,
                   tensors, settings, call.device_step, call.in(0));
    tensors.count = blocks = 0;
  };
  for (size_t p = 0; p < (call.node.inputs.size() - 1) / kInputs; ++p) {
    const size_t in = 1 + p * kInputs, out = p * kOutputs;
    const bool has_master = call.has_output(out + 3);
    const TensorId named = call.graph.storage(call.node.inputs[in]);
    const int i = tensors.count++;
    tensors.gradient[i] = call.in(in + 1);
    tensors.first[i] = call.out(out + 1);
    tensors.second[i] = call.out(out + 2);
    tensors.parameter[i] = has_master ? call.out(out + 3) : call.out(out);
    tensors.rounded[i] = has_master ? call.out<bf16>(out) : nullptr;
    tensors.first_group[i] = a.has("firsts") ? static_cast<int>(a.list("firsts")[p] / 8) : 0;
    tensors.stream[i] = has_master ? stream_of(call.graph.tensor(named).name) : 0;
    tensors.elements[i] = call.in_shape(in).elements();
    tensors.first_block[i] = blocks;
    blocks += static_cast<int>((tensors.elements[i] + kBlock - 1) / kBlock);
    if (tensors.count == kTensors) flush();
  }
  flush();
}

}  // namespace llm::cuda
