// What kernels need beyond plain CUDA C++, with two bodies: here for nvcc, in test/simt/ for the test bed, which compiles
// the same kernels as C++ and runs them on the CPU (then <cuda_runtime.h> is the bed's, and defines LLM_TEST_BED).
//
// Rules that both can keep:
// - Shared memory is dynamic: a struct per kernel, `auto& s = simt::shared_memory<Shared>();`, its size given to `launch`.
//   It holds garbage at the start.
// - A test of an index against a size is written `if (simt::in_bounds(i < n))`, so that the mutation test can leave it out.
// - Barriers and shuffles are CUDA's own (__syncthreads, __syncwarp, __shfl_xor_sync, ...), with all threads they name.
// - No atomics on floats: sums have one order.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "llm/base/bf16.h"
#include "llm/base/error.h"

#if !defined(LLM_TEST_BED)

namespace llm::simt {

__device__ inline bool in_bounds(bool condition) { return condition; }

template <class T>
__device__ inline T& shared_memory() {
  extern __shared__ __align__(128) unsigned char llm_shared_memory[];
  return *reinterpret_cast<T*>(llm_shared_memory);
}

// Starts `kernel` on the stream. Throws Error when the launch itself is refused; what goes wrong while it runs shows at a
// later check_cuda.
template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
            Arguments... arguments) {
  cudaError_t status = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    // All that a block may have: a limit of this launch's own bytes would take away what captured launches of the kernel need.
    int device = 0, most = 0;
    status = cudaGetDevice(&device);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (status == cudaSuccess) status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  }
  if (status == cudaSuccess) {
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
    status = cudaGetLastError();
  }
  if (status != cudaSuccess) {
    const char* name = "a kernel";
#if CUDART_VERSION >= 12030
    cudaFuncGetName(&name, reinterpret_cast<const void*>(kernel));
#endif
    fail("CUDA: ", name, " with ", grid.x, " x ", grid.y, " x ", grid.z, " blocks of ", block.x * block.y * block.z,
         " threads and ", shared_bytes, " bytes of shared memory: ", cudaGetErrorString(status));
  }
}

// As `launch`, but from compute capability 9.0 on the kernel may start while the stream's kernel before it is still running,
// once all blocks of that one have called let_next_start() or ended ("programmatic dependent launch", CUDA C++ Programming
// Guide). All threads of the kernel call wait_for_inputs() before they touch what another kernel writes or reads; in front
// of that they may read what does not change while the stream is busy: weights. (What they read behind it must not come through a
// pointer to const that is __restrict__: the compiler may take that for constant and read it in front of the wait.)
template <class... Parameters, class... Arguments>
void launch_early(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
                  Arguments... arguments) {
  // A kernel that was compiled for less has no code for the wait.
  cudaFuncAttributes compiled;
  cudaError_t status = cudaFuncGetAttributes(&compiled, kernel);
  if (status == cudaSuccess && compiled.ptxVersion < 90)
    return launch(stream, grid, block, shared_bytes, kernel, arguments...);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes, config.stream = stream;
  config.attrs = &early, config.numAttrs = 1;
  if (status == cudaSuccess) status = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (status != cudaSuccess)
    fail("CUDA: a kernel of ", grid.x, " x ", grid.y, " blocks of ", block.x, " threads and ", shared_bytes,
         " bytes of shared memory, which may start early: ", cudaGetErrorString(status));
}
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// For blocks that add up what several of them have made: whether this block is the last of `of` to come here, in all of its
// threads; then what the others wrote before can be read. The counter is 0 at first, and again after the last.
__device__ inline bool arrives_last(uint32_t* counter, uint32_t of) {
  __threadfence();
  __syncthreads();
  const bool last = __syncthreads_or(threadIdx.x == 0 && atomicAdd(counter, 1u) == of - 1) != 0;
  if (last && threadIdx.x == 0) *counter = 0;
  if (last) __threadfence();
  return last;
}

// d += a b on the tensor cores: a 16x16 and b 16x8 of bf16 pairs, d 16x8 of float, each spread over the warp as PTX's
// mma.m16n8k16 says (lane = 4 group + member): a[0..3] rows group, group + 8, group, group + 8 at columns 2 member and (the
// last two) 2 member + 8; b[0..1] rows 2 member (+ 8) of column group; d[0..1] row group, d[2..3] row group + 8, columns
// 2 member, 2 member + 1.
__device__ inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit values from shared memory: lane 8 i + r gives the address of row r of matrix i (16 bytes,
// aligned); r[i] gets of matrix i the pair (row lane / 4, columns 2 (lane % 4) and one more). Transposed: of its transpose.
__device__ inline void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Copies 16 bytes from global to shared memory in the background, or writes zeros where `valid` is false (the global address
// must then still be one that exists). Done after a wait for its group, and a barrier for the other threads' copies.
__device__ inline void copy_async_16(void* shared, const void* global, bool valid) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// Closes the group of this thread's copies so far; `copy_wait<N>` waits until at most the N latest groups are under way.
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int N>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// Brings the line of memory that holds the address into the L2 cache, in the background; takes no registers.
__device__ inline void prefetch(const void* global) { asm volatile("prefetch.global.L2 [%0];\n" ::"l"(global)); }

// 2^x to about 2 units in the last place of a float.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to about 1 unit in the last place of a float.
__device__ inline float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// The compiler forgets what it has computed from these bytes: what is needed of it again is computed again, and takes no
// registers in between.
template <class T>
__device__ inline void forget(T& x) {
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &x, sizeof x);
#pragma unroll
  for (uint32_t& word : words) asm volatile("" : "+r"(word));
  std::memcpy(&x, words, sizeof x);
}

// Two floats as a pair of bf16, the first one in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ inline bf16 round_bf16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;\n" : "=h"(bits) : "f"(x));
  return {bits};
}

}  // namespace llm::simt

#endif

namespace llm::simt {

// From float to the type that a tensor is stored in.
template <class T>
__device__ inline T stored(float x);
template <>
__device__ inline float stored<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 stored<bf16>(float x) {
  return round_bf16(x);
}

inline constexpr unsigned kWholeWarp = 0xffffffff;

// N values side by side, moved as one: 16 bytes are the widest load there is. The address must be a multiple of the size.
template <class T, int N = 16 / sizeof(T)>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
  __device__ float get(int i) const { return to_float(values[i]); }
  __device__ void set(int i, float x) { values[i] = stored<T>(x); }
};
// From floats; bf16 are rounded two by two.
template <class T, int N>
__device__ inline Pack<T, N> packed(const float (&x)[N]) {
  Pack<T, N> pack;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    uint32_t pairs[N / 2];
#pragma unroll
    for (int i = 0; i < N; i += 2) pairs[i / 2] = pack_bf16(x[i], x[i + 1]);
    std::memcpy(&pack, pairs, sizeof pack);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) pack.set(i, x[i]);
  }
  return pack;
}
template <class T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));  // values in 16 bytes

// Whether rows of `columns` values that start at `address` can be read in packs of 16 bytes. On the host.
template <class T>
bool packs(const T* address, int64_t columns) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && columns % kPack<T> == 0;
}

}  // namespace llm::simt
