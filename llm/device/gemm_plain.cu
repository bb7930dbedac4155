// c (m, n) = scale a (m, k) b (k, n) [+ bias (n)] [+ c], in fp32 on the ordinary cores: for products for which cuBLASLt
// has no algorithm, and for the test bed.
//
// A block computes a 64 x 64 tile of c. It goes through k 16 steps at a time, whose pieces of a and b it puts into
// shared memory as floats; each of its 256 threads holds 4 x 4 elements of the tile, 16 apart. Each element of c is one
// sum over k, in order. Bytes: a is read n / 64 times, b is read m / 64 times, c is written once.
#include "llm/device/gemm_plain_cuda.h"

#include "llm/base/fp8.h"
#include "llm/device/simt.h"

namespace llm {
namespace {

constexpr int kTile = 64, kDepth = 16, kSide = 16, kThreads = kSide * kSide, kEach = kTile / kSide;

struct Shared {
  // The padding puts the 16 x 2 elements that a warp writes at once into 32 different banks.
  float a[kDepth][kTile + 2], b[kDepth][kTile + 2];
};

template <class T>
struct View {
  const T* data;
  int64_t stride;
  bool transposed;
};

// Reads one tile, 64 indices i (rows of a, columns of b) by 16 indices p of k, into shared memory, with zeros beyond
// the matrix. Element (i, p) lies at data[i * stride + p] or, with `k_by_stride`, at data[p * stride + i]; in either
// case neighbouring threads read neighbouring memory.
template <class T>
__device__ void load_tile(float (&tile)[kDepth][kTile + 2], const T* data, int64_t stride, bool k_by_stride,
                          int64_t first_i, int64_t size, int64_t first_p, int64_t k) {
  const int t = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int r = 0; r < kTile * kDepth / kThreads; ++r) {
    const int p = k_by_stride ? t / kTile + r * (kThreads / kTile) : t % kDepth;
    const int i = k_by_stride ? t % kTile : t / kDepth + r * (kThreads / kDepth);
    const int64_t at_i = first_i + i, at_p = first_p + p;
    float x = 0;
    if (simt::in_bounds(at_i < size && at_p < k))
      x = to_float(data[k_by_stride ? at_p * stride + at_i : at_i * stride + at_p]);
    tile[p][i] = x;
  }
}

template <class A, class B, class C>
__global__ void __launch_bounds__(kThreads)
    plain_kernel(int64_t m, int64_t n, int64_t k, View<A> a, View<B> b, C* c, int64_t c_stride, bool accumulate,
                 const C* bias, const float* a_scale, const float* b_scale) {
  auto& s = simt::shared_memory<Shared>();
  const int64_t tiles = (n + kTile - 1) / kTile;  // in a row of tiles
  const int64_t row = blockIdx.x / tiles * kTile, column = blockIdx.x % tiles * kTile;
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  float sum[kEach][kEach] = {};
  for (int64_t p = 0; p < k; p += kDepth) {
    load_tile(s.a, a.data, a.stride, a.transposed, row, m, p, k);
    load_tile(s.b, b.data, b.stride, !b.transposed, column, n, p, k);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      float u[kEach], v[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) u[i] = s.a[d][y + kSide * i], v[i] = s.b[d][x + kSide * i];
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) sum[i][j] += u[i] * v[j];
    }
    __syncthreads();
  }
  const float scale = (a_scale ? *a_scale : 1) * (b_scale ? *b_scale : 1);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t at_row = row + y + kSide * i, at_column = column + x + kSide * j;
      if (simt::in_bounds(at_row < m && at_column < n)) {
        C* out = c + at_row * c_stride + at_column;
        float value = sum[i][j] * scale;
        if (bias) value += to_float(bias[at_column]);
        if (accumulate) value += to_float(*out);
        *out = simt::stored<C>(value);
      }
    }
}

template <class T>
View<T> view(const CudaMatrix& matrix) {
  return {static_cast<const T*>(matrix.data), matrix.stride, matrix.transposed};
}

template <class A, class B, class C>
void run(cudaStream_t stream, const CudaGemm& g) {
  const int64_t blocks = (g.m + kTile - 1) / kTile * ((g.n + kTile - 1) / kTile);
  if (blocks > INT32_MAX) fail("CUDA: ", describe(g), " has too many tiles");
  const void* bias = g.epilogue == GemmEpilogue::bias ? g.bias : nullptr;
  simt::launch(stream, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), sizeof(Shared), plain_kernel<A, B, C>, g.m,
               g.n, g.k, view<A>(g.a), view<B>(g.b), static_cast<C*>(g.c), g.c_stride, g.accumulate,
               static_cast<const C*>(bias), g.a_scale, g.b_scale);
}

// Calls body(T{}) for the type of an 8-bit matrix.
template <class Body>
void with_fp8(DType dtype, Body&& body) {
  dtype == DType::e5m2 ? body(e5m2{}) : body(e4m3{});
}

}  // namespace

void gemm_plain_cuda(CUstream_st* stream, const CudaGemm& g) {
  const bool to_float = g.c_dtype == DType::fp32, to_bf16 = g.c_dtype == DType::bf16;
  const auto both = [&](DType dtype) { return g.a.dtype == dtype && g.b.dtype == dtype; };
  if (g.epilogue != GemmEpilogue::none && g.epilogue != GemmEpilogue::bias)
    fail("CUDA: the plain product has no such epilogue: ", describe(g));
  if (both(DType::fp32) && to_float) return run<float, float, float>(stream, g);
  if (both(DType::bf16) && to_bf16) return run<bf16, bf16, bf16>(stream, g);
  if (both(DType::bf16) && to_float) return run<bf16, bf16, float>(stream, g);
  if (!is_fp8(g.a.dtype) || !is_fp8(g.b.dtype) || !(to_float || to_bf16))
    fail("CUDA: there is no kernel for ", describe(g));
  with_fp8(g.a.dtype, [&](auto a) {
    with_fp8(g.b.dtype, [&](auto b) {
      using A = decltype(a);
      using B = decltype(b);
      to_float ? run<A, B, float>(stream, g) : run<A, B, bf16>(stream, g);
    });
  });
}

}  // namespace llm
