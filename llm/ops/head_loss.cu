// head_loss on the GPU. For each block of rows: the product that gives the logits, a kernel that replaces the logits by
// their gradient, and the two products with that gradient.
//
// In the kernel a block of threads takes a row. It copies the row into shared memory in the background, in four parts,
// each of which is summed while the later ones are still being copied, and reads it there again for the gradient: every
// logit is read once and written once. The part of a row that does not fit into shared memory is read twice. (A row of
// a GPT-2 vocabulary takes 98 KiB in bf16, 196 KiB in fp32.)
#include "llm/ops/head_loss_cuda.h"

#include <algorithm>

#include "llm/device/gemm_cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/softmax_cuda.h"

namespace llm::cuda {
namespace {

struct Shared {
  SoftmaxShared softmax;
  simt::Pack<float, 4> row[1];  // the first of the packs of the row that are kept in shared memory
};
constexpr size_t kRowOffset = offsetof(Shared, row);
constexpr int kParts = 4;
constexpr int64_t kRowsInTwos = 112 << 10;  // bytes of a row of which an H100's multiprocessor can keep two

// logits, targets, d_losses -> losses, and the gradient of the logits in their place. With d_losses null it gives the
// losses alone, and no part of the row is kept. Columns from `columns` on are neither read nor written.
template <class T, class Terms>
__global__ void __launch_bounds__(kSoftmaxMostThreads)
    classifier_kernel(T* logits,  // (rows, stride), of which `columns` count; rows start at multiples of 16 bytes
                      const int32_t* __restrict__ targets,  // (rows)
                      const float* __restrict__ d_losses,   // (rows)
                      float* __restrict__ losses,           // (rows)
                      int64_t columns, int64_t stride, int kept, Terms terms) {
  constexpr int N = simt::kPack<T>;
  using Packed = simt::Pack<T, N>;
  auto& s = simt::shared_memory<Shared>();
  auto* copy = reinterpret_cast<Packed*>(s.row);
  T* row = logits + blockIdx.x * stride;
  auto* packs = reinterpret_cast<Packed*>(row);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int count = static_cast<int>(columns / N);  // whole packs; fewer than N columns are left
  const int part = (kept + kParts * threads - 1) / (kParts * threads) * threads;
  const int32_t target = targets[blockIdx.x];

  // Here and below a thread takes every `threads`-th pack, so that it waits only for its own copies.
  for (int first = 0; first < kParts * part; first += part) {
    for (int p = first + thread; p < min(first + part, kept); p += threads)
      simt::copy_async_16(copy + p, packs + p, true);
    simt::copy_commit();
  }
  const int64_t left =
      int64_t{count} * N + thread;  // of the columns behind the packs, each of the first threads takes one
  const bool has_left = simt::in_bounds(left < columns);
  const simt::Pack<T, 1> last = has_left ? simt::Pack<T, 1>{{row[left]}} : simt::Pack<T, 1>{};
  const float target_logit = thread == 0 && target >= 0 ? to_float(row[target]) : 0;

  RunningSum running;
  if (has_left) add_pack(running, last, terms);
  for (int first = 0; first < kParts * part; first += part) {
    simt::copy_wait<kParts - 1>();
    for (int p = first + thread; p < min(first + part, kept); p += threads) add_pack(running, copy[p], terms);
    simt::copy_commit();  // an empty group, so that the next part's group is again the fourth latest
  }
  const int behind = kept + (thread + threads - kept % threads) % threads;  // this thread's first pack that is not kept
#pragma unroll 4
  for (int p = behind; p < count; p += threads) add_pack(running, packs[p], terms);
  // After the barrier in this call all threads have read the logits that they need, and the gradient may overwrite
  // them.
  const float lse = block_log_sum_exp(running, s.softmax);
  if (thread == 0) losses[blockIdx.x] = target < 0 ? 0.0f : terms.loss(lse, target_logit);
  if (!d_losses) return;

  const float d = target < 0 ? 0.0f : d_losses[blockIdx.x];
  const auto put = [&](auto pack, auto* to, int64_t column) {
    gradient_of_pack(pack, lse, d, column, target, terms);
    *to = pack;
  };
  for (int p = thread; p < kept; p += threads) put(copy[p], packs + p, int64_t{p} * N);
  for (int p = behind; p < count; p += threads) put(packs[p], packs + p, int64_t{p} * N);
  if (has_left) put(last, reinterpret_cast<simt::Pack<T, 1>*>(row + left), left);
}

template <class T, class Terms>
void run(const KernelCall& call, const Terms& terms) {
  const int64_t rows = call.in_shape(0).rows(), V = call.in_shape(1)[0], C = call.in_shape(1)[1];
  const DType dtype = call.in_dtype(0);
  const int64_t limit = call.node.attributes.integer("logits_bytes", kHeadLogitsBytes);
  const auto [block, stride] = head_blocks_cuda(rows, V, dtype, limit);
  const T *x = call.in<T>(0), *weight = call.in<T>(1);
  const float* d_losses = call.in(3);
  T *logits = call.workspace<T>(), *dx = call.out<T>(1);
  float *losses = call.out(0), *d_weight = call.out(2);

  const int64_t packs = V / simt::kPack<T>;
  const size_t room = (call.cuda->properties().shared_memory_bytes - kRowOffset) / 16;
  const int kept = d_losses ? static_cast<int>(std::min(packs, static_cast<int64_t>(room))) : 0;
  // Where only one row fits into a multiprocessor's shared memory, its block gets as many threads as a block can have.
  const bool is_alone = packs * 16 > kRowsInTwos;
  const dim3 threads = softmax_threads(packs, is_alone ? kSoftmaxMostThreads : kSoftmaxThreads);
  const size_t shared = std::max(sizeof(Shared), kRowOffset + static_cast<size_t>(kept) * 16);
  // The spare rows of the weight and of its gradient are zeros and take part in the products: cuBLASLt is faster with n
  // a multiple of 64. The columns of the logits that belong to spare rows are zeros, and classifier_kernel does not use
  // them.
  int64_t n = V + call.graph.tensor(call.node.inputs[1]).spare_rows;
  if (d_losses) n = std::min(n, V + call.graph.tensor(call.node.outputs[2]).spare_rows);
  n = std::min(n, stride);
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    const CudaMatrix x_rows{x + first * C, dtype, C, false}, d_logits{logits, dtype, stride, false};
    cuda_gemm(*call.cuda, {.m = count,
                           .n = n,
                           .k = C,
                           .a = x_rows,
                           .b = {weight, dtype, C, true},
                           .c = logits,
                           .c_dtype = dtype,
                           .c_stride = stride});
    simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(count)), threads, shared, classifier_kernel<T, Terms>,
                 logits, call.in_int(2) + first, d_losses ? d_losses + first : nullptr, losses + first, V, stride, kept,
                 terms);
    if (!d_losses) continue;
    cuda_gemm(*call.cuda, {.m = count,
                           .n = C,
                           .k = n,
                           .a = d_logits,
                           .b = {weight, dtype, C, false},
                           .c = dx + first * C,
                           .c_dtype = dtype,
                           .c_stride = C});
    const bool adds = first > 0 || call.accumulates(2);
    cuda_gemm(*call.cuda, {.m = n,
                           .n = C,
                           .k = count,
                           .a = {logits, dtype, stride, true},
                           .b = x_rows,
                           .c = d_weight,
                           .c_dtype = DType::fp32,
                           .c_stride = C,
                           .accumulate = adds});
  }
}

}  // namespace

void head_loss(const KernelCall& call) {
  with_loss_terms(call.node.attributes, [&](const auto& terms) {
    call.in_dtype(0) == DType::bf16 ? run<bf16>(call, terms) : run<float>(call, terms);
  });
}

}  // namespace llm::cuda
