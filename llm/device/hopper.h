// What kernels for Hopper (compute capability 9.0, code for sm_90a) need beyond llm/device/simt.h: barriers in shared memory
// that count arriving bytes (mbarrier), tiles copied by the tensor memory accelerator (TMA), products of a warpgroup's four
// warps on operands in shared memory (wgmma), barriers of some of a block's warps, and registers that move between
// warpgroups. PTX ISA, sections "Asynchronous Warpgroup Level Matrix Instructions" and "Data Movement and Conversion".
//
// A copy or a product reads and writes shared memory behind the threads' backs ("async proxy"):
// - what threads wrote there, a copy or product sees after `fence_async_proxy` of each writer and then a barrier;
// - what a copy wrote, threads and products see after waiting for the phase of its barrier;
// - accumulators (and left operands in registers) belong to the products from `products_begin` to `products_wait`.
#pragma once
#include <cuda.h>

#include "llm/device/simt.h"

namespace llm::simt {

// Whether this code is compiled for a GPU that has the instructions. Kernels ask, so that they compile to a trap elsewhere.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHopperCode = true;
#else
inline constexpr bool kHopperCode = false;
#endif

// A barrier in shared memory. It is in phase 0, 1, 2, ...; a phase ends when `arrivals` threads have arrived and all bytes
// that they announced are there. One waits for the end of the phase of a parity: of parity 1, a new barrier's wait returns.
struct alignas(8) Barrier {
  uint64_t state;
};

// Where a tensor of bf16 lies, of up to four dimensions, and the box of it that a copy takes. A parameter of a kernel:
// `const __grid_constant__ TensorMap`.
using TensorMap = CUtensorMap;

// Rows of kColumns bf16 as copies with 128-byte swizzle leave them: blocks of 64 columns one after the other, in each the
// rows, 128 bytes long, whose 16-byte chunks are permuted by the row.
template <int kRows, int kColumns>
struct alignas(1024) SwizzledTile {
  static_assert(kColumns % 64 == 0 && kRows % 8 == 0);
  static constexpr unsigned kBytes = kRows * kColumns * sizeof(bf16);
  bf16 values[kRows * kColumns];

  __device__ bf16* chunk(int row, int i) { return values + (i / 8 * kRows + row) * 64 + ((i ^ row) % 8) * 8; }
  __device__ const bf16* chunk(int row, int i) const {
    return values + (i / 8 * kRows + row) * 64 + ((i ^ row) % 8) * 8;
  }
};

// An operand of a product in shared memory, for one step of k: 64 rows of a tile from `row` on (a multiple of 8), or all rows of one,
// k along its columns 16 step to 16 step + 15 (row_operand); or all columns of a tile, k along its rows (column_operand).

#if !defined(LLM_TEST_BED)

using Operand = uint64_t;  // a matrix descriptor

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Dynamic shared memory where tiles with 128-byte swizzle may begin.
template <class T>
__device__ __forceinline__ T& tile_memory() {
  extern __shared__ __align__(1024) unsigned char llm_tile_memory[];
  return *reinterpret_cast<T*>(llm_tile_memory);
}

__device__ __forceinline__ void initialize(Barrier& barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
// By the thread that initialised barriers, before the __syncthreads after which others use them.
__device__ __forceinline__ void fence_initialization() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ __forceinline__ void arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(&barrier)) : "memory");
}
__device__ __forceinline__ void arrive_expecting(Barrier& barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void wait(Barrier& barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
}

// Four dimensions, the innermost first, whose elements lie side by side; bytes from one index of each other to the next,
// multiples of 16, as the address is. Boxes have 64 elements in a row. Throws Error. On the host.
inline TensorMap tensor_map(const bf16* tensor, const uint64_t (&sizes)[4], const uint64_t (&strides)[3],
                            const uint32_t (&box)[4]) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess)
    fail("CUDA: the driver has no cuTensorMapEncodeTiled, which kernels for Hopper need; a driver for CUDA 12 has it");
  TensorMap map;
  const uint32_t steps[4] = {1, 1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<bf16*>(tensor), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    fail("CUDA: cuTensorMapEncodeTiled refuses a tensor of ", sizes[0], " x ", sizes[1], " x ", sizes[2], " x ",
         sizes[3], " bf16: error ", static_cast<int>(result));
  return map;
}

// The box at (x, y, z, w), in elements, to shared memory with 128-byte swizzle; the bytes count at the barrier. Parts beyond the
// tensor become zeros, and count as well. By one thread.
__device__ __forceinline__ void copy_box_async(void* shared, const TensorMap& map, int x, int y, int z, int w,
                                               Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];\n" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
