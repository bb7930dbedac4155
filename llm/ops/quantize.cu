// quantize on the GPU, in two kernels. The first finds the largest absolute value of parts of the matrix. In the second
// each block finds the largest of these and rounds a 64 x 64 tile, which it transposes in shared memory where the
// transposed matrix is wanted. The first kernel is skipped where the kernel that wrote the matrix has found its largest
// value.
// Bytes: x is read twice, the second time from the L2 cache where it fits, or once without the first kernel; each
// output is written once.
#include "llm/ops/quantize_cuda.h"

#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kTile = 64;

struct MostShared {
  float most[kWarps];
};

// The maximum over a block, in all of its threads. It does not depend on the order.
__device__ float block_most(float most, float (&shared)[kWarps]) {
  for (int offset = 16; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(simt::kWholeWarp, most, offset));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = most;
  __syncthreads();
  for (const float m : shared) most = fmaxf(most, m);
  return most;
}

// x (count) -> most_of_part (blocks). All threads of the grid go through x side by side, 16 bytes at a time where the
// address allows it; block p leaves the largest absolute value that its threads have read.
template <class X>
__global__ void __launch_bounds__(kThreads) most_kernel(const X* x, float* most_of_part, int64_t count, bool packed) {
  auto& s = simt::shared_memory<MostShared>();
  constexpr int kPack = simt::kPack<X>;
  float most = 0;
  const int64_t threads = int64_t{gridDim.x} * kThreads, me = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t packs = packed ? count / kPack : 0;
  for (int64_t i = me; i < packs; i += threads) {
    const auto pack = reinterpret_cast<const simt::Pack<X>*>(x)[i];
#pragma unroll
    for (int k = 0; k < kPack; ++k) most = fmaxf(most, fabsf(pack.get(k)));
  }
  for (int64_t i = packs * kPack + me; i < count; i += threads) most = fmaxf(most, fabsf(to_float(x[i])));
  most = block_most(most, s.most);
  if (threadIdx.x == 0) most_of_part[blockIdx.x] = most;
}

template <class T>
struct TileShared {
  float most[kWarps];
  T tile[kTile][kTile + 4];  // the padding puts the 4-byte words of neighbouring rows into different banks
};

// Rounds one tile of 64 x 64: x (rows, columns) -> q (rows, columns), transposed (columns, rows), either of which may
// be null. Neighbouring threads read and write along rows; they write 4 bytes at a time where the row length allows it.
template <class X, class T>
__global__ void __launch_bounds__(kThreads) round_kernel(const X* x, const float* most_of_part, int parts, T* q,
                                                         T* transposed, float* scale, int64_t rows, int64_t columns) {
  auto& s = simt::shared_memory<TileShared<T>>();
  float most = 0;
  for (int p = static_cast<int>(threadIdx.x); p < parts; p += kThreads) most = fmaxf(most, most_of_part[p]);
  most = block_most(most, s.most);
  const float inverse = inverse_scale<T>(most);
  if (blockIdx.x == 0 && threadIdx.x == 0) *scale = scale_of<T>(most);

  const int64_t across = (columns + kTile - 1) / kTile;
  const int64_t row = blockIdx.x / across * kTile, column = blockIdx.x % across * kTile;
  constexpr int kQuads = kTile / 4;
  const int quad = static_cast<int>(threadIdx.x) % kQuads, line = static_cast<int>(threadIdx.x) / kQuads;
  const bool whole = columns % 4 == 0;
  for (int r = line; r < kTile; r += kThreads / kQuads) {
    simt::Pack<T, 4> values;
    for (int k = 0; k < 4; ++k) {
      const int64_t at_row = row + r, at_column = column + 4 * quad + k;
      float v = 0;
      if (simt::in_bounds(at_row < rows && at_column < columns)) v = to_float(x[at_row * columns + at_column]);
      values.values[k] = nearest_fp8<T>(v * inverse);
    }
    *reinterpret_cast<simt::Pack<T, 4>*>(&s.tile[r][4 * quad]) = values;
    if (!q) continue;
    const int64_t at = (row + r) * columns + column + 4 * quad;
    if (whole) {
      if (simt::in_bounds(row + r < rows && column + 4 * quad < columns))
        *reinterpret_cast<simt::Pack<T, 4>*>(q + at) = values;
    } else {
      for (int k = 0; k < 4; ++k)
        if (simt::in_bounds(row + r < rows && column + 4 * quad + k < columns)) q[at + k] = values.values[k];
    }
  }
  if (!transposed) return;
  __syncthreads();
  const bool whole_rows = rows % 4 == 0;
  for (int c = line; c < kTile; c += kThreads / kQuads) {
    simt::Pack<T, 4> values;
    for (int k = 0; k < 4; ++k) values.values[k] = s.tile[4 * quad + k][c];
    const int64_t at = (column + c) * rows + row + 4 * quad;
    if (whole_rows) {
      if (simt::in_bounds(column + c < columns && row + 4 * quad < rows))
        *reinterpret_cast<simt::Pack<T, 4>*>(transposed + at) = values;
    } else {
      for (int k = 0; k < 4; ++k)
        if (simt::in_bounds(column + c < columns && row + 4 * quad + k < rows)) transposed[at + k] = values.values[k];
    }
  }
}

template <class X, class T>
void run(const KernelCall& call) {
  const int64_t rows = call.in_shape(0).rows(), columns = call.in_shape(0).last(), count = rows * columns;
  const X* x = call.in<X>(0);
  const float* given = call.in(1);
  float* most = call.workspace();
  const int64_t wanted = (count + kThreads * 32 - 1) / (kThreads * 32);
  const int parts = given ? 1 : static_cast<int>(wanted < 1 ? 1 : wanted > kQuantizeParts ? kQuantizeParts : wanted);
  const cudaStream_t stream = call.cuda->stream();
  if (!given)
    simt::launch(stream, dim3(static_cast<unsigned>(parts)), dim3(kThreads), sizeof(MostShared), most_kernel<X>, x,
                 most, count, reinterpret_cast<uintptr_t>(x) % 16 == 0);
  const int64_t tiles = (rows + kTile - 1) / kTile * ((columns + kTile - 1) / kTile);
  simt::launch(stream, dim3(static_cast<unsigned>(tiles)), dim3(kThreads), sizeof(TileShared<T>), round_kernel<X, T>, x,
               given ? given : most, parts, call.out<T>(0), call.out<T>(1), call.out(2), rows, columns);
}

}  // namespace

void quantize(const KernelCall& call) {
  const bool narrow = call.in_dtype(0) == DType::bf16;
  if (call.node.attributes.flag("e5m2")) return narrow ? run<bf16, e5m2>(call) : run<float, e5m2>(call);
  return narrow ? run<bf16, e4m3>(call) : run<float, e4m3>(call);
}

}  // namespace llm::cuda
