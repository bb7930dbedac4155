// grouped_linear and its backward passes on the GPU, by hand: how many rows an expert has is known on the device alone.
//
// A block computes a 64 x 64 tile of one expert's product. It goes through the sum 32 steps at a time: while the tiles
// of one stage are multiplied, on the tensor cores in bf16 and by plain arithmetic in fp32, the next stage is on its
// way to registers. There are as many blocks as there may be tiles, however the rows are spread over the experts; those
// that are left over end at once. Each element is one sum in a fixed order that does not depend on the number of rows.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/expert_blocks.h"
#include "llm/ops/typed_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kTile = 64, kDepth = 32, kThreads = 128;

// Elements of a row of a tile in shared memory. The padding puts what a warp reads at once into different banks.
template <class T>
constexpr int kRow = kDepth + (sizeof(T) == 2 ? 8 : 1);

template <class T>
using Tile = T[kTile][kRow<T>];

template <class T>
struct Shared {
  alignas(16) Tile<T> a, b;
  int64_t first_row, rows;  // of the expert
  int expert, tile;         // `tile`: which of the expert's
};

// A factor of a product: `size` indices i (rows of the left one, columns of the right one) by `depth` steps p of the
// sum. Element (i, p) lies at data[i stride + p] or, with kByStep, at data[p stride + i]. A thread fetches packs of
// kWidth neighbouring elements of its part of a tile; what lies beyond the factor is zero.
template <class T, bool kByStep, int kWidth>
class Factor {
 public:
  __device__ Factor(const T* data, int64_t stride, int64_t first, int64_t size, int64_t depth)
      : data_(data), stride_(stride), first_(first), size_(size), depth_(depth) {}

  __device__ void fetch(int64_t step) {
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      const int64_t i = first_ + index(r), p = step + depth(r);
      held_[r] = Pack{};
      if (simt::in_bounds(i < size_ && p < depth_))
        held_[r] = *reinterpret_cast<const Pack*>(data_ + (kByStep ? p * stride_ + i : i * stride_ + p));
    }
  }

  __device__ void put(Tile<T>& tile) const {
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      if constexpr (!kByStep && kRow<T> % kWidth == 0) {
        *reinterpret_cast<Pack*>(&tile[index(r)][depth(r)]) = held_[r];
      } else {
#pragma unroll
        for (int k = 0; k < kWidth; ++k)
          (kByStep ? tile[index(r) + k][depth(r)] : tile[index(r)][depth(r) + k]) = held_[r].values[k];
      }
    }
  }

 private:
  using Pack = simt::Pack<T, kWidth>;
  static constexpr int kEach = kTile * kDepth / kWidth / kThreads, kLine = (kByStep ? kTile : kDepth) / kWidth;
  __device__ static int number(int r) { return static_cast<int>(threadIdx.x) + r * kThreads; }
  __device__ static int index(int r) { return kByStep ? number(r) % kLine * kWidth : number(r) / kLine; }
  __device__ static int depth(int r) { return kByStep ? number(r) / kLine : number(r) % kLine * kWidth; }

  const T* data_;
  const int64_t stride_, first_, size_, depth_;
  Pack held_[kEach];
};

template <class T>
class Sums;

// Each thread holds 8 x 4 elements of the tile.
template <>
class Sums<float> {
 public:
  __device__ void add(const Shared<float>& s) {
#pragma unroll 8
    for (int p = 0; p < kDepth; ++p) {
      float a[8], b[4];
#pragma unroll
      for (int i = 0; i < 8; ++i) a[i] = s.a[row(i)][p];
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j] = s.b[column(j)][p];
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum_[i][j] += a[i] * b[j];
    }
  }
  template <class Use>
  __device__ void each(Use use) const {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) use(row(i), column(j), sum_[i][j]);
  }

 private:
  __device__ static int row(int i) { return static_cast<int>(threadIdx.x) / 16 + 8 * i; }
  __device__ static int column(int j) { return static_cast<int>(threadIdx.x) % 16 + 16 * j; }
  float sum_[8][4] = {};
};

