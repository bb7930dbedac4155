// expert_counts on the GPU, and the exchange: the host must know how many rows go where, so it waits for the counts. A
// walk with such a node is not captured (Op::waits_for_device).
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/exchange.h"
#include "llm/ops/expert_messages.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 128;

struct Counts {
  const int32_t* counts;  // (rows, E)
  int32_t *own, *all;     // (E / ranks), (E)
  int experts, rows;
  int rank, ranks, first, distance;
};

// A thread takes an expert.
__global__ void __launch_bounds__(kThreads) counts_kernel(const __grid_constant__ Counts c) {
  const int e = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), per_rank = c.experts / c.ranks;
  if (!simt::in_bounds(e < c.experts)) return;
  int32_t all = 0, of_ranks = 0;
  for (int row = 0; row < c.rows; ++row) all += c.counts[int64_t{row} * c.experts + e];
  for (int r = 0; r < c.ranks; ++r) of_ranks += c.counts[int64_t{c.first + r * c.distance} * c.experts + e];
  c.all[e] = all;
  if (e / per_rank == c.rank) c.own[e % per_rank] = of_ranks;
}

}  // namespace

void expert_counts(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const RankGroup group = group_of(a);
  const Shape counts = call.in_shape(0);
  const Counts c = {call.in_int(0),
                    call.out<int32_t>(0),
                    call.out<int32_t>(1),
                    static_cast<int>(counts.last()),
                    static_cast<int>(counts.rows()),
                    group.rank,
                    group.ranks,
                    static_cast<int>(a.integer("first_row")),
                    static_cast<int>(a.integer("row_distance"))};
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>((c.experts + kThreads - 1) / kThreads)), dim3(kThreads),
               0, counts_kernel, c);
}

void expert_exchange(const KernelCall& call) {
  std::vector<int32_t> counts(static_cast<size_t>(call.in_shape(1).elements()));
  call.cuda->copy_out(counts.data(), call.in_int(1), counts.size() * sizeof(int32_t));
  start_expert_exchange(call, counts.data());
}

}  // namespace llm::cuda
