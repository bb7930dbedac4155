// sum_partials on the GPU: each thread adds 16 bytes of all ranks' sums, each of which is read once.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/exchange.h"
#include "llm/ops/row_exchange.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Partials {
  const T* received;  // (ranks - 1, elements)
  const T* mine;      // (ranks, elements), of which the own ones are added
  OwnElements place;  // where these are
  const T* bias;      // (channels); null: none
  T* out;             // (elements)
  int64_t elements, channels;
  int rank, ranks;
};

template <int kWidth, class T>
__device__ void add_partials(const Partials<T>& p, int64_t i) {
  using Pack = simt::Pack<T, kWidth>;
  float sum[kWidth] = {};
  for (int r = 0; r < p.ranks; ++r) {
    const T* from = r == p.rank ? p.mine + p.place.place(i) : p.received + (r - (r > p.rank ? 1 : 0)) * p.elements + i;
    const Pack partial = *reinterpret_cast<const Pack*>(from);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum[k] = r == 0 ? partial.get(k) : sum[k] + partial.get(k);
  }
  Pack out;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) out.set(k, p.bias ? sum[k] + to_float(p.bias[(i + k) % p.channels]) : sum[k]);
  *reinterpret_cast<Pack*>(p.out + i) = out;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_partials_kernel(const __grid_constant__ Partials<T> p, int64_t packed) {  // elements that are taken in packs
  constexpr int kWidth = simt::kPack<T>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (simt::in_bounds(kWidth * thread < packed))
    add_partials<kWidth>(p, kWidth * thread);
  else if (const int64_t i = packed + thread - packed / kWidth; simt::in_bounds(i < p.elements))
    add_partials<1>(p, i);
}

template <class T>
void run(const KernelCall& call) {
  const RankGroup group = group_of(call.node.attributes);
  const Shape own = call.out_shape(0);
  const int64_t elements = own.elements();
  const Partials<T> p = {call.in<T>(0),
                         call.in<T>(1),
                         own_elements(call.node, call.in_shape(1)),
                         call.has_input(2) ? call.in<T>(2) : nullptr,
                         call.out<T>(0),
                         elements,
                         own.last(),
                         group.rank,
                         group.ranks};
  constexpr int64_t kWidth = simt::kPack<T>;
  const auto aligned = [](const T* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
  const bool packs = aligned(p.received) && aligned(p.mine) && aligned(p.out) && elements % kWidth == 0 &&
                     p.place.first % kWidth == 0 && (p.place.sequence == elements || own.last() % kWidth == 0);
  const int64_t packed = packs ? elements : 0, threads = packs ? elements / kWidth : elements;
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)), dim3(kThreads), 0,
               sum_partials_kernel<T>, p, packed);
}

}  // namespace

void sum_partials(const KernelCall& call) { call.in_dtype(0) == DType::bf16 ? run<bf16>(call) : run<float>(call); }

}  // namespace llm::cuda
