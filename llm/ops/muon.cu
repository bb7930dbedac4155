// muon_momentum and muon_apply for many matrices (formulas: muon.cpp). A block of threads takes 16384 elements of one
// part, a thread takes four at a time.
//
// muon_momentum is two kernels. The first steps the momentum and leaves the sum of the squares of the update for each
// block. The second adds up a part's sums, computes the update once more from gradient and momentum (4 bytes more to
// read for each element than if the update were stored, but 4 fewer to write) and writes it divided by its norm.
// muon_apply reads each x and parameter once.
#include <cmath>

#include "llm/base/random.h"
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/multi_tensor_cuda.h"
#include "llm/ops/muon_parts.h"
#include "llm/ops/reduce_cuda.h"
#include "llm/ops/square_sums.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kParts = 64;
constexpr int64_t kBlock = kGradientNormBlock;  // elements
constexpr float kLeastNorm = 1e-30f;

__device__ bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

struct MomentumParts {
  const float* gradient[kParts];
  float* momentum[kParts];
  void* x[kParts];
  int64_t elements[kParts];
  int first_block[kParts];
  int count;
};

struct MomentumSettings {
  float beta, fresh;  // the weights of the old momentum and of the new gradient
  float clip, margin;

  __device__ float gradient_weight(float norm) const {
    return fresh * (clip > 0 && norm + 1e-6f > clip ? clip / (norm + 1e-6f) : 1.0f);
  }
};
static_assert(sizeof(MomentumParts) + sizeof(MomentumSettings) <= 4000, "a kernel's parameters are 4 KiB together");

struct Shared {
  double sums[32];
};

// The part, and the range of its elements, that a block of threads works on.
struct Range {
  int part;
  int64_t begin, end;

  template <class Parts>
  __device__ explicit Range(const Parts& parts) {
    const int block = static_cast<int>(blockIdx.x);
    part = tensor_of_block(parts.first_block, parts.count, block);
    begin = (block - parts.first_block[part]) * kBlock;
    end = min(begin + kBlock, parts.elements[part]);
  }
};

// Steps kWidth elements of the momentum; returns the sum of the squares of the update.
template <int kWidth>
__device__ float step_momentum(const float* gradient, float* momentum, float beta, float weight) {
  using Pack = simt::Pack<float, kWidth>;
  const Pack g = *reinterpret_cast<const Pack*>(gradient);
  Pack m = *reinterpret_cast<const Pack*>(momentum);
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    const float fresh = g.values[k] * weight;
    m.values[k] = m.values[k] * beta + fresh;
    const float u = m.values[k] * beta + fresh;
    squares += u * u;
  }
  *reinterpret_cast<Pack*>(momentum) = m;
  return squares;
}

__global__ void __launch_bounds__(kThreads)
    muon_momentum_kernel(const __grid_constant__ MomentumParts parts, const __grid_constant__ MomentumSettings settings,
                         const float* __restrict__ norm,  // (1)
                         double* __restrict__ sums) {     // (blocks)
  auto& s = simt::shared_memory<Shared>();
  if (!isfinite(*norm)) return;  // everything stays as it was; the trainer reports the skipped step
  const Range range(parts);
  const float* gradient = parts.gradient[range.part];
  float* momentum = parts.momentum[range.part];
  const float weight = settings.gradient_weight(*norm);
  const bool packs = is_aligned(gradient) && is_aligned(momentum);
  const int64_t packed = packs ? range.begin + (range.end - range.begin) / 4 * 4 : range.begin;  // the rest one by one
  float sum = 0;
#pragma unroll 4
  for (int64_t i = range.begin + 4 * threadIdx.x; i < packed; i += 4 * kThreads)
    sum += step_momentum<4>(gradient + i, momentum + i, settings.beta, weight);
  for (int64_t i = packed + threadIdx.x; i < range.end; i += kThreads)
    sum += step_momentum<1>(gradient + i, momentum + i, settings.beta, weight);
  const double total = block_sum(static_cast<double>(sum), s.sums);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

template <int kWidth, class T>
__device__ void write_part(const float* gradient, const float* momentum, T* x, float beta, float weight,
                           float inverse) {
  using Pack = simt::Pack<float, kWidth>;
  const Pack g = *reinterpret_cast<const Pack*>(gradient), m = *reinterpret_cast<const Pack*>(momentum);
  simt::Pack<T, kWidth> y;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) y.set(k, (m.values[k] * beta + g.values[k] * weight) * inverse);
  *reinterpret_cast<simt::Pack<T, kWidth>*>(x) = y;
}

