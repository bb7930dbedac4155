// expert_order on the GPU: a stable counting sort in three kernels. Blocks of 256 choices count how many of theirs fell
// on each expert; one block turns these numbers into the first row of each (block, expert); then each choice takes the
// row behind those of its block that came before it.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/expert_blocks.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = static_cast<int>(kOrderBlock), kScanThreads = static_cast<int>(kMostOrdered);

// A choice of no expert is sorted as one of number E.
__device__ inline int expert_of(int32_t choice, int E) { return choice < 0 ? E : choice; }

struct CountShared {
  int32_t experts[kThreads];
};

// rows (blocks, E + 1): how many choices of the block are each expert's.
__global__ void __launch_bounds__(kThreads) count_kernel(const int32_t* __restrict__ experts,  // (choices)
                                                         int64_t choices, int E, int32_t* rows) {
  auto& s = simt::shared_memory<CountShared>();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool exists = simt::in_bounds(i < choices);
  s.experts[threadIdx.x] = exists ? expert_of(experts[i], E) : -1;
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e <= E; e += kThreads) {
    int32_t count = 0;
    for (int j = 0; j < kThreads; ++j) count += s.experts[j] == e;
    rows[int64_t{blockIdx.x} * (E + 1) + e] = count;
  }
}

struct ScanShared {
  int32_t totals[kScanThreads];
};

// rows: from the numbers of choices to the first row of each (block, expert). A thread takes an expert.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(int64_t blocks, int E, int32_t* rows,  // (blocks, E + 1)
                                                            int32_t* counts) {                     // (E)
  auto& s = simt::shared_memory<ScanShared>();
  const int e = static_cast<int>(threadIdx.x);
  const bool exists = e <= E;
  int32_t total = 0;
  for (int64_t b = 0; b < blocks && exists; ++b) total += rows[b * (E + 1) + e];
  if (exists && e < E) counts[e] = total;
  s.totals[e] = total;
  for (int offset = 1; offset < kScanThreads; offset *= 2) {  // inclusive sums over the threads
    __syncthreads();
    const int32_t left = e >= offset ? s.totals[e - offset] : 0;
    __syncthreads();
    s.totals[e] += left;
  }
  int32_t row = s.totals[e] - total;
  for (int64_t b = 0; b < blocks && exists; ++b) {
    const int32_t count = rows[b * (E + 1) + e];
    rows[b * (E + 1) + e] = row;
    row += count;
  }
}

__global__ void __launch_bounds__(kThreads) place_kernel(const int32_t* __restrict__ experts,  // (choices)
                                                         int64_t choices, int E,
                                                         const int32_t* __restrict__ rows,  // (blocks, E + 1)
                                                         int32_t* order, int32_t* place) {  // (choices)
  auto& s = simt::shared_memory<CountShared>();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool exists = simt::in_bounds(i < choices);
  const int e = exists ? expert_of(experts[i], E) : -1;
  s.experts[threadIdx.x] = e;
  __syncthreads();
  if (!exists) return;
  int32_t row = rows[int64_t{blockIdx.x} * (E + 1) + e];
  for (unsigned j = 0; j < threadIdx.x; ++j) row += s.experts[j] == e;
  order[row] = static_cast<int32_t>(i);
  place[i] = row;
}

}  // namespace

void expert_order(const KernelCall& call) {
  const int64_t choices = call.in_shape(0).elements(), blocks = order_blocks_cuda(choices);
  const auto E = static_cast<int>(call.out_shape(2)[0]);
  auto* const rows = call.workspace<int32_t>();
  cudaStream_t stream = call.cuda->stream();
  const dim3 grid(static_cast<unsigned>(blocks));
  simt::launch(stream, grid, dim3(kThreads), sizeof(CountShared), count_kernel, call.in_int(0), choices, E, rows);
  simt::launch(stream, dim3(1), dim3(kScanThreads), sizeof(ScanShared), scan_kernel, blocks, E, rows,
               call.out<int32_t>(2));
  simt::launch(stream, grid, dim3(kThreads), sizeof(CountShared), place_kernel, call.in_int(0), choices, E, rows,
               call.out<int32_t>(0), call.out<int32_t>(1));
}

}  // namespace llm::cuda
