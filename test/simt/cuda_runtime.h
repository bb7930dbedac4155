// Stands in for CUDA's header of this name where the test bed compiles kernels as C++: the language, the built-in
// functions that kernels may use, the bodies of the wrappers in llm/device/simt.h, and the calls of the runtime library
// (runtime.cpp), which do everything at once.
#pragma once
#include <math.h>  // the C functions without std::, as CUDA has them

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "llm/base/bf16.h"
#include "llm/base/error.h"
#include "test/simt/bed.h"

#define LLM_TEST_BED 1
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

#define LLM_BED_VECTORS(T, name)                                     \
  struct alignas(2 * sizeof(T)) name##2 {                            \
    T x, y;                                                          \
  };                                                                 \
  struct name##3 {                                                   \
    T x, y, z;                                                       \
  };                                                                 \
  struct alignas(sizeof(T) * 4 > 16 ? 16 : sizeof(T) * 4) name##4 {  \
    T x, y, z, w;                                                    \
  };                                                                 \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
LLM_BED_VECTORS(float, float)
LLM_BED_VECTORS(double, double)
LLM_BED_VECTORS(int, int)
LLM_BED_VECTORS(long long, longlong)
#undef LLM_BED_VECTORS
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The runtime library.

struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;
struct CUgraphNode_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraphExec_st*;
using cudaGraphNode_t = CUgraphNode_st*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoDevice = 100,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNotReady = 600,
  cudaErrorNotSupported = 801,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
inline constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1, cudaEventDefault = 0,
                          cudaEventBlockingSync = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount, warpSize, l2CacheSize, maxThreadsPerBlock;
  size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
};

const char* cudaGetErrorString(cudaError_t status);
const char* cudaGetErrorName(cudaError_t status);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMallocBytes(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHostBytes(void** memory, size_t bytes);
cudaError_t cudaFreeHost(void* memory);
template <class T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  return cudaMallocBytes(reinterpret_cast<void**>(memory), bytes);
}
template <class T>
cudaError_t cudaMallocHost(T** memory, size_t bytes, unsigned = 0) {
  return cudaMallocHostBytes(reinterpret_cast<void**>(memory), bytes);
}
template <class T>
cudaError_t cudaHostAlloc(T** memory, size_t bytes, unsigned) {
  return cudaMallocHostBytes(reinterpret_cast<void**>(memory), bytes);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);
// Capturing a graph is not supported: these fail.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count);

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetName(const char** name, Kernel) {
  *name = "a kernel";
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}

// Arithmetic.

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(unsigned x) { return std::countl_zero(x); }
inline int __ffs(unsigned x) { return x ? std::countr_zero(x) + 1 : 0; }
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(uint64_t{x} * y >> 32); }
template <class A, class B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr auto min(A a, B b) {
  using C = std::common_type_t<A, B>;
  return static_cast<C>(b) < static_cast<C>(a) ? static_cast<C>(b) : static_cast<C>(a);
}
template <class A, class B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr auto max(A a, B b) {
  using C = std::common_type_t<A, B>;
  return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}

