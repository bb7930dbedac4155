// ordered_sum and fold (ordered_sum.cpp) for many tensors. A block of threads takes 4096 elements of one tensor, a thread
// four at a time where they are aligned. Each value is read once and each result written once.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/multi_tensor_cuda.h"
#include "llm/ops/ordered_sum.h"
#include "llm/ops/pieces.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kTensors = 24;
constexpr int64_t kBlock = 4096;  // elements

struct Tensors {
  const float* own[kTensors][kMostOwnSums];
  const float* received[kTensors];
  float* out[kTensors];
  int64_t elements[kTensors];
  int first_block[kTensors];
  int count;
};

struct Order {
  short source[kMostSums];
  unsigned char merges[kMostSums];
  int count;
  int64_t row;  // elements of a row of what was received
};
static_assert(sizeof(Tensors) + sizeof(Order) <= 4000, "a kernel's parameters are 4 KiB together");

template <int kWidth>
__device__ void add_up(const Tensors& tensors, const Order& order, int tensor, int64_t at) {
  using Pack = simt::Pack<float, kWidth>;
  Pack open[kMostOpenSums];
  int top = 0;
  for (int k = 0; k < order.count; ++k) {
    const int source = order.source[k];
    const float* from = source < 0 ? tensors.own[tensor][-1 - source] : tensors.received[tensor] + source * order.row;
    open[top++] = *reinterpret_cast<const Pack*>(from + at);
    for (int m = 0; m < order.merges[k]; ++m, --top)
#pragma unroll
      for (int i = 0; i < kWidth; ++i) open[top - 2].values[i] += open[top - 1].values[i];
  }
  *reinterpret_cast<Pack*>(tensors.out[tensor] + at) = open[0];
}

__device__ bool misaligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 != 0; }

__global__ void __launch_bounds__(kThreads)
    ordered_sum_kernel(const __grid_constant__ Tensors tensors, const __grid_constant__ Order order, int own) {
  const int block = static_cast<int>(blockIdx.x);
  const int tensor = tensor_of_block(tensors.first_block, tensors.count, block);
  const int64_t begin = (block - tensors.first_block[tensor]) * kBlock;
  const int64_t end = min(begin + kBlock, tensors.elements[tensor]);
  bool packs = !misaligned(tensors.out[tensor]) && !misaligned(tensors.received[tensor]);
  for (int s = 0; s < own; ++s) packs = packs && !misaligned(tensors.own[tensor][s]);
  const int64_t packed = packs ? begin + (end - begin) / 4 * 4 : begin;
  for (int64_t i = begin + 4 * threadIdx.x; i < packed; i += 4 * kThreads) add_up<4>(tensors, order, tensor, i);
  for (int64_t i = packed + threadIdx.x; i < end; i += kThreads) add_up<1>(tensors, order, tensor, i);
}

struct Pairs {
  const float *saved[kTensors], *tensor[kTensors];
  float* out[kTensors];
  int64_t elements[kTensors];
  int first_block[kTensors];
  int count;
};

__global__ void __launch_bounds__(kThreads) fold_kernel(const __grid_constant__ Pairs pairs, bool save) {
  const int block = static_cast<int>(blockIdx.x);
  const int pair = tensor_of_block(pairs.first_block, pairs.count, block);
  const int64_t begin = (block - pairs.first_block[pair]) * kBlock;
  const int64_t end = min(begin + kBlock, pairs.elements[pair]);
  const float *saved = pairs.saved[pair], *tensor = pairs.tensor[pair];
  float* const out = pairs.out[pair];
  using Pack = simt::Pack<float>;
  const bool packs = !misaligned(saved) && !misaligned(tensor) && !misaligned(out);
  const int64_t packed = packs ? begin + (end - begin) / 4 * 4 : begin;
  for (int64_t i = begin + 4 * threadIdx.x; i < packed; i += 4 * kThreads) {
    Pack x = *reinterpret_cast<const Pack*>(tensor + i);
    if (!save) {
      const Pack y = *reinterpret_cast<const Pack*>(saved + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) x.values[k] = y.values[k] + x.values[k];
    }
    *reinterpret_cast<Pack*>(out + i) = x;
  }
  for (int64_t i = packed + threadIdx.x; i < end; i += kThreads) out[i] = save ? tensor[i] : saved[i] + tensor[i];
}

int blocks_of(int64_t elements) { return static_cast<int>((elements + kBlock - 1) / kBlock); }

}  // namespace

void ordered_sum(const KernelCall& call) {
  const Pieces pieces(call.node.attributes);
  const OrderedSums sums(call.node.attributes);
  const auto merges = call.node.attributes.list("merges");
  const auto own = static_cast<int>((call.node.inputs.size() - 1) / pieces.tensors());
  Order order;
  order.count = sums.count, order.row = pieces.row();
  for (int k = 0; k < sums.count; ++k) {
    order.source[k] = static_cast<short>(sums.source[k]);
    order.merges[k] = static_cast<unsigned char>(merges[static_cast<size_t>(k)]);
  }
  Tensors tensors;
  tensors.count = 0;
  int blocks = 0;
  const auto flush = [&] {
    if (blocks > 0)
      simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, ordered_sum_kernel,
                   tensors, order, own);
    tensors.count = blocks = 0;
  };
  for (size_t t = 0; t < pieces.tensors(); ++t) {
    if (pieces.mine(t) == 0) continue;
    const int i = tensors.count++;
    for (int s = 0; s < own; ++s)
      tensors.own[i][s] = call.in(1 + static_cast<size_t>(s) * pieces.tensors() + t) + pieces.begin(t, pieces.rank());
    tensors.received[i] = call.in(0) + pieces.place(t);
    tensors.out[i] = call.out(t);
    tensors.elements[i] = pieces.mine(t);
    tensors.first_block[i] = blocks;
    blocks += blocks_of(pieces.mine(t));
    if (tensors.count == kTensors) flush();
  }
  flush();
}

void fold(const KernelCall& call) {
  const bool save = call.node.attributes.flag("save");
  Pairs pairs;
  pairs.count = 0;
  int blocks = 0;
  const auto flush = [&] {
    if (blocks > 0)
      simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, fold_kernel, pairs,
                   save);
    pairs.count = blocks = 0;
  };
  for (size_t p = 0; p < call.node.inputs.size() / 2; ++p) {
    const int i = pairs.count++;
    pairs.saved[i] = call.in(2 * p), pairs.tensor[i] = call.in(2 * p + 1), pairs.out[i] = call.out(p);
    pairs.elements[i] = call.in_shape(2 * p).elements();
    pairs.first_block[i] = blocks;
    blocks += blocks_of(pairs.elements[i]);
    if (pairs.count == kTensors) flush();
  }
  flush();
}

}  // namespace llm::cuda