template <class T>
__global__ void __launch_bounds__(kThreads) muon_normalize_kernel(const __grid_constant__ MomentumParts parts,
                                                                  const __grid_constant__ MomentumSettings settings,
                                                                  const float* __restrict__ norm,     // (1)
                                                                  const double* __restrict__ sums) {  // (blocks)
  auto& s = simt::shared_memory<Shared>();
  const Range range(parts);
  const float *gradient = parts.gradient[range.part], *momentum = parts.momentum[range.part];
  T* x = static_cast<T*>(parts.x[range.part]);
  if (!isfinite(*norm)) {
    for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kThreads) x[i] = simt::stored<T>(0.0f);
    return;
  }
  const double* own = sums + parts.first_block[range.part];
  const int blocks = static_cast<int>((parts.elements[range.part] + kBlock - 1) / kBlock);
  double total = 0;
  for (int b = static_cast<int>(threadIdx.x); b < blocks; b += kThreads) total += own[b];
  const auto size = static_cast<float>(sqrt(block_sum(total, s.sums)));
  const float inverse = size > kLeastNorm ? 1 / (settings.margin * size) : 0.0f;
  const float weight = settings.gradient_weight(*norm);
  const bool packs = is_aligned(gradient) && is_aligned(momentum) && is_aligned(x);
  const int64_t packed = packs ? range.begin + (range.end - range.begin) / 4 * 4 : range.begin;  // the rest one by one
#pragma unroll 4
  for (int64_t i = range.begin + 4 * threadIdx.x; i < packed; i += 4 * kThreads)
    write_part<4>(gradient + i, momentum + i, x + i, settings.beta, weight, inverse);
  for (int64_t i = packed + threadIdx.x; i < range.end; i += kThreads)
    write_part<1>(gradient + i, momentum + i, x + i, settings.beta, weight, inverse);
}

struct ApplyParts {
  float* parameter[kParts];  // the master, where there is one; at the part's first element
  bf16* rounded[kParts];     // the parameter where there is a master, or null; at the part's first element
  const void* x[kParts];
  uint64_t stream[kParts];  // of the random bits that round the master
  int64_t first[kParts];    // the part's first element in the parameter
  int64_t elements[kParts];
  float size[kParts];  // of the step, as a multiple of the learning rate
  int first_block[kParts];
  int count;
};

struct ApplySettings {
  double learning_rate_scale, weight_decay;
};
static_assert(sizeof(ApplyParts) + sizeof(ApplySettings) <= 4000, "a kernel's parameters are 4 KiB together");

struct ApplyShared {
  float keep;  // 1 - learning rate * weight decay
  float step;
};