// Each of four warps holds a quarter of the tile, 32 x 32, as 2 x 4 accumulators of simt::mma_16x8x16.
template <>
class Sums<bf16> {
 public:
  __device__ void add(const Shared<bf16>& s) {
#pragma unroll
    for (int p = 0; p < kDepth; p += 16) {
      uint32_t a[2][4], b[4][2];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[m][i] = pair(s.a, first_row() + 16 * m + group() + i % 2 * 8, p + 2 * member() + i / 2 * 8);
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) b[n][i] = pair(s.b, first_column() + 8 * n + group(), p + 2 * member() + i * 8);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) simt::mma_16x8x16(sum_[m][n], a[m], b[n]);
    }
  }
  template <class Use>
  __device__ void each(Use use) const {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          use(first_row() + 16 * m + group() + i / 2 * 8, first_column() + 8 * n + 2 * member() + i % 2, sum_[m][n][i]);
  }

 private:
  __device__ static int group() { return static_cast<int>(threadIdx.x) % 32 / 4; }
  __device__ static int member() { return static_cast<int>(threadIdx.x) % 4; }
  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / 32 % 2 * 32; }
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) / 64 * 32; }
  __device__ static uint32_t pair(const Tile<bf16>& tile, int row, int p) {
    uint32_t both;
    std::memcpy(&both, __builtin_assume_aligned(&tile[row][p], 4), sizeof both);
    return both;
  }
  float sum_[2][4][4] = {};
};

// Calls use(row, column, value) for the elements of the tile that this thread holds. All threads take part.
template <class T, class A, class B, class Use>
__device__ void multiply(Shared<T>& s, A a, B b, int64_t depth, Use use) {
  Sums<T> sums;
  a.fetch(0), b.fetch(0);
  for (int64_t p = 0; p < depth; p += kDepth) {
    a.put(s.a), b.put(s.b);
    __syncthreads();
    a.fetch(p + kDepth), b.fetch(p + kDepth);
    sums.add(s);
    __syncthreads();
  }
  sums.each(use);
}

// Finds the tile of this block, by thread 0. Those behind the last expert's are of rows that are no expert's (number
// E); then come those that are left over, without rows.
template <class T>
__device__ void find_tile(Shared<T>& s, const int32_t* counts, int experts, int64_t all_rows) {
  int64_t first = 0, tile = blockIdx.x;
  int e = 0;
  for (; e < experts && tile >= (counts[e] + kTile - 1) / kTile; ++e) {
    tile -= (counts[e] + kTile - 1) / kTile;
    first += counts[e];
  }
  s.expert = e, s.first_row = first, s.tile = static_cast<int>(tile);
  s.rows = e < experts ? counts[e] : all_rows - first;
}

// y = x W^T or, with kBackwards, dx = dy W.
template <class T, bool kBackwards, int kWidth>
__global__ void __launch_bounds__(kThreads) rows_kernel(const T* __restrict__ x,             // (rows, in)
                                                        const T* __restrict__ w,             // (experts, ..)
                                                        const int32_t* __restrict__ counts,  // (experts)
                                                        int experts, int64_t rows, int64_t in, int64_t out,
                                                        T* y) {  // (rows, out)
  auto& s = simt::shared_memory<Shared<T>>();
  if (threadIdx.x == 0) find_tile(s, counts, experts, rows);
  __syncthreads();
  const int64_t row = int64_t{s.tile} * kTile, column = int64_t{blockIdx.y} * kTile, own_rows = s.rows;
  if (row >= own_rows) return;
  const int64_t depth = s.expert < experts ? in : 0;
  const Factor<T, false, kWidth> a(x + s.first_row * in, in, row, own_rows, depth);
  const Factor<T, kBackwards, kWidth> b(w + s.expert * in * out, kBackwards ? out : in, column, out, depth);
  T* const own = y + s.first_row * out;
  multiply(s, a, b, depth, [&](int r, int c, float value) {
    if (simt::in_bounds(row + r < own_rows && column + c < out))
      own[(row + r) * out + column + c] = simt::stored<T>(value);
  });
}

