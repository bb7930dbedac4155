// combine: y = a x + b z for many pairs (combine.cpp). A block of threads takes 4096 elements of one pair, a thread
// takes 16 bytes at a time; every element is read once and written once. A y may lie over its x or z: each thread reads
// its elements before it writes them.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/multi_tensor_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kPairs = 64;
constexpr int64_t kBlock = 4096;  // elements

template <class T>
struct Pairs {
  const T *x[kPairs], *z[kPairs];
  T* y[kPairs];
  int64_t elements[kPairs];
  int first_block[kPairs];
  int count;
};
static_assert(sizeof(Pairs<float>) <= 4000, "a kernel's parameters are 4 KiB together");

template <int kWidth, class T>
__device__ void combine_pack(const T* x, const T* z, T* y, float a, float b) {
  using Pack = simt::Pack<T, kWidth>;
  const Pack px = *reinterpret_cast<const Pack*>(x), pz = *reinterpret_cast<const Pack*>(z);
  Pack py;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) py.set(k, px.get(k) * a + pz.get(k) * b);
  *reinterpret_cast<Pack*>(y) = py;
}

template <class T>
__global__ void __launch_bounds__(kThreads) combine_kernel(const __grid_constant__ Pairs<T> pairs, float a, float b) {
  constexpr int kWidth = simt::kPack<T>;
  const int block = static_cast<int>(blockIdx.x);
  const int pair = tensor_of_block(pairs.first_block, pairs.count, block);
  const int64_t begin = (block - pairs.first_block[pair]) * kBlock;
  const int64_t end = min(begin + kBlock, pairs.elements[pair]);
  const T *x = pairs.x[pair], *z = pairs.z[pair];
  T* y = pairs.y[pair];
  const auto aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
  const bool packs = aligned(x) && aligned(z) && aligned(y);
  const int64_t packed = packs ? begin + (end - begin) / kWidth * kWidth : begin;  // the rest one by one
#pragma unroll 2
  for (int64_t i = begin + kWidth * threadIdx.x; i < packed; i += kWidth * kThreads)
    combine_pack<kWidth>(x + i, z + i, y + i, a, b);
  for (int64_t i = packed + threadIdx.x; i < end; i += kThreads) combine_pack<1>(x + i, z + i, y + i, a, b);
}

template <class T>
void combine_as(const KernelCall& call) {
  const auto a = static_cast<float>(call.node.attributes.number("a"));
  const auto b = static_cast<float>(call.node.attributes.number("b"));
  Pairs<T> pairs;
  pairs.count = 0;
  int blocks = 0;
  const auto flush = [&] {
    if (blocks > 0)
      simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, combine_kernel<T>,
                   pairs, a, b);
    pairs.count = blocks = 0;
  };
  for (size_t k = 0; k < call.node.outputs.size(); ++k) {
    const int i = pairs.count++;
    pairs.x[i] = call.in<T>(2 * k), pairs.z[i] = call.in<T>(2 * k + 1), pairs.y[i] = call.out<T>(k);
    pairs.elements[i] = call.out_shape(k).elements();
    pairs.first_block[i] = blocks;
    blocks += static_cast<int>((pairs.elements[i] + kBlock - 1) / kBlock);
    if (pairs.count == kPairs) flush();
  }
  flush();
}

}  // namespace

// All pairs of a node have one type (combine.cpp checks it).
void combine(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? combine_as<bf16>(call) : combine_as<float>(call);
}

}  // namespace llm::cuda