// Memory.

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
template <class T>
void __stcg(T* p, T v) {
  *p = v;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// Threads switch only at barriers, so plain operations are atomic. Only integers: a sum of floats would depend on the
// order.
template <class T, class Change>
__attribute__((no_sanitize("thread"), noinline))  // so that see_access() alone reports it
T llm_bed_atomic(T* p, Change change) {
  static_assert(std::is_integral_v<T>, "atomics on floats depend on the order of threads");
  llm::simt::bed::see_access(p, sizeof(T), llm::simt::bed::Access::atomic);
  const T old = *p;
  *p = change(old);
  return old;
}
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return llm_bed_atomic(p, [=](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> v) {
  return llm_bed_atomic(p, [=](T old) { return static_cast<T>(old - v); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return llm_bed_atomic(p, [=](T old) { return old < v ? v : old; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return llm_bed_atomic(p, [=](T old) { return v < old ? v : old; });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return llm_bed_atomic(p, [=](T old) { return static_cast<T>(old | v); });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> v) {
  return llm_bed_atomic(p, [=](T old) { return static_cast<T>(old & v); });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return llm_bed_atomic(p, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> v) {
  return llm_bed_atomic(p, [=](T old) { return old == compare ? v : old; });
}

// What threads do together. `file` and `line` are the caller's.

#define LLM_BED_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(LLM_BED_SITE) {
  using namespace llm::simt::bed;
  if (!is_disabled(file, line, Kind::barrier)) meet_others({.operation = Operation::barrier, .site = {file, line}});
}
inline int llm_bed_vote(llm::simt::bed::Operation operation, bool value, const char* file, int line) {
  return static_cast<int>(llm::simt::bed::meet_others({.operation = operation, .site = {file, line}, .value = value}));
}
inline int __syncthreads_or(int value, LLM_BED_SITE) {
  return llm_bed_vote(llm::simt::bed::Operation::barrier_or, value != 0, file, line);
}
inline int __syncthreads_and(int value, LLM_BED_SITE) {
  return llm_bed_vote(llm::simt::bed::Operation::barrier_and, value != 0, file, line);
}
inline int __syncthreads_count(int value, LLM_BED_SITE) {
  return llm_bed_vote(llm::simt::bed::Operation::barrier_count, value != 0, file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffff, LLM_BED_SITE) {
  using namespace llm::simt::bed;
  if (!is_disabled(file, line, Kind::warp_barrier))
    meet_others({.operation = Operation::warp_barrier, .mask = mask, .site = {file, line}});
}
template <class T>
T llm_bed_shuffle(llm::simt::bed::Operation operation, unsigned mask, T value, int lane, int width, const char* file,
                  int line) {
  static_assert((sizeof(T) == 4 || sizeof(T) == 8) && std::is_arithmetic_v<T>);
  if (width < 1 || width > 32 || (width & (width - 1)))
    llm::simt::bed::fail_thread({file, line}, "a shuffle's width must be a power of two up to 32");
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  const uint64_t result = llm::simt::bed::meet_others({.operation = operation,
                                                       .mask = mask,
                                                       .site = {file, line},
                                                       .value = std::bit_cast<Bits>(value),
                                                       .lane = lane,
                                                       .width = width});
  return std::bit_cast<T>(static_cast<Bits>(result));
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, LLM_BED_SITE) {
  return llm_bed_shuffle(llm::simt::bed::Operation::shuffle, mask, value, lane, width, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane, int width = 32, LLM_BED_SITE) {
  return llm_bed_shuffle(llm::simt::bed::Operation::shuffle_xor, mask, value, lane, width, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, LLM_BED_SITE) {
  return llm_bed_shuffle(llm::simt::bed::Operation::shuffle_up, mask, value, static_cast<int>(lanes), width, file,
                         line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, LLM_BED_SITE) {
  return llm_bed_shuffle(llm::simt::bed::Operation::shuffle_down, mask, value, static_cast<int>(lanes), width, file,
                         line);
}
inline unsigned __ballot_sync(unsigned mask, int value, LLM_BED_SITE) {
  return static_cast<unsigned>(llm::simt::bed::meet_others(
      {.operation = llm::simt::bed::Operation::ballot, .mask = mask, .site = {file, line}, .value = value != 0}));
}
inline int __any_sync(unsigned mask, int value, LLM_BED_SITE) { return __ballot_sync(mask, value, file, line) != 0; }
inline int __all_sync(unsigned mask, int value, LLM_BED_SITE) { return __ballot_sync(mask, value, file, line) == mask; }

// Llm/device/simt.h's wrappers.

namespace llm::simt {

inline bool in_bounds(bool condition, LLM_BED_SITE) {
  return condition || bed::is_disabled(file, line, bed::Kind::in_bounds);
}

template <class T>
T& shared_memory(LLM_BED_SITE) {
  return *static_cast<T*>(bed::shared_memory(sizeof(T), {file, line}));
}

// A stream, and where the launch stands in the source.
struct StreamHere {
  cudaStream_t stream;
  bed::Site site;
  StreamHere(cudaStream_t s, LLM_BED_SITE) : stream(s), site{file, line} {}
};

template <class... Parameters, class... Arguments>
void launch(StreamHere where, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
            Arguments... arguments) {
  static_assert((size_t{0} + ... + sizeof(Parameters)) <= 4096, "a kernel's parameters may have 4096 bytes");
  const std::tuple<std::decay_t<Parameters>...> values(static_cast<Parameters>(arguments)...);
  const auto check = [&](const auto& value) {
    if constexpr (std::is_pointer_v<std::decay_t<decltype(value)>>) bed::check_pointer(value, where.site);
  };
  std::apply([&](const auto&... each) { (check(each), ...); }, values);
  const auto body = [&] { std::apply(kernel, values); };
  bed::run(
      {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes}, where.site,
      [](const void* b) { (*static_cast<const decltype(body)*>(b))(); }, &body);
}

// The bed runs one kernel after the other, so none begins early.
template <class... Parameters, class... Arguments>
void launch_early(StreamHere where, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
                  Arguments... arguments) {
  launch(where, grid, block, shared_bytes, kernel, arguments...);
}
inline void wait_for_inputs() {}
inline void let_next_start() {}
inline void prefetch(const void*) {}

inline bool arrives_last(uint32_t* counter, uint32_t of, LLM_BED_SITE) {
  bed::meet_others({.operation = bed::Operation::barrier, .site = {file, line}});
  const bool last = threadIdx.x == 0 && atomicAdd(counter, 1u) == of - 1;
  if (last) {
    bed::come_after_all_blocks();
    *counter = 0;
  }
  return bed::meet_others({.operation = bed::Operation::barrier_or, .site = {file, line}, .value = last}) != 0;
}

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], LLM_BED_SITE) {
  bed::Deposit call{.operation = bed::Operation::mma, .mask = 0xffffffff, .site = {file, line}};
  call.d = d;
  call.a = const_cast<uint32_t*>(a);
  call.b = b;
  bed::meet_others(call);
}

inline void llm_bed_load_matrix(bed::Operation operation, uint32_t (&r)[4], const void* row, const bed::Site& site) {
  if (reinterpret_cast<uintptr_t>(row) % 16) bed::fail_thread(site, "ldmatrix needs rows at multiples of 16 bytes");
  bed::see_access(row, 16, bed::Access::read);
  bed::Deposit call{.operation = operation, .mask = 0xffffffff, .site = site};
  call.a = r;
  call.row = static_cast<const uint16_t*>(row);
  bed::meet_others(call);
}
inline void load_matrix_x4(uint32_t (&r)[4], const void* row, LLM_BED_SITE) {
  llm_bed_load_matrix(bed::Operation::load_matrix, r, row, {file, line});
}
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row, LLM_BED_SITE) {
  llm_bed_load_matrix(bed::Operation::load_matrix_transposed, r, row, {file, line});
}

inline void copy_async_16(void* shared, const void* global, bool valid, LLM_BED_SITE) {
  bed::copy_async(shared, global, valid, {file, line});
}
inline void copy_commit() { bed::copy_commit(); }
template <int N>
inline void copy_wait(LLM_BED_SITE) {
  if (!bed::is_disabled(file, line, bed::Kind::copy_wait)) bed::copy_wait(N);
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
template <class T>
void forget(T&) {}
inline bf16 round_bf16(float x) { return nearest_bf16(x); }
inline uint32_t pack_bf16(float low, float high) {
  return nearest_bf16(low).bits | static_cast<uint32_t>(nearest_bf16(high).bits) << 16;
}

}  // namespace llm::simt
