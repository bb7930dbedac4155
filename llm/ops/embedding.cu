// embedding: x = token_table[token] (+ position_table[position]). The backward pass is in embedding_backward.cu.
//
// A block takes a position t and up to four sequences: a thread reads its 16 bytes of the position's row once for all
// of them (unless each has a position of its own). Every other byte is read once, and x is written once.
#include <algorithm>

#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/chunks.h"
#include "llm/ops/cuda_kernels.h"

namespace llm::cuda {
namespace {

constexpr int kMostThreads = 256, kSequences = 4;

template <class T, int kWidth>
__global__ void __launch_bounds__(kMostThreads)
    embedding_kernel(const int32_t* __restrict__ tokens,     // (B, T)
                     const T* __restrict__ token_table,      // (V, C)
                     const T* __restrict__ position_table,   // (context, C) or null
                     const int32_t* __restrict__ positions,  // (B, T), or null: those of chunks, in each sequence
                     Chunks chunks,
                     T* __restrict__ x,  // (B, T, C)
                     int64_t batch, int64_t channels) {
  using Pack = simt::Pack<T, kWidth>;
  const int64_t t = blockIdx.x, c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
  const int64_t first = int64_t{blockIdx.z} * kSequences;
  if (simt::in_bounds(c < channels)) {
    Pack position{}, row[kSequences];
    if (position_table && !positions)
      position = *reinterpret_cast<const Pack*>(position_table + chunks.position(t) * channels + c);
#pragma unroll
    for (int i = 0; i < kSequences; ++i)
      if (simt::in_bounds(first + i < batch)) {
        const int64_t token = tokens[(first + i) * gridDim.x + t];
        row[i] = *reinterpret_cast<const Pack*>(token_table + token * channels + c);
      }
#pragma unroll
    for (int i = 0; i < kSequences; ++i)
      if (simt::in_bounds(first + i < batch)) {
        if (positions && position_table) {
          const int64_t at = max(0, positions[(first + i) * gridDim.x + t]);
          position = *reinterpret_cast<const Pack*>(position_table + at * channels + c);
        }
        if (position_table)
#pragma unroll
          for (int k = 0; k < kWidth; ++k) row[i].set(k, row[i].get(k) + position.get(k));
        *reinterpret_cast<Pack*>(x + ((first + i) * gridDim.x + t) * channels + c) = row[i];
      }
  }
}

template <class T>
void embedding_as(const KernelCall& call) {
  const T *token_table = call.in<T>(1), *position_table = call.in<T>(2);
  T* x = call.out<T>(0);
  const int64_t batch = call.in_shape(0)[0], tokens = call.in_shape(0)[1], channels = call.in_shape(1)[1];
  const bool packs =
      simt::packs(token_table, channels) && simt::packs(position_table, channels) && simt::packs(x, channels);
  const int64_t items = channels / (packs ? simt::kPack<T> : 1);
  const int64_t threads = std::min<int64_t>(kMostThreads, (items + 31) / 32 * 32);
  simt::launch(call.cuda->stream(),
               dim3(static_cast<unsigned>(tokens), static_cast<unsigned>((items + threads - 1) / threads),
                    static_cast<unsigned>((batch + kSequences - 1) / kSequences)),
               dim3(static_cast<unsigned>(threads)), 0,
               packs ? embedding_kernel<T, simt::kPack<T>> : embedding_kernel<T, 1>, call.in_int(0), token_table,
               position_table, call.in_int(3), chunks_of(call.node.attributes, tokens), x, batch, channels);
}

}  // namespace

void embedding(const KernelCall& call) {
  call.in_dtype(1) == DType::bf16 ? embedding_as<bf16>(call) : embedding_as<float>(call);
}

}  // namespace llm::cuda
