// Chooses the CUDA kernel of attention: the tensor-core kernels for bf16 with a head size that they have and addresses
// aligned to 16 bytes (those for Hopper where the device is one), the plain kernels for everything else.
#include "llm/graph/kernel.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/cuda_kernels.h"

namespace llm::cuda {
namespace {

bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

void check_shape(const AttentionShape& s) {
  if (s.head_size > kPlainHeadSize)
    fail("attention: the CUDA kernels have head sizes up to ", kPlainHeadSize, ", not ", s.head_size,
         "; use more heads or the CPU");
  // The kernels number the tokens of a batch with 32 bits.
  if (s.batch * s.key_rows() > INT32_MAX)
    fail("attention: a batch of ", s.batch, " x ", s.key_rows(),
         " tokens is too large for the CUDA kernels; use a smaller batch");
}

}  // namespace

AttentionShape attention_shape(const KernelCall& call, size_t queries) {
  return llm::attention_shape(call.graph, call.node, queries == 0 ? kAttentionInputs : kAttentionBackwardInputs);
}

void attention(const KernelCall& call) {
  const AttentionShape s = attention_shape(call, 0);
  check_shape(s);
  if (s.batch * s.tokens == 0) return;
  const bool flash = call.in_dtype(0) == DType::bf16 && has_flash_attention(s.head_size) && aligned(call.in<bf16>(0)) &&
                     aligned(call.in<bf16>(2)) && aligned(call.out<bf16>(0));
  if (!flash) return attention_plain(call);
  has_flash_attention_hopper(*call.cuda, s) ? flash_attention_hopper(call) : flash_attention(call);
}

void attention_backward(const KernelCall& call) {
  const AttentionShape s = attention_shape(call, 1);
  check_shape(s);
  if (s.batch * s.tokens == 0) return;
  const bool flash = call.in_dtype(1) == DType::bf16 && has_flash_attention(s.head_size) && aligned(call.in<bf16>(0)) &&
                     aligned(call.in<bf16>(1)) && aligned(call.in<bf16>(2)) && aligned(call.in<bf16>(5)) &&
                     aligned(call.out<bf16>(0)) && aligned(call.out<bf16>(2));
  if (!flash) return attention_backward_plain(call);
  has_flash_attention_hopper(*call.cuda, s) ? flash_attention_backward_hopper(call) : flash_attention_backward(call);
}

}  // namespace llm::cuda
