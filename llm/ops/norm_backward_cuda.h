// LayerNorm and RMSNorm backward (formulas: norm.cpp), with the optional addend that joins the gradient of the residual
// stream.
//
// At most 264 blocks share the rows. A team of warps (one up to 768 channels, of RMSNorm 1024) holds a row's dy and x in
// registers, and keeps the sums that its columns give to d_weight and d_bias there from row to row; at the end the teams' sums
// are added in shared memory and go to the workspace, one row of them a block, which sum_partials adds up. Every byte is
// read and written once, the weights once a block.
#pragma once
#include "llm/ops/norm_cuda.h"

namespace llm::cuda {

template <class T>
struct NormBackward {
  const T* dy;        // (rows, columns)
  const T* x;         // (rows, columns)
  const T* weight;    // (columns)
  const float* mean;  // (rows), of LayerNorm
  const float* rstd;  // (rows)
  const T* addend;    // (rows, columns) or null
  T* dx;              // (rows, columns); may lie in place of dy or the addend
  float* partial;     // (blocks, 1 or of LayerNorm 2, and one more with sums_columns, columns)
  bool sums_columns;  // of LayerNorm: columns of dx are summed too, for the bias of the layer that dx goes on to
  int64_t rows;
  int columns, block_rows;
  uint32_t* largest;  // (1), of |dx|, or null
};

template <int kPack>
struct alignas(16) NormBackwardShared {
  NormSums sums;
  LargestShared largest;
  float staged[kNormWarps][2][kStaged<kPack>];
  // then weight (columns), of the addend `slots` packs a thread, and sums of dx's columns, `slots` times kStaged a warp
};

// Adds a thread's values to what its places in shared memory hold (see `staged`).
template <class T, int N>
__device__ void add_staged(float* to, int lane, const simt::Pack<T, N>& pack) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    auto& four = *reinterpret_cast<simt::Pack<float>*>(to + staged(lane, i, 32));
    simt::Pack<float> sum = four;
#pragma unroll
    for (int k = 0; k < 4; ++k) sum.values[k] += pack.get(i + k);
    four = sum;
  }
}

template <class T, bool kCentered, int kSlots>
__global__ void __launch_bounds__(kNormThreads)
    norm_backward_kernel(const __grid_constant__ NormBackward<T> call, int warps_of_row) {
  constexpr int kPack = simt::kPack<T>, kSums = kCentered ? 2 : 1;
  using Pack = simt::Pack<T>;
  auto& s = simt::shared_memory<NormBackwardShared<kPack>>();
  NormTeam team(warps_of_row);
  const int packs = call.columns / kPack;
  auto* weight = reinterpret_cast<Pack*>(&s + 1);
  // The addend waits here, and not in registers, until the sums are there.
  Pack* const addend = weight + packs + threadIdx.x;
  const int threads = static_cast<int>(blockDim.x), warp = static_cast<int>(threadIdx.x) / 32;
  // (warps, slots, kStaged)
  auto* const column_sums = reinterpret_cast<float*>(weight + packs + (call.addend ? kSlots * threads : 0));
  float* const own_column_sums = column_sums + warp * kSlots * kStaged<kPack>;
  if (kCentered && call.sums_columns) {
    const float zeros[kPack] = {};
    for (int i = 0; i < kSlots; ++i) stage(own_column_sums + i * kStaged<kPack>, team.lane, 32, zeros);
  }
  const int64_t block_row = int64_t{blockIdx.x} * call.block_rows;
  const float inverse = 1.0f / static_cast<float>(call.columns);
  const int first_pack = team.warp * 32 * kSlots + team.lane;  // then each 32nd
#pragma unroll 1                                               // mostly it is one, and the registers are dear
  for (int p = static_cast<int>(threadIdx.x); p < packs; p += threads)
    weight[p] = reinterpret_cast<const Pack*>(call.weight)[p];
  __syncthreads();

  // d_weight = sum of dy n, d_bias = sum of dy, with n = (x - mean) rstd.
  float d_weight[kSlots][kPack] = {}, d_bias[kCentered ? kSlots : 1][kPack] = {};
  float most = 0;
  // As many steps for each team, since all take part in the sums.
  for (int first = 0; first < call.block_rows; first += team.teams) {
    const int64_t row = block_row + first + team.index;
    const bool here = first + team.index < call.block_rows && row < call.rows;
    const float mean = kCentered && here ? call.mean[row] : 0, rstd = here ? call.rstd[row] : 0;
    Pack dy[kSlots], x[kSlots];
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      dy[i] = x[i] = {};
      if (simt::in_bounds(here && first_pack + 32 * i < packs)) {
        const int64_t at = row * packs + first_pack + 32 * i;
        dy[i] = reinterpret_cast<const Pack*>(call.dy)[at];
        x[i] = reinterpret_cast<const Pack*>(call.x)[at];
        if (call.addend)
          simt::copy_async_16(addend + i * threads, reinterpret_cast<const Pack*>(call.addend) + at, true);
      }
    }
    simt::copy_commit();
    // The next row waits in the L2 cache while this one is worked on: there are no registers for it.
    const int64_t next = row + team.teams;
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
      if (first + team.teams + team.index < call.block_rows && next < call.rows && first_pack + 32 * i < packs) {
        const int64_t at = next * packs + first_pack + 32 * i;
        simt::prefetch(reinterpret_cast<const Pack*>(call.dy) + at);
        simt::prefetch(reinterpret_cast<const Pack*>(call.x) + at);
      }
    // dx = rstd (g - mean(g) - n mean(g n)) with g = dy weight; RMSNorm's has no mean(g).
    float sums[kSums] = {};
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const Pack w = weight[min(first_pack + 32 * i, packs - 1)];
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const float d = dy[i].get(k), n = (x[i].get(k) - mean) * rstd, g = d * w.get(k);
        sums[0] += g * n;
        if (kCentered) sums[kSums - 1] += g;
        d_weight[i][k] += d * n;
        if (kCentered) d_bias[i][k] += d;
      }
    }
    team.add_up(sums, s.sums);