// Bytes in a row, a multiple of 16, from and to multiples of 16. By one thread.
__device__ __forceinline__ void copy_bytes_async(void* shared, const void* global, unsigned bytes, Barrier& barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
}
__device__ __forceinline__ void prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// A barrier of `threads` threads (whole warps) of the block; 0 is __syncthreads' own. With `pass`, a thread arrives without
// waiting.
__device__ __forceinline__ void meet(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void pass(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Registers a thread, for all warps of a warpgroup: given back, or taken once others have given them back.
template <int N>
__device__ __forceinline__ void give_back_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}

// Matrix descriptor of a tile's beginning: 128-byte swizzle, 1024 bytes from eight rows to the next.
__device__ __forceinline__ uint64_t descriptor(const void* tile, unsigned bytes_between_column_blocks) {
  return (shared_address(tile) & 0x3ffff) >> 4 | uint64_t{bytes_between_column_blocks >> 4} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

template <int kRows, int kColumns>
__device__ __forceinline__ Operand row_operand(const SwizzledTile<kRows, kColumns>& tile, int row, int step) {
  return descriptor(tile.values, 16) + (step / 4 * kRows + row) * 8 + step % 4 * 2;
}
template <int kRows, int kColumns>
__device__ __forceinline__ Operand column_operand(const SwizzledTile<kRows, kColumns>& tile, int step) {
  return descriptor(tile.values, kRows * 128) + step * 128;
}

// The accumulators of a warpgroup's 64 x 8 N product: of each 64 x 8 part a warp has the 16 rows of its place in the
// warpgroup, as simt::mma_16x8x16 spreads them. Between `products_begin` and `products_wait` nobody may touch them.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Until at most the `kPending` latest groups of products are under way.
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// The value, of which the compiler does not know that it is always the same: it then keeps no registers for what follows
// from it while the products of a loop need them.
__device__ __forceinline__ int computed_here(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// What is done with the accumulators after a wait, the compiler must not do before it; nor the other way round.
template <int N>
__device__ __forceinline__ void hold(float (&d)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
}

// d = a b, or d += a b where `add`, for 16 steps of k: `a` of 64 rows, from shared memory or as simt::mma_16x8x16 has it in
// registers; `b` of 8 N columns: rows of a tile, or with kColumns columns of one.
#define LLM_ACCUMULATOR(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define LLM_ACCUMULATORS(d, n) \
  LLM_ACCUMULATOR(d, n), LLM_ACCUMULATOR(d, n + 1), LLM_ACCUMULATOR(d, n + 2), LLM_ACCUMULATOR(d, n + 3)
template <bool kColumns, int N>
__device__ __forceinline__ void multiply_async(float (&d)[N][4], Operand a, Operand b, bool add) {
  if constexpr (N == 8)
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, add, 1, 1, 0, %35;\n}\n"
        : LLM_ACCUMULATORS(d, 0), LLM_ACCUMULATORS(d, 4)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kColumns ? 1 : 0));
  else if constexpr (N == 16)
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, add, 1, 1, 0, %67;\n}\n"
        : LLM_ACCUMULATORS(d, 0), LLM_ACCUMULATORS(d, 4), LLM_ACCUMULATORS(d, 8), LLM_ACCUMULATORS(d, 12)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kColumns ? 1 : 0));
  else if constexpr (N == 24)
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, add, 1, 1, 0, %99;\n}\n"
        : LLM_ACCUMULATORS(d, 0), LLM_ACCUMULATORS(d, 4), LLM_ACCUMULATORS(d, 8), LLM_ACCUMULATORS(d, 12),
          LLM_ACCUMULATORS(d, 16), LLM_ACCUMULATORS(d, 20)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kColumns ? 1 : 0));
  else
    static_assert(N == 8, "no product of this width");
}
template <bool kColumns, int N>
__device__ __forceinline__ void multiply_async(float (&d)[N][4], const uint32_t (&a)[4], Operand b, bool add) {
  if constexpr (N == 8)
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, add, 1, 1, %38;\n}\n"
        : LLM_ACCUMULATORS(d, 0), LLM_ACCUMULATORS(d, 4)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(kColumns ? 1 : 0));
  else if constexpr (N == 16)
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, add, 1, 1, %70;\n}\n"
        : LLM_ACCUMULATORS(d, 0), LLM_ACCUMULATORS(d, 4), LLM_ACCUMULATORS(d, 8), LLM_ACCUMULATORS(d, 12)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(kColumns ? 1 : 0));
  else if constexpr (N == 24)
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %101, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, {%96, %97, %98, %99}, %100, add, 1, 1, %102;\n}\n"
        : LLM_ACCUMULATORS(d, 0), LLM_ACCUMULATORS(d, 4), LLM_ACCUMULATORS(d, 8), LLM_ACCUMULATORS(d, 12),
          LLM_ACCUMULATORS(d, 16), LLM_ACCUMULATORS(d, 20)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(kColumns ? 1 : 0));
  else
    static_assert(N == 8, "no product of this width");
}
#undef LLM_ACCUMULATOR
#undef LLM_ACCUMULATORS

#endif

}  // namespace llm::simt
