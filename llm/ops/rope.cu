// rope_angles: for each position D/2 cosines, then D/2 sines; rope and rope_backward: the rotation of query and key
// heads by these angles (formulas and layout: rope.cpp).
//
// rope: a warp takes the row of a token. A lane takes 16 bytes of the first half of a head and the 16 bytes of the
// second half that are rotated with them; its angles stay in registers from head to head where a warp covers whole
// heads. Then the warp copies the values. Every byte is read and written once, the angles once for each sequence.
#include <algorithm>
#include <cmath>

#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/chunks.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/largest_cuda.h"
#include "llm/ops/rope_frequency.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kRows = kThreads / 32;

// The cosine, and `half` behind it the sine.
__device__ inline void put_angle(double angle, double magnitude, float* to, int64_t half) {
  to[0] = static_cast<float>(magnitude * cos(angle));
  to[half] = static_cast<float>(magnitude * sin(angle));
}

// The angles are computed in double: at position 8192 a float is wrong by up to 5e-4.
__global__ void __launch_bounds__(kThreads)
    rope_angles_kernel(const int32_t* __restrict__ positions,  // (T), or null: those of chunks
                       Chunks chunks,
                       float* __restrict__ angles,  // (T, D)
                       int64_t pairs,               // T D/2
                       int64_t half, double theta, RopeScaling scaling) {
  const int64_t pair = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (simt::in_bounds(pair < pairs)) {
    const int64_t t = pair / half, i = pair % half;
    const double frequency = rope_frequency(theta, static_cast<double>(i), static_cast<double>(half), scaling);
    put_angle(static_cast<double>(positions ? positions[t] : chunks.position(t)) * frequency, scaling.magnitude,
              angles + t * 2 * half + i, half);
  }
}

// The same with LongRoPE's divisors; `are_far` (T) says which, or null: near ones.
__global__ void __launch_bounds__(kThreads)
    rope_divided_angles_kernel(const int32_t* __restrict__ positions, const int32_t* __restrict__ are_far,
                               Chunks chunks, float* __restrict__ angles, int64_t pairs, int64_t half, double theta,
                               RopeScaling scaling, RopeDivisors divisors) {
  const int64_t pair = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (simt::in_bounds(pair < pairs)) {
    const int64_t t = pair / half, i = pair % half;
    const double divisor = are_far && are_far[t] ? divisors.far[i] : divisors.near[i];
    const double frequency = rope_frequency(theta, static_cast<double>(i), static_cast<double>(half), scaling);
    put_angle(static_cast<double>(positions ? positions[t] : chunks.position(t)) * frequency / divisor,
              scaling.magnitude, angles + t * 2 * half + i, half);
  }
}

struct Heads {
  int64_t turned, copied;     // number of query and key heads; of value heads
  int64_t width, size, half;  // channels of a row; of a head; half of those of a head that are turned
};

// Channels that stay as they are. In place, they are read only to find the largest.
template <class T, int kWidth>
__device__ void keep(const T* from, T* to, bool in_place, float& most) {
  using Pack = simt::Pack<T, kWidth>;
  const Pack v = *reinterpret_cast<const Pack*>(from);
  if (!in_place) *reinterpret_cast<Pack*>(to) = v;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) most = fmaxf(most, fabsf(v.get(k)));
}

template <int kWidth>
struct Angles {
  float cosine[kWidth] = {}, sine[kWidth] = {};
  __device__ void load(const float* row, int64_t half) {  // `row`: at the first cosine; the sines are `half` further
    constexpr int kWide = kWidth < 4 ? kWidth : 4;
#pragma unroll
    for (int k = 0; k < kWidth; k += kWide) {
      const auto c = *reinterpret_cast<const simt::Pack<float, kWide>*>(row + k);
      const auto s = *reinterpret_cast<const simt::Pack<float, kWide>*>(row + half + k);
#pragma unroll
      for (int j = 0; j < kWide; ++j) cosine[k + j] = c.values[j], sine[k + j] = s.values[j];
    }
  }
};