#pragma unroll
    for (int i = 0; i < kSlots; ++i) simt::forget(dy[i]), simt::forget(x[i]);
    simt::copy_wait<0>();
    const float mean_gn = sums[0] * inverse, mean_g = kCentered ? sums[kSums - 1] * inverse : 0;
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
      if (simt::in_bounds(here && first_pack + 32 * i < packs)) {
        const int64_t at = row * packs + first_pack + 32 * i;
        const Pack w = weight[first_pack + 32 * i], add = call.addend ? addend[i * threads] : Pack{};
        float dx[kPack];
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          const float n = (x[i].get(k) - mean) * rstd;
          dx[k] = (dy[i].get(k) * w.get(k) - mean_g - n * mean_gn) * rstd + add.get(k);
          most = fmaxf(most, fabsf(dx[k]));
        }
        const Pack rounded = simt::packed<T>(dx);
        reinterpret_cast<Pack*>(call.dx)[at] = rounded;
        if (kCentered && call.sums_columns) add_staged(own_column_sums + i * kStaged<kPack>, team.lane, rounded);
      }
  }

  note_largest(to_float(simt::stored<T>(most)), call.largest, s.largest);
  const int outputs = kSums + (kCentered && call.sums_columns ? 1 : 0);
  constexpr int kWarpColumns = 32 * kPack;  // of a slot
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    __syncthreads();  // the slot before has been read
    stage(s.staged[warp][0], team.lane, 32, d_weight[i]);
    if (kCentered) stage(s.staged[warp][1], team.lane, 32, d_bias[i]);
    __syncthreads();
    for (int item = static_cast<int>(threadIdx.x); item < outputs * team.warps * kWarpColumns; item += threads) {
      const int c = item % kWarpColumns, of_warp = item / kWarpColumns % team.warps;
      const int which = item / kWarpColumns / team.warps;
      const int column = (of_warp * kSlots + i) * kWarpColumns + c;
      const int at = staged(c / kPack, c % kPack, 32);
      float sum = 0;
#pragma unroll 4
      for (int t = 0; t < team.teams; ++t) {
        const int w = t * team.warps + of_warp;
        sum += which < kSums ? s.staged[w][which][at] : column_sums[(w * kSlots + i) * kStaged<kPack> + at];
      }
      if (simt::in_bounds(column < call.columns))
        call.partial[(int64_t{blockIdx.x} * outputs + which) * call.columns + column] = sum;
    }
  }
}

