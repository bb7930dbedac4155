// What kernels for Hopper (compute capability 9.0, code for sm_90a) need beyond llm/device/simt.h: barriers in shared
// memory that count arriving bytes (mbarrier), tiles copied by the tensor memory accelerator (TMA), products of a
// warpgroup's four warps on operands in shared memory (wgmma), barriers of some of a block's warps, and registers that
// move between warpgroups. Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", "Data Movement and
// Conversion".
//
// Copies and products access shared memory asynchronously to the threads ("async proxy"):
// - a copy or product sees what threads wrote after `fence_async_proxy` by each writer and then a barrier;
// - threads and products see what a copy wrote after a wait for the phase of its barrier;
// - accumulators, and left operands in registers, must not be touched between `products_begin` and `products_wait`.
#pragma once
#include <cuda.h>

#include "llm/device/simt.h"

namespace llm::simt {

// Whether this code is compiled for a GPU that has these instructions. For other GPUs the kernels compile to a trap.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHopperCode = true;
#else
inline constexpr bool kHopperCode = false;
#endif

// A barrier in shared memory. Its phases are numbered from 0; a phase ends when `arrivals` threads have arrived and all
// bytes that they announced have been copied. wait() waits for the end of the latest phase of the given parity (the
// phase's number modulo 2): on a new barrier a wait for parity 1 returns at once.
struct alignas(8) Barrier {
  uint64_t state;
};

// Where a tensor of bf16 with four dimensions lies, and the size of the boxes that copies take from it. To be passed to
// a kernel as `const __grid_constant__ TensorMap`.
using TensorMap = CUtensorMap;

// kRows x kColumns bf16 in the layout of copies with 128-byte swizzle: blocks of 64 columns one after the other; in
// each block the rows, 128 bytes long, with their 16-byte chunks permuted by the row's number. chunk(row, i): columns 8
// i and on.
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

// Operand: an operand of a product in shared memory for one step, 16 indices of k. row_operand: rows of a tile from
// `row` (a multiple of 8) on, with k along the columns 16 step to 16 step + 15. column_operand: all columns of a tile,
// with k along the rows 16 step to 16 step + 15.

#if !defined(LLM_TEST_BED)

using Operand = uint64_t;  // a matrix descriptor

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Dynamic shared memory aligned for tiles with 128-byte swizzle.
template <class T>
__device__ __forceinline__ T& tile_memory() {
  extern __shared__ __align__(1024) unsigned char llm_tile_memory[];
  return *reinterpret_cast<T*>(llm_tile_memory);
}

__device__ __forceinline__ void initialize(Barrier& barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
// To be called by the thread that initialised barriers, before the __syncthreads after which other threads use them.
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

// The map of a tensor, made on the host. Dimensions stand innermost first; the elements of the innermost one are
// contiguous. sizes: in elements; strides: of the other three dimensions, in bytes, multiples of 16, as the address
// must be too; box: in elements, 64 of the innermost dimension. Throws Error where the driver refuses.
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

// Starts to copy the box at (x, y, z, w), in elements, to shared memory with 128-byte swizzle. The barrier counts its
// bytes; parts beyond the tensor become zeros and are counted as well. To be called by one thread.
__device__ __forceinline__ void copy_box_async(void* shared, const TensorMap& map, int x, int y, int z, int w,
                                               Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];\n" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
// Starts to copy contiguous bytes; their number and both addresses are multiples of 16. To be called by one thread.
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

// Barrier number `id` for `threads` threads (whole warps) of the block; number 0 is that of __syncthreads. `meet`
// arrives and waits, `pass` arrives without waiting.
__device__ __forceinline__ void meet(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void pass(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Set the number of registers per thread to N, for all warps of a warpgroup: the first gives registers back, the second
// waits until others have given enough back.
template <int N>
__device__ __forceinline__ void give_back_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}

// The matrix descriptor of the beginning of a tile: 128-byte swizzle, 1024 bytes from one group of eight rows to the
// next.
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

// The accumulators of a warpgroup's 64 x 8 N product: of each 64 x 8 part, warp w of the warpgroup has rows 16 w to
// 16 w + 15, spread over its lanes as in simt::mma_16x8x16.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most the `kPending` latest groups of products are still running.
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Returns `value` in such a way that the compiler takes it for a new value. The compiler then cannot compute what
// depends on it ahead of a loop and hold the results in registers that the loop's products need.
__device__ __forceinline__ int computed_here(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Keeps the compiler from moving accesses of the accumulators across this point, which follows a wait.
template <int N>
__device__ __forceinline__ void hold(float (&d)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
}

// d (64, 8 N) = a b, or with `add` d += a b, for 16 indices of k. `a` (64, 16) comes from shared memory, or from
// registers in the layout of simt::mma_16x8x16. `b` (16, 8 N) is a row_operand or, with kColumns, a column_operand.
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
