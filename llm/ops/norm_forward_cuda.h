// LayerNorm and RMSNorm forward, with the optional residual addition in front (formulas: norm.cpp).
//
// There are as many blocks as run at once. A team of warps (one up to 1024 channels) holds a row in registers, in fp32, and loads
// its next row meanwhile; the weights lie in shared memory. Every byte is read and written once, the weights once a block. What
// is normalised is x + delta as it is stored, so that a stage of a pipeline that is sent it has the bits of one that makes it.
#pragma once
#include "llm/ops/norm_cuda.h"

namespace llm::cuda {

template <class T>
struct NormForward {
  const T* x;       // (rows, columns)
  const T* delta;   // (rows, columns) or null
  const T* weight;  // (columns)
  const T* bias;    // (columns), of LayerNorm
  T* y;             // (rows, columns)
  T* sum;           // (rows, columns), of x + delta; may lie in place of either
  float* mean;      // (rows), of LayerNorm
  float* rstd;      // (rows)
  int64_t rows;
  int columns;
  float epsilon;
  uint32_t* largest;  // (1), of |y|, or null
};

struct alignas(16) NormForwardShared {
  NormSums sums;
  LargestShared largest;
  // then weight (columns), and of LayerNorm bias (columns)
};

template <class T, bool kCentered, int kSlots>
__global__ void __launch_bounds__(kNormThreads)
    norm_kernel(const __grid_constant__ NormForward<T> call, int warps_of_row) {
  constexpr int kPack = simt::kPack<T>;
  using Pack = simt::Pack<T>;
  auto& s = simt::shared_memory<NormForwardShared>();
  NormTeam team(warps_of_row);
  const int packs = call.columns / kPack;
  auto* weight = reinterpret_cast<Pack*>(&s + 1);
  auto* bias = weight + packs;
  const int64_t step = int64_t{gridDim.x} * team.teams;  // rows that are under way at once
  const float inverse = 1.0f / static_cast<float>(call.columns);
  const int first_pack = team.warp * 32 * kSlots + team.lane;  // then each 32nd

  Pack x[kSlots], delta[kSlots];
  const auto load = [&](int64_t row) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int64_t at = row * packs + first_pack + 32 * i;
      x[i] = delta[i] = {};
      if (simt::in_bounds(row < call.rows && first_pack + 32 * i < packs)) {
        x[i] = reinterpret_cast<const Pack*>(call.x)[at];
        if (call.delta) delta[i] = reinterpret_cast<const Pack*>(call.delta)[at];
      }
    }
  };
  float most = 0;
  load(int64_t{blockIdx.x} * team.teams + team.index);
#pragma unroll 1  // mostly it is one, and the registers are dear
  for (int p = static_cast<int>(threadIdx.x); p < packs; p += static_cast<int>(blockDim.x)) {
    weight[p] = reinterpret_cast<const Pack*>(call.weight)[p];
    if (kCentered) bias[p] = reinterpret_cast<const Pack*>(call.bias)[p];
  }
  __syncthreads();
  // As many steps for each team of the block, since all take part in the sums.
  for (int64_t first = int64_t{blockIdx.x} * team.teams; first < call.rows; first += step) {
    const int64_t row = first + team.index;
    float v[kSlots][kPack];
    float mean[1] = {0}, squares[1] = {0};
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        v[i][k] = to_float(simt::stored<T>(x[i].get(k) + delta[i].get(k)));
        mean[0] += v[i][k];
      }
    load(row + step);
    if (kCentered) {
      team.add_up(mean, s.sums);
      mean[0] *= inverse;
    } else {
      mean[0] = 0;
    }
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
#pragma unroll
      for (int k = 0; k < kPack; ++k)
        if (first_pack + 32 * i < packs) squares[0] += (v[i][k] - mean[0]) * (v[i][k] - mean[0]);
    team.add_up(squares, s.sums);
    const float rstd = rsqrtf(squares[0] * inverse + call.epsilon);
    if (team.warp == 0 && team.lane == 0 && simt::in_bounds(row < call.rows)) {
      if (kCentered) call.mean[row] = mean[0];
      call.rstd[row] = rstd;
    }
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
      if (simt::in_bounds(row < call.rows && first_pack + 32 * i < packs)) {
        const int64_t at = row * packs + first_pack + 32 * i;
        const Pack w = weight[first_pack + 32 * i], b = kCentered ? bias[first_pack + 32 * i] : Pack{};
        float y[kPack];
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          const float normal = (v[i][k] - mean[0]) * rstd;
          y[k] = kCentered ? normal * w.get(k) + b.get(k) : normal * w.get(k);
          most = fmaxf(most, fabsf(y[k]));
        }
        reinterpret_cast<Pack*>(call.y)[at] = simt::packed<T>(y);
        if (call.delta) reinterpret_cast<Pack*>(call.sum)[at] = simt::packed<T>(v[i]);
      }
  }
  note_largest(to_float(simt::stored<T>(most)), call.largest, s.largest);
}