// Any shape, any alignment: a block takes its rows one after the other, reads each twice, and keeps the sums in the workspace.
template <class T, bool kCentered>
__global__ void __launch_bounds__(kNormThreads) norm_backward_any_kernel(const __grid_constant__ NormBackward<T> call) {
  constexpr int kSums = kCentered ? 2 : 1;
  auto& s = simt::shared_memory<NormAnyShared>();
  NormTeam team(kNormWarps);
  const float inverse = 1.0f / static_cast<float>(call.columns);
  float* d_weight = call.partial + int64_t{blockIdx.x} * (kSums + (call.sums_columns ? 1 : 0)) * call.columns;
  float* d_bias = d_weight + call.columns;
  float* column_sums = d_bias + call.columns;
  // Each thread clears the sums of its own columns.
  for (int c = static_cast<int>(threadIdx.x); c < call.columns; c += kNormThreads) {
    d_weight[c] = 0;
    if (kCentered) d_bias[c] = 0;
    if (kCentered && call.sums_columns) column_sums[c] = 0;
  }
  float most = 0;
  const int64_t begin = int64_t{blockIdx.x} * call.block_rows, end = min(begin + call.block_rows, call.rows);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * call.columns;
    const float mean = kCentered ? call.mean[row] : 0, rstd = call.rstd[row];
    float sums[kSums] = {};
    for (int c = static_cast<int>(threadIdx.x); c < call.columns; c += kNormThreads) {
      const float d = to_float(call.dy[at + c]), n = (to_float(call.x[at + c]) - mean) * rstd;
      const float g = d * to_float(call.weight[c]);
      sums[0] += g * n;
      d_weight[c] += d * n;
      if (kCentered) {
        sums[kSums - 1] += g;
        d_bias[c] += d;
      }
    }
    team.add_up(sums, s.sums);
    const float mean_gn = sums[0] * inverse, mean_g = kCentered ? sums[kSums - 1] * inverse : 0;
    for (int c = static_cast<int>(threadIdx.x); c < call.columns; c += kNormThreads) {
      const float n = (to_float(call.x[at + c]) - mean) * rstd;
      float dx = (to_float(call.dy[at + c]) * to_float(call.weight[c]) - mean_g - n * mean_gn) * rstd;
      if (call.addend) dx += to_float(call.addend[at + c]);
      const T rounded = simt::stored<T>(dx);
      call.dx[at + c] = rounded;
      if (kCentered && call.sums_columns) column_sums[c] += to_float(rounded);
      most = fmaxf(most, fabsf(dx));
    }
  }
  note_largest(to_float(simt::stored<T>(most)), call.largest, s.largest);
}

// Without the sum over the blocks, of which there are norm_blocks_cuda(rows).
template <class T, bool kCentered>
void norm_backward(cudaStream_t stream, const NormBackward<T>& call) {
  const NormLayout layout =
      norm_layout<T>(kCentered ? 24 : 32, call.columns, call.dy, call.x, call.weight, call.addend, call.dx);
  const dim3 blocks(static_cast<unsigned>(norm_blocks_cuda(call.rows)));
  if (layout.warps == 0) {
    simt::launch(stream, blocks, dim3(kNormThreads), sizeof(NormAnyShared), norm_backward_any_kernel<T, kCentered>,
                 call);
    return;
  }
  constexpr int kPack = simt::kPack<T>, kUnit = 8 / kPack;  // slots of 8 values
  constexpr int kMostSlots = (kCentered ? 3 : 4) * kUnit;
  const auto kernel = layout.slots == kUnit       ? norm_backward_kernel<T, kCentered, kUnit>
                      : layout.slots == 2 * kUnit ? norm_backward_kernel<T, kCentered, 2 * kUnit>
                      : layout.slots == 3 * kUnit ? norm_backward_kernel<T, kCentered, 3 * kUnit>
                                                  : norm_backward_kernel<T, kCentered, kMostSlots>;
  const dim3 threads = norm_threads(layout.warps);
  const size_t addend = call.addend ? static_cast<size_t>(layout.slots) * threads.x * sizeof(simt::Pack<T>) : 0;
  const size_t sums = call.sums_columns ? threads.x / 32 * static_cast<size_t>(layout.slots) * kStaged<kPack> * 4 : 0;
  const size_t weight = static_cast<size_t>(call.columns) * sizeof(T);
  simt::launch(stream, blocks, threads, sizeof(NormBackwardShared<kPack>) + weight + addend + sums, kernel, call,
               layout.warps);
}

}  // namespace llm::cuda
