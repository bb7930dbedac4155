// The gradient of a bias: db (O) = sum over the rows of dy (rows, O), in two passes. In the first, a block takes a
// chunk of rows and as many columns as a warp reads at once, 16 bytes a thread; each of its 16 warps takes every
// sixteenth row, and the block adds up the warps' sums at the end. The second pass adds up the chunks
// (llm/ops/norm_cuda.h); with one chunk there is no second pass.
//
// Bytes: dy is read once; the partial sums, chunks x O floats, are written and read: 3% of dy for chunks of 128 rows of
// bf16.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/linear_cuda.h"
#include "llm/ops/norm_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps;

// The warps' sums by warp, element of a pack and lane. They are read by column, which is N lane + element: rows of
// 32 + 32 / N floats put 32 neighbouring columns into different banks.
template <int N>
struct Shared {
  float sums[kWarps][N][32 + (N > 1 ? 32 / N : 0)];
};

// dy (rows, O) -> partial (chunks, O), added to what is there with `add`.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    bias_gradient_kernel(const T* __restrict__ dy, int64_t rows, int64_t O, int64_t chunk_rows, bool add,
                         float* __restrict__ partial) {
  auto& s = simt::shared_memory<Shared<N>>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t column = (int64_t{blockIdx.x} * 32 + lane) * N;
  const int64_t first = blockIdx.y * chunk_rows, last = min(rows, first + chunk_rows);
  float sum[N] = {};
  if (simt::in_bounds(column < O)) {
#pragma unroll 4
    for (int64_t row = first + warp; row < last; row += kWarps) {
      const auto pack = *reinterpret_cast<const simt::Pack<T, N>*>(dy + row * O + column);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += pack.get(i);
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) s.sums[warp][i][lane] = sum[i];
  __syncthreads();
  // Neighbouring threads take neighbouring columns, so that their stores coalesce.
  for (int c = static_cast<int>(threadIdx.x); c < 32 * N; c += kThreads) {
    const int64_t to = int64_t{blockIdx.x} * 32 * N + c;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += s.sums[w][c % N][c / N];
    float* out = partial + blockIdx.y * O + to;
    if (simt::in_bounds(to < O)) *out = add ? *out + total : total;
  }
}

template <class T>
void run(cudaStream_t stream, const T* dy, int64_t rows, int64_t O, bool accumulate, float* workspace, float* db) {
  const int64_t chunk = bias_chunk_rows(rows), chunks = (rows + chunk - 1) / chunk;
  const bool packs = simt::packs(dy, O), direct = chunks <= 1;
  const int64_t columns = 32 * (packs ? simt::kPack<T> : 1);
  const dim3 grid(static_cast<unsigned>((O + columns - 1) / columns),
                  static_cast<unsigned>(std::max<int64_t>(1, chunks)));
  simt::launch(stream, grid, dim3(kThreads), packs ? sizeof(Shared<simt::kPack<T>>) : sizeof(Shared<1>),
               packs ? bias_gradient_kernel<T, simt::kPack<T>> : bias_gradient_kernel<T, 1>, dy, rows, O, chunk,
               direct && accumulate, direct ? db : workspace);
  if (!direct) sum_partials<1>(stream, workspace, chunks, O, {{db}, {accumulate}});
}

}  // namespace

void bias_gradient(CUstream_st* stream, const void* dy, DType dtype, int64_t rows, int64_t O, bool accumulate,
                   float* workspace, float* db) {
  if (O == 0) return;
  if (dtype == DType::bf16)
    run(stream, static_cast<const bf16*>(dy), rows, O, accumulate, workspace, db);
  else
    run(stream, static_cast<const float*>(dy), rows, O, accumulate, workspace, db);
}

void bias_gradient(const KernelCall& call) {
  bias_gradient(call.cuda->stream(), call.in<void>(0), call.in_dtype(0), call.in_shape(0).rows(),
                call.in_shape(0).last(), call.accumulates(0), call.workspace(), call.out(0));
}

}  // namespace llm::cuda