// Any shape, any alignment: a block takes a row, and reads it from memory for each sum again.
template <class T, bool kCentered>
__global__ void __launch_bounds__(kNormThreads) norm_any_kernel(const __grid_constant__ NormForward<T> call) {
  auto& s = simt::shared_memory<NormAnyShared>();
  NormTeam team(kNormWarps);
  const int64_t row = blockIdx.x, at = row * call.columns;
  const float inverse = 1.0f / static_cast<float>(call.columns);
  const auto value = [&](int c) {
    return call.delta ? to_float(simt::stored<T>(to_float(call.x[at + c]) + to_float(call.delta[at + c])))
                      : to_float(call.x[at + c]);
  };
  float mean[1] = {0}, squares[1] = {0};
  if (kCentered) {
    for (int c = static_cast<int>(threadIdx.x); c < call.columns; c += kNormThreads) mean[0] += value(c);
    team.add_up(mean, s.sums);
    mean[0] *= inverse;
  }
  for (int c = static_cast<int>(threadIdx.x); c < call.columns; c += kNormThreads)
    squares[0] += (value(c) - mean[0]) * (value(c) - mean[0]);
  team.add_up(squares, s.sums);
  const float rstd = rsqrtf(squares[0] * inverse + call.epsilon);
  float most = 0;
  for (int c = static_cast<int>(threadIdx.x); c < call.columns; c += kNormThreads) {
    const float v = value(c), normal = (v - mean[0]) * rstd * to_float(call.weight[c]);
    if (call.delta) call.sum[at + c] = simt::stored<T>(v);
    const float y = kCentered ? normal + to_float(call.bias[c]) : normal;
    call.y[at + c] = simt::stored<T>(y);
    most = fmaxf(most, fabsf(y));
  }
  if (threadIdx.x == 0) {
    if (kCentered) call.mean[row] = mean[0];
    call.rstd[row] = rstd;
  }
  note_largest(to_float(simt::stored<T>(most)), call.largest, s.largest);
}

template <class T, bool kCentered>
void norm_forward(const CudaDevice& device, const NormForward<T>& call) {
  const NormLayout layout =
      norm_layout<T>(32, call.columns, call.x, call.delta, call.weight, call.bias, call.y, call.sum);
  if (layout.warps == 0) {
    simt::launch(device.stream(), dim3(static_cast<unsigned>(call.rows)), dim3(kNormThreads), sizeof(NormAnyShared),
                 norm_any_kernel<T, kCentered>, call);
    return;
  }
  constexpr int kUnit = 8 / simt::kPack<T>;  // slots of 8 values
  const auto kernel = layout.slots == kUnit       ? norm_kernel<T, kCentered, kUnit>
                      : layout.slots == 2 * kUnit ? norm_kernel<T, kCentered, 2 * kUnit>
                      : layout.slots == 3 * kUnit ? norm_kernel<T, kCentered, 3 * kUnit>
                                                  : norm_kernel<T, kCentered, 4 * kUnit>;
  const size_t weights = static_cast<size_t>(call.columns) * (kCentered ? 2 : 1) * sizeof(T);
  const dim3 threads = norm_threads(layout.warps);
  const int64_t teams = static_cast<int64_t>(threads.x) / 32 / layout.warps;
  const int64_t at_once = int64_t{device.properties().multiprocessors} * 2 * kNormThreads / 2 / threads.x;
  const int64_t blocks = std::min((call.rows + teams - 1) / teams, at_once);
  simt::launch(device.stream(), dim3(static_cast<unsigned>(blocks)), threads, sizeof(NormForwardShared) + weights,
               kernel, call, layout.warps);
}

}  // namespace llm::cuda
