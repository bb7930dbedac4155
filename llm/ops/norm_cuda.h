// What the norms' CUDA kernels share: the threads that hold a row together, and the sums of a weight's gradient over rows.
#pragma once
#include "llm/ops/cuda_workspaces.h"
#include "llm/ops/largest_cuda.h"
#include "llm/ops/reduce_cuda.h"

namespace llm::cuda {

inline constexpr int kNormThreads = 512, kNormWarps = kNormThreads / 32;  // of a block, at the most

// What the warps of a block tell each other; [turn] alternates, so that one barrier a sum is enough: who writes a place again
// has passed the barrier after its last readers.
struct NormSums {
  float sums[2][2][kNormWarps];
};

struct NormAnyShared {
  NormSums sums;
  LargestShared largest;
};

// Two small blocks on a multiprocessor are better than a large one, of which all warps wait at the same time.
inline dim3 norm_threads(int warps_of_row) {
  return dim3(static_cast<unsigned>(warps_of_row <= kNormWarps / 2 ? kNormThreads / 2 : kNormThreads));
}

// The threads of a block that hold one row together: 1, 2, 4, 8 or 16 warps. All teams of a block take part in each sum.
struct NormTeam {
  int warps, teams;  // in a team, in the block
  int index, warp;   // which team of the block, which warp of the team
  int lane;
  int turn = 0;

  __device__ explicit NormTeam(int warps_of_row)
      : warps(warps_of_row),
        teams(static_cast<int>(blockDim.x) / 32 / warps_of_row),
        index(static_cast<int>(threadIdx.x) / 32 / warps_of_row),
        warp(static_cast<int>(threadIdx.x) / 32 % warps_of_row),
        lane(static_cast<int>(threadIdx.x) % 32) {}

  // Each x[i] becomes its sum over the team.
  template <int kValues>
  __device__ void add_up(float (&x)[kValues], NormSums& s) {
    static_assert(kValues <= 2);
#pragma unroll
    for (int i = 0; i < kValues; ++i) x[i] = warp_sum(x[i]);
    if (warps == 1) return;
    if (threadIdx.x % 32 == 0)
      for (int i = 0; i < kValues; ++i) s.sums[turn][i][threadIdx.x / 32] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      x[i] = 0;
#pragma unroll 1
      for (int w = 0; w < warps; ++w) x[i] += s.sums[turn][i][index * warps + w];
    }
    turn ^= 1;
  }
};

// A row in registers: a warp of the team holds `slots` times 32 packs of 16 bytes, side by side. As few warps as hold the
// row in `most` values a thread, since then most rows are under way at once. 0 warps: it does not fit, or is not aligned.
struct NormLayout {
  int warps = 0, slots = 0;
};
template <class T, class... Rows>
NormLayout norm_layout(int most, int64_t columns, const Rows*... rows) {
  constexpr int kPack = simt::kPack<T>;
  if (!(... && simt::packs<T>(rows, columns))) return {};
  for (int warps = 1; warps <= kNormWarps; warps *= 2) {
    const int64_t values = (columns + 32 * warps - 1) / (32 * warps);  // of a thread
    if (values <= most) return {warps, static_cast<int>((values + 7) / 8) * 8 / kPack};
  }
  return {};
}

// Where lane `lane` of `lanes` puts its value `i` (of 4 or 8) in shared memory: in fours, so that they are written as 16
// bytes, and the second fours 16 banks further, so that they are read in the order of columns without conflicts.
__device__ inline constexpr int staged(int lane, int i, int lanes) {
  return i / 4 * (4 * lanes + 16) + 4 * lane + i % 4;
}
template <int kValues>
inline constexpr int kStaged = kValues / 4 * (4 * 32 + 16);  // floats of a whole warp

template <int kValues>
__device__ void stage(float* to, int lane, int lanes, const float (&x)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; i += 4)
    *reinterpret_cast<simt::Pack<float>*>(to + staged(lane, i, lanes)) = {x[i], x[i + 1], x[i + 2], x[i + 3]};
}

// Adds up what blocks left: out[c] = (out[c] +) sum over b of partial[b][c]. A block of threads takes 32 columns; each of its 32
// warps adds a 32nd of the blocks, then these sums are added.
inline constexpr int kPartialThreads = 1024, kPartialWarps = kPartialThreads / 32;

struct PartialShared {
  float sums[kPartialWarps][32];
};

template <int kOutputs>
struct PartialOutputs {
  float* out[kOutputs];  // (columns) each
  bool add[kOutputs];    // to what is there
};

template <int kOutputs>
__global__ void __launch_bounds__(kPartialThreads)
    sum_partials_kernel(const float* __restrict__ partial,  // (blocks, kOutputs, columns)
                        int blocks, int64_t columns, const __grid_constant__ PartialOutputs<kOutputs> outputs) {
  auto& s = simt::shared_memory<PartialShared>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int which = static_cast<int>(blockIdx.y);
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  const int share = (blocks + kPartialWarps - 1) / kPartialWarps, end = min(blocks, (warp + 1) * share);
  // Threads beyond the last column add it up as well, and do not write it.
  const float* p = partial + which * columns + min(column, columns - 1);
  float sum = 0;
#pragma unroll 8
  for (int b = warp * share; b < end; ++b) sum += p[b * kOutputs * columns];
  s.sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && simt::in_bounds(column < columns)) {
    sum = 0;
    for (int w = 0; w < kPartialWarps; ++w) sum += s.sums[w][lane];
    float* out = outputs.out[which];
    out[column] = outputs.add[which] ? out[column] + sum : sum;
  }
}

template <int kOutputs>
void sum_partials(cudaStream_t stream, const float* partial, int64_t blocks, int64_t columns,
                  const PartialOutputs<kOutputs>& outputs) {
  simt::launch(stream, dim3(static_cast<unsigned>((columns + 31) / 32), kOutputs), dim3(kPartialThreads),
               sizeof(PartialShared), sum_partials_kernel<kOutputs>, partial, static_cast<int>(blocks), columns,
               outputs);
}

}  // namespace llm::cuda
