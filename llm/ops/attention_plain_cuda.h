// Parts of the plain attention kernels: products of tiles of floats in shared memory by a block of 256 threads.
//
// The threads are a 16 x 16 square: thread (y, x) holds of a product of scores the rows y + 16 i and columns x + 16 j, and of
// an output the rows y + 16 i and columns 64 j + 4 x to 64 j + 4 x + 3. Columns from D up to kHead are zeros.
// The tiles are as large as 99 KiB of shared memory, which every GPU from compute capability 8.0 on has, allow.
#pragma once
#include <cmath>

#include "llm/device/simt.h"
#include "llm/graph/kernel.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/typed_cuda.h"

namespace llm::cuda::plain {

using simt::kPack;
using simt::kWholeWarp;
using simt::Pack;

inline constexpr int kThreads = 256;
inline constexpr int kSide = 16;  // of the square of threads

__device__ inline int thread_x() { return static_cast<int>(threadIdx.x) % kSide; }
__device__ inline int thread_y() { return static_cast<int>(threadIdx.x) / kSide; }

// Strides that keep 16-byte reads of 16 rows, and writes of 2 rows side by side, free of bank conflicts.
template <int kTile, int kHead>
using HeadTile = float[kTile][kHead + 4];
template <int kTile>
using ScoreTile = float[kTile][kTile % 32 == 0 ? kTile + 16 : kTile];

// Rows [first, first + kTile) of a matrix (tokens, stride) whose columns [0, head_size) are a head; zeros elsewhere.
template <class T, int kTile, int kHead>
__device__ inline void load_tile(HeadTile<kTile, kHead>& tile, const T* matrix, int64_t stride, int first, int tokens,
                                 int head_size, bool packed) {
  constexpr int kChunks = kHead / kPack<T>;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * kPack<T>;
    const T* from = matrix + (first + row) * stride + column;
    Pack<T> pack{};
    if (simt::in_bounds(first + row < tokens)) {
      if (packed) {
        if (simt::in_bounds(column < head_size)) pack = *reinterpret_cast<const Pack<T>*>(from);
      } else {
        for (int e = 0; e < kPack<T>; ++e)
          if (simt::in_bounds(column + e < head_size)) pack.values[e] = from[e];
      }
    }
    // The halves of a pack in an order that lets the stores of eight threads touch every bank once.
    const int turned = kPack<T> == 8 ? static_cast<int>(threadIdx.x) & 4 : 0;
    const auto four = [&](int e) {
      return make_float4(pack.get(e), pack.get(e + 1), pack.get(e + 2), pack.get(e + 3));
    };
#pragma unroll
    for (int e = 0; e < kPack<T>; e += 4)
      *reinterpret_cast<float4*>(&tile[row][column + (e ^ turned)]) = turned ? four(kPack<T> - 4 - e) : four(e);
  }
}

// s = a b^T, over the heads' channels.
template <int kTile, int kHead>
__device__ inline void score_product(float (&s)[kTile / kSide][kTile / kSide], const HeadTile<kTile, kHead>& a,
                                     const HeadTile<kTile, kHead>& b) {
  constexpr int kRows = kTile / kSide;
  const int x = thread_x(), y = thread_y();
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < kRows; ++j) s[i][j] = 0;
#pragma unroll 4
  for (int d = 0; d < kHead; d += 4) {
    float4 left[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) left[i] = *reinterpret_cast<const float4*>(&a[y + kSide * i][d]);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const float4 right = *reinterpret_cast<const float4*>(&b[x + kSide * j][d]);
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        s[i][j] += left[i].x * right.x + left[i].y * right.y + left[i].z * right.z + left[i].w * right.w;
    }
  }
}

// out += p m, over the tile's rows.
template <int kTile, int kHead>
__device__ inline void output_product(float (&out)[kTile / kSide][kHead / kSide], const ScoreTile<kTile>& p,
                                      const HeadTile<kTile, kHead>& m) {
  constexpr int kRows = kTile / kSide;
  const int x = thread_x(), y = thread_y();
#pragma unroll 2
  for (int k = 0; k < kTile; k += 4) {
    float left[kRows][4];
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      *reinterpret_cast<float4*>(left[i]) = *reinterpret_cast<const float4*>(&p[y + kSide * i][k]);
#pragma unroll
    for (int e = 0; e < 4; ++e)
#pragma unroll
      for (int j = 0; j < kHead / 64; ++j) {
        const float4 right = *reinterpret_cast<const float4*>(&m[k + e][64 * j + 4 * x]);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          out[i][4 * j] += left[i][e] * right.x;
          out[i][4 * j + 1] += left[i][e] * right.y;
          out[i][4 * j + 2] += left[i][e] * right.z;
          out[i][4 * j + 3] += left[i][e] * right.w;
        }
      }
  }
}

template <int kTile>
__device__ inline void store_scores(ScoreTile<kTile>& tile, const float (&s)[kTile / kSide][kTile / kSide]) {
#pragma unroll
  for (int i = 0; i < kTile / kSide; ++i)
#pragma unroll
    for (int j = 0; j < kTile / kSide; ++j) tile[thread_y() + kSide * i][thread_x() + kSide * j] = s[i][j];
}

// Row i of the thread's part of an output, times `factor`, to columns [0, head_size) of `row`. Gives the largest of its
// absolute values.
template <class T, int kColumns>
__device__ inline float store_row(T* row, const float (&out)[kColumns], float factor, int head_size, bool packed) {
  float most = 0;
#pragma unroll
  for (int j = 0; j < kColumns / 4; ++j) {
    const int column = 64 * j + 4 * thread_x();
    Pack<T, 4> pack;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      pack.set(e, out[4 * j + e] * factor);
      most = fmaxf(most, fabsf(pack.get(e)));  // columns behind the last are zeros
    }
    if (packed) {
      if (simt::in_bounds(column < head_size)) *reinterpret_cast<Pack<T, 4>*>(row + column) = pack;
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (simt::in_bounds(column + e < head_size)) row[column + e] = pack.values[e];
    }
  }
  return most;
}

// Over the 16 threads that share rows.
__device__ inline float sum_over_x(float value) {
#pragma unroll
  for (int offset = kSide / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}
__device__ inline float max_over_x(float value) {
#pragma unroll
  for (int offset = kSide / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, offset));
  return value;
}

inline dim3 grid_of(int64_t heads, int64_t tiles) {
  return dim3(static_cast<unsigned>(heads), static_cast<unsigned>(tiles));
}

// Calls run<T, kTile, kHead>() for the type and the head size of the queries, input `queries`: heads of up to 64, 128
// or 256 channels, with the tile that goes with each.
template <int kTile64, int kTile128, int kTile256, class Run>
void with_tiles(const KernelCall& call, size_t queries, Run&& run) {
  with_type(call.in_dtype(queries), [&](auto typed) {
    using T = decltype(typed);
    const int64_t head_size = attention_shape(call, queries).head_size;
    if (head_size <= 64) return run.template operator()<T, kTile64, 64>();
    if (head_size <= 128) return run.template operator()<T, kTile128, 128>();
    run.template operator()<T, kTile256, 256>();
  });
}

}  // namespace llm::cuda::plain