// The output may lie in place of the input: a lane reads its elements of both halves before it writes them.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) rope_kernel(const T* in,                       // (rows, width)
                                                        const float* __restrict__ angles,  // (T, 2 half)
                                                        T* out,                            // (rows, width)
                                                        int64_t rows, int64_t tokens, Heads heads, float direction,
                                                        uint32_t* largest) {  // (1), of |out|, or null
  using Pack = simt::Pack<T, kWidth>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / 32;
  float most = 0;
  if (simt::in_bounds(row < rows)) {
    const T* x = in + row * heads.width;
    T* y = out + row * heads.width;
    const float* of_token = angles + row % tokens * 2 * heads.half;
    const int packs = static_cast<int>(heads.half / kWidth);  // of half a head
    Angles<kWidth> angle;
    int loaded = -1;
    for (int item = lane; item < heads.turned * packs; item += 32) {
      const int head = item / packs, pack = item % packs;
      if (pack != loaded) angle.load(of_token + pack * kWidth, heads.half);
      loaded = pack;
      const int64_t at = head * heads.size + pack * kWidth;
      const Pack x1 = *reinterpret_cast<const Pack*>(x + at);
      const Pack x2 = *reinterpret_cast<const Pack*>(x + at + heads.half);
      float y1[kWidth], y2[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float c = angle.cosine[k], s = angle.sine[k] * direction;
        y1[k] = x1.get(k) * c - x2.get(k) * s;
        y2[k] = x2.get(k) * c + x1.get(k) * s;
        most = fmaxf(most, fmaxf(fabsf(y1[k]), fabsf(y2[k])));
      }
      *reinterpret_cast<Pack*>(y + at) = simt::packed<T>(y1);
      *reinterpret_cast<Pack*>(y + at + heads.half) = simt::packed<T>(y2);
    }
    const bool in_place = x == y, keeps = !in_place || largest;
    const int64_t values = heads.turned * heads.size, copied = keeps ? heads.copied * heads.size : 0;
    for (int64_t i = lane * kWidth; i < copied; i += 32 * kWidth)
      keep<T, kWidth>(x + values + i, y + values + i, in_place, most);
    const int64_t rest = heads.size - 2 * heads.half, rests = keeps ? heads.turned * rest : 0;
    for (int64_t i = lane * kWidth; i < rests; i += 32 * kWidth) {
      const int64_t at = i / rest * heads.size + 2 * heads.half + i % rest;
      keep<T, kWidth>(x + at, y + at, in_place, most);
    }
  }
  if (largest) note_largest(to_float(simt::stored<T>(most)), largest, simt::shared_memory<LargestShared>());
}

template <class T>
void turn_as(const KernelCall& call, float direction) {
  const Attributes& a = call.node.attributes;
  const T* in = call.in<T>(0);
  const float* angles = call.in(1);
  T* out = call.out<T>(0);
  const int64_t kv = a.integer("kv_heads"), D = a.integer("head_size"), turned = a.integer("heads") + kv;
  const int64_t rows = call.in_shape(0).rows(), tokens = call.in_shape(0)[1];
  const int64_t half = a.integer("rotary_size", D) / 2;
  const Heads heads{turned, kv, (turned + kv) * D, D, half};
  const bool packs = simt::packs(in, half) && simt::packs(out, half) && simt::packs(angles, half) &&
                     (D - 2 * half) % simt::kPack<T> == 0;
  uint32_t* largest = largest_of(call);
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>((rows + kRows - 1) / kRows)), dim3(kThreads),
               largest ? sizeof(LargestShared) : 0, packs ? rope_kernel<T, simt::kPack<T>> : rope_kernel<T, 1>, in,
               angles, out, rows, tokens, heads, direction, largest);
}

void turn(const KernelCall& call, float direction) {
  call.in_dtype(0) == DType::bf16 ? turn_as<bf16>(call, direction) : turn_as<float>(call, direction);
}

}  // namespace

void rope_angles(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const RopeScaling scaling = rope_scaling(a);
  const int64_t half = call.out_shape(0)[1] / 2, pairs = call.out_shape(0)[0] * half;
  const dim3 blocks(static_cast<unsigned>((pairs + kThreads - 1) / kThreads));
  if (a.has("divisors")) {
    RopeDivisors divisors{};
    std::ranges::copy(a.numbers("divisors"), divisors.near);
    if (call.in_int(1)) std::ranges::copy(a.numbers("long_divisors"), divisors.far);
    simt::launch(call.cuda->stream(), blocks, dim3(kThreads), 0, rope_divided_angles_kernel, call.in_int(0),
                 call.in_int(1), chunks_of(a, call.out_shape(0)[0]), call.out(0), pairs, half, a.number("theta"),
                 scaling, divisors);
    return;
  }
  simt::launch(call.cuda->stream(), blocks, dim3(kThreads), 0, rope_angles_kernel, call.in_int(0),
               chunks_of(a, call.out_shape(0)[0]), call.out(0), pairs, half, a.number("theta"), scaling);
}
void rope(const KernelCall& call) { turn(call, 1); }
void rope_backward(const KernelCall& call) { turn(call, -1); }

}  // namespace llm::cuda