// dW = dy^T x of one expert.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) weight_kernel(const T* __restrict__ dy,            // (rows, out)
                                                          const T* __restrict__ x,             // (rows, in)
                                                          const int32_t* __restrict__ counts,  // (experts)
                                                          int64_t in, int64_t out, bool add,
                                                          float* dw) {  // (experts, out, in)
  auto& s = simt::shared_memory<Shared<T>>();
  const int64_t tiles = (out + kTile - 1) / kTile, expert = blockIdx.x / tiles;
  if (threadIdx.x == 0) {
    int64_t first = 0;
    for (int64_t e = 0; e < expert; ++e) first += counts[e];
    s.first_row = first, s.rows = counts[expert];
  }
  __syncthreads();
  const int64_t row = blockIdx.x % tiles * kTile, column = int64_t{blockIdx.y} * kTile, depth = s.rows;
  const Factor<T, true, kWidth> a(dy + s.first_row * out, out, row, out, depth);
  const Factor<T, true, kWidth> b(x + s.first_row * in, in, column, in, depth);
  float* const own = dw + expert * out * in;
  multiply(s, a, b, depth, [&](int r, int c, float value) {
    if (!simt::in_bounds(row + r < out && column + c < in)) return;
    float& at = own[(row + r) * in + column + c];
    at = add ? at + value : value;
  });
}

unsigned tiles(int64_t size) { return static_cast<unsigned>((size + kTile - 1) / kTile); }

// Calls body(T{}, width of a pack), by the type of the first two inputs, and by whether their rows, of these widths,
// can be read in packs.
template <class Body>
void with_packs(const KernelCall& call, int64_t first_width, int64_t other_width, Body&& body) {
  with_type(call.in_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    const bool packs = simt::packs(call.in<T>(0), first_width) && simt::packs(call.in<T>(1), other_width);
    if (packs)
      body(typed, std::integral_constant<int, simt::kPack<T>>());
    else
      body(typed, std::integral_constant<int, 1>());
  });
}

template <bool kBackwards>
void multiply_rows(const KernelCall& call) {
  const int64_t rows = call.in_shape(0).rows(), in = call.in_shape(0).last(), out = call.out_shape(0).last();
  const int64_t experts = call.in_shape(2).elements();
  // The rows of no expert are like those of one more.
  const dim3 grid(static_cast<unsigned>(most_tiles(rows, experts + 1, kTile)), tiles(out));
  with_packs(call, in, kBackwards ? out : in, [&](auto typed, auto width) {
    using T = decltype(typed);
    simt::launch(call.cuda->stream(), grid, dim3(kThreads), sizeof(Shared<T>), rows_kernel<T, kBackwards, width>,
                 call.in<T>(0), call.in<T>(1), call.in_int(2), static_cast<int>(experts), rows, in, out,
                 call.out<T>(0));
  });
}

}  // namespace

void grouped_linear(const KernelCall& call) { multiply_rows<false>(call); }
void grouped_linear_backward_input(const KernelCall& call) { multiply_rows<true>(call); }

void grouped_linear_backward_weight(const KernelCall& call) {
  const int64_t out = call.in_shape(0).last(), in = call.in_shape(1).last(), experts = call.in_shape(2).elements();
  with_packs(call, out, in, [&](auto typed, auto width) {
    using T = decltype(typed);
    simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(experts) * tiles(out), tiles(in)), dim3(kThreads),
                 sizeof(Shared<T>), weight_kernel<T, width>, call.in<T>(0), call.in<T>(1), call.in_int(2), in, out,
                 call.accumulates(0), call.out(0));
  });
}

}  // namespace llm::cuda
