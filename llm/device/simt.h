// What kernels need beyond plain CUDA C++. Each function has two bodies: the one for nvcc is here; the one for the test
// bed is in test/simt/. The test bed compiles the same kernels as C++ and runs them on the CPU (its <cuda_runtime.h>
// defines LLM_TEST_BED).
//
// Rules for kernels that are to run on both:
// - Shared memory is dynamic: a struct for each kernel, `auto& s = simt::shared_memory<Shared>();`, whose size is given
//   to `launch`. Its contents are undefined at the start.
// - A test of an index against a size is written `if (simt::in_bounds(i < n))`, so that the mutation test can leave it
//   out.
// - Barriers and shuffles are CUDA's own (__syncthreads, __syncwarp, __shfl_xor_sync, ...); all threads that they name
//   must take part.
// - No atomics on floats: every sum has one fixed order.
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

// Starts `kernel` on the stream. Throws Error when the launch is refused; a later check_cuda reports what goes wrong
// while the kernel runs.
template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
            Arguments... arguments) {
  cudaError_t status = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    // The limit is set to all that a block may have: the bytes of this launch might be less than captured launches of
    // the same kernel need.
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

// Like `launch`, but from compute capability 9.0 on the kernel may start while the previous kernel of the stream still
// runs, once all blocks of that kernel have called let_next_start() or ended ("programmatic dependent launch", CUDA C++
// Programming Guide). All threads of the kernel must call wait_for_inputs() before they touch memory that another
// kernel writes or reads. Before that call they may read what does not change while the stream is busy: weights. (After
// that call they must not read through `const T* __restrict__`: the compiler may take such memory for constant and read
// it earlier.)
template <class... Parameters, class... Arguments>
void launch_early(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
                  Arguments... arguments) {
  // A kernel that was compiled for an older GPU has no code for the wait.
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

// For a kernel whose last block adds up what all have computed: tells all threads of the block whether this block is
// the last of `of` blocks to call this. The last block can read what the others wrote before. The counter (1) is 0
// before the first block and again after the last.
__device__ inline bool arrives_last(uint32_t* counter, uint32_t of) {
  __threadfence();
  __syncthreads();
  const bool last = __syncthreads_or(threadIdx.x == 0 && atomicAdd(counter, 1u) == of - 1) != 0;
  if (last && threadIdx.x == 0) *counter = 0;
  if (last) __threadfence();
  return last;
}

// d += a b on the tensor cores: a (16, 16) and b (16, 8) as pairs of bf16, d (16, 8) as floats, spread over the warp as
// in PTX's mma.m16n8k16. With lane = 4 group + member a lane holds
// - a[0], a[1]: columns 2 member, 2 member + 1 of rows group, group + 8; a[2], a[3]: the same rows 8 columns further;
// - b[0], b[1]: rows 2 member, 2 member + 1 of column group, and the rows 8 further;
// - d[0], d[1]: columns 2 member, 2 member + 1 of row group; d[2], d[3]: the same columns of row group + 8.
__device__ inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads four 8 x 8 matrices of 16-bit values from shared memory. Lane 8 i + j passes the address of row j of matrix i
// (16 bytes, aligned to 16). r[i] becomes the pair in row lane / 4, columns 2 (lane % 4) and 2 (lane % 4) + 1, of
// matrix i; in the transposed form, of its transpose.
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

// Copies 16 bytes from global to shared memory in the background, or writes zeros where `valid` is false (the global
// address must be a valid one all the same). The copy is complete after a wait for its group; other threads may read it
// after a barrier.
__device__ inline void copy_async_16(void* shared, const void* global, bool valid) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// Ends the group of this thread's copies so far; `copy_wait<N>` waits until at most the N latest groups are still
// running.
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int N>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// Fetches the cache line that holds the address into the L2 cache, in the background, without a register.
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

// Makes the compiler take x for a new value: what it has computed from x it must compute again, instead of holding it
// in registers meanwhile.
template <class T>
__device__ inline void forget(T& x) {
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &x, sizeof x);
#pragma unroll
  for (uint32_t& word : words) asm volatile("" : "+r"(word));
  std::memcpy(&x, words, sizeof x);
}

// Two floats rounded to a pair of bf16, `low` in the lower half.
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

// Converts a float to the type in which a tensor is stored.
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

// N contiguous values that are loaded and stored at once; 16 bytes are the widest load. The address must be a multiple
// of the size.
template <class T, int N = 16 / sizeof(T)>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
  __device__ float get(int i) const { return to_float(values[i]); }
  __device__ void set(int i, float x) { values[i] = stored<T>(x); }
};
// A pack of floats, rounded to T; bf16 are rounded in pairs, by one instruction each.
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

// Whether the rows of a matrix of `columns` columns at `address` can be read in packs of 16 bytes. For the host.
template <class T>
bool packs(const T* address, int64_t columns) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && columns % kPack<T> == 0;
}

}  // namespace llm::simt