template <int kWidth, class T>
__device__ void apply(const ApplyParts& parts, int part, int64_t at, const ApplyShared& s, const StepState& state) {
  using Pack = simt::Pack<float, kWidth>;
  const auto x = *reinterpret_cast<const simt::Pack<T, kWidth>*>(static_cast<const T*>(parts.x[part]) + at);
  auto& parameter = *reinterpret_cast<Pack*>(parts.parameter[part] + at);
  Pack p = parameter;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) p.values[k] = p.values[k] * s.keep - x.get(k) * s.step;
  parameter = p;
  if (bf16* rounded = parts.rounded[part]) {
    // The four elements of a pack share a group of eight random bits, since packs start at multiples of four.
    const int64_t element = parts.first[part] + at;
    const auto bits = rounding_bits(state.seed, state.step, parts.stream[part], element / 8);
    simt::Pack<bf16, kWidth> r;
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      r.values[k] = stochastic_bf16(p.values[k], rounding_bits_of(bits, static_cast<int>((element + k) % 8)));
    *reinterpret_cast<simt::Pack<bf16, kWidth>*>(rounded + at) = r;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    muon_apply_kernel(const __grid_constant__ ApplyParts parts, const __grid_constant__ ApplySettings settings,
                      const StepState* __restrict__ state, const float* __restrict__ norm) {  // (1)
  auto& s = simt::shared_memory<ApplyShared>();
  if (!isfinite(*norm)) return;  // everything stays as it was; the trainer reports the skipped step
  const Range range(parts);
  const int part = range.part;
  if (threadIdx.x == 0) {
    const double learning_rate = static_cast<double>(state->learning_rate) * settings.learning_rate_scale;
    s.keep = static_cast<float>(1 - learning_rate * settings.weight_decay);
    s.step = static_cast<float>(learning_rate * parts.size[part]);
  }
  const bool packs = is_aligned(parts.parameter[part]) && is_aligned(parts.x[part]) && parts.first[part] % 4 == 0 &&
                     reinterpret_cast<uintptr_t>(parts.rounded[part]) % 8 == 0;
  const int64_t packed = packs ? range.begin + (range.end - range.begin) / 4 * 4 : range.begin;  // the rest one by one
  __syncthreads();                                                                               // for `s`
#pragma unroll 2
  for (int64_t i = range.begin + 4 * threadIdx.x; i < packed; i += 4 * kThreads) apply<4, T>(parts, part, i, s, *state);
  for (int64_t i = packed + threadIdx.x; i < range.end; i += kThreads) apply<1, T>(parts, part, i, s, *state);
}

template <class T>
void momentum_as(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const MomentumSettings settings{static_cast<float>(a.number("momentum")),
                                  static_cast<float>(1 - a.number("momentum")),
                                  static_cast<float>(a.number("grad_clip")), static_cast<float>(a.number("margin"))};
  auto* sums = call.workspace<double>();
  MomentumParts parts;
  parts.count = 0;
  int blocks = 0;
  const auto flush = [&] {
    if (blocks == 0) return;
    const dim3 grid(static_cast<unsigned>(blocks));
    simt::launch(call.cuda->stream(), grid, dim3(kThreads), sizeof(Shared), muon_momentum_kernel, parts, settings,
                 call.in(0), sums);
    simt::launch(call.cuda->stream(), grid, dim3(kThreads), sizeof(Shared), muon_normalize_kernel<T>, parts, settings,
                 call.in(0), sums);
    sums += blocks;
    parts.count = blocks = 0;
  };
  for_muon_parts(call.graph, call.node, [&](const MuonPart& part) {
    const int i = parts.count++;
    parts.gradient[i] = call.in(1 + 2 * part.matrix) + part.first;
    parts.momentum[i] = call.out(part.matrix) + part.first;
    parts.x[i] = call.out<T>(part.output);
    parts.elements[i] = part.elements();
    parts.first_block[i] = blocks;
    blocks += static_cast<int>(square_sum_blocks(parts.elements[i]));
    if (parts.count == kParts) flush();
  });
  flush();
}

template <class T>
void apply_as(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const ApplySettings settings{a.number("learning_rate_scale"), a.number("weight_decay")};
  ApplyParts parts;
  parts.count = 0;
  int blocks = 0;
  const auto flush = [&] {
    if (blocks > 0)
      simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), sizeof(ApplyShared),
                   muon_apply_kernel<T>, parts, settings, call.device_step, call.in(0));
    parts.count = blocks = 0;
  };
  for_muon_matrices(call.graph, call.node, [&](const MuonMatrix& matrix) {
    const bool has_master = call.has_output(matrix.output + 1);
    float* parameter = call.out(matrix.output + (has_master ? 1 : 0));
    bf16* rounded = has_master ? call.out<bf16>(matrix.output) : nullptr;
    const TensorId named = call.graph.storage(call.node.inputs[matrix.input]);
    const uint64_t stream = has_master ? stream_of(call.graph.tensor(named).name) : 0;
    int64_t first = 0;
    for (size_t k = 0; k < matrix.parts; ++k) {
      const size_t in = matrix.input + 2 + k;
      const int i = parts.count++;
      parts.parameter[i] = parameter + first;
      parts.rounded[i] = rounded ? rounded + first : nullptr;
      parts.x[i] = call.in<T>(in);
      parts.stream[i] = stream;
      parts.first[i] = first;
      parts.elements[i] = call.in_shape(in).elements();
      parts.size[i] = static_cast<float>(muon_step_size(a, call.in_shape(in), k));
      parts.first_block[i] = blocks;
      blocks += static_cast<int>(square_sum_blocks(parts.elements[i]));
      first += parts.elements[i];
      if (parts.count == kParts) flush();
    }
  });
  flush();
}

}  // namespace

void muon_momentum(const KernelCall& call) {
  call.node.attributes.flag("bf16") ? momentum_as<bf16>(call) : momentum_as<float>(call);
}

void muon_apply(const KernelCall& call) {
  call.in_dtype(3) == DType::bf16 ? apply_as<bf16>(call) : apply_as<float>(call);
}

}  // namespace llm::cuda
