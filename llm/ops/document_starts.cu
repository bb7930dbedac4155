// document_starts on the GPU: a warp takes a row, 32 tokens at a time; a vote of its lanes shows where documents begin.
// query_starts: a thread takes a query.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/chunks.h"
#include "llm/ops/cuda_kernels.h"

namespace llm::cuda {
namespace {

__global__ void __launch_bounds__(32) document_starts_kernel(const int32_t* __restrict__ tokens,  // (rows, columns)
                                                             int32_t* __restrict__ starts,        // (rows, columns)
                                                             int64_t columns, int32_t end_of_text) {
  const int64_t row = int64_t{blockIdx.x} * columns;
  const unsigned up_to_here = 0xffffffffu >> (31 - threadIdx.x);
  int start = 0;
  for (int64_t first = 0; first < columns; first += 32) {
    const int64_t t = first + threadIdx.x;
    const bool exists = simt::in_bounds(t < columns);
    const unsigned opens = __ballot_sync(simt::kWholeWarp, exists && tokens[row + t] == end_of_text);
    const auto last = [&](unsigned votes) {
      return votes ? static_cast<int>(first) + 31 - __clz(static_cast<int>(votes)) : start;
    };
    if (exists) starts[row + t] = last(opens & up_to_here);
    start = last(opens);
  }
}

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    query_starts_kernel(const int32_t* __restrict__ all,  // (B, T)
                        int32_t* __restrict__ starts,     // (B, tokens)
                        int64_t T, int64_t tokens, int64_t elements, Chunks queries, Chunks keys) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (simt::in_bounds(i < elements))
    starts[i] = static_cast<int32_t>(keys.before(all[i / tokens * T + queries.position(i % tokens)]));
}

}  // namespace

void query_starts(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const int64_t tokens = call.out_shape(0)[1], elements = call.out_shape(0).elements();
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>((elements + kThreads - 1) / kThreads)), dim3(kThreads),
               0, query_starts_kernel, call.in_int(0), call.out<int32_t>(0), call.in_shape(0)[1], tokens, elements,
               chunks_of(a, tokens), key_chunks_of(a));
}

void document_starts(const KernelCall& call) {
  const Shape& shape = call.in_shape(0);
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(shape.rows())), dim3(32), 0, document_starts_kernel,
               call.in_int(0), call.out<int32_t>(0), shape.last(),
               static_cast<int32_t>(call.node.attributes.integer("end_of_text")));
}

}  // namespace llm::cuda
