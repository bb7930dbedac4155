// The CUDA side of the op table: functions that start an op's kernels on the stream of call.cuda. They are defined in
// the .cu files beside the ops, which nvcc compiles for the program, and the C++ compiler for the test bed. The names
// are weak: in a binary without CUDA they are null, and so is the row's `cuda`.
#pragma once

#include "llm/graph/kernel.h"

namespace llm::cuda {

[[gnu::weak]] void embedding(const KernelCall& call);
[[gnu::weak]] void embedding_backward(const KernelCall& call);
[[gnu::weak]] void add(const KernelCall& call);
[[gnu::weak]] void cast(const KernelCall& call);
[[gnu::weak]] void layernorm(const KernelCall& call);
[[gnu::weak]] void layernorm_backward(const KernelCall& call);
[[gnu::weak]] void rmsnorm(const KernelCall& call);
[[gnu::weak]] void rmsnorm_backward(const KernelCall& call);
[[gnu::weak]] void qk_norm(const KernelCall& call);
[[gnu::weak]] void qk_norm_backward(const KernelCall& call);
[[gnu::weak]] void rope_angles(const KernelCall& call);
[[gnu::weak]] void rope(const KernelCall& call);
[[gnu::weak]] void rope_backward(const KernelCall& call);
[[gnu::weak]] void document_starts(const KernelCall& call);
[[gnu::weak]] void query_starts(const KernelCall& call);
[[gnu::weak]] void attention(const KernelCall& call);
[[gnu::weak]] void attention_backward(const KernelCall& call);
[[gnu::weak]] void attention_paged(const KernelCall& call);
[[gnu::weak]] void split_heads(const KernelCall& call);
[[gnu::weak]] void join_heads(const KernelCall& call);
[[gnu::weak]] void merge_attention(const KernelCall& call);
[[gnu::weak]] void take_tokens(const KernelCall& call);
[[gnu::weak]] void add_tokens(const KernelCall& call);
[[gnu::weak]] void quantize(const KernelCall& call);
[[gnu::weak]] void product_fp8(const KernelCall& call);
[[gnu::weak]] void bias_gradient(const KernelCall& call);
[[gnu::weak]] void dropout(const KernelCall& call);
[[gnu::weak]] void linear(const KernelCall& call);
[[gnu::weak]] void linear_backward_input(const KernelCall& call);
[[gnu::weak]] void linear_backward_weight(const KernelCall& call);
[[gnu::weak]] void gelu(const KernelCall& call);
[[gnu::weak]] void gelu_backward(const KernelCall& call);
[[gnu::weak]] void relu2(const KernelCall& call);
[[gnu::weak]] void relu2_backward(const KernelCall& call);
[[gnu::weak]] void swiglu(const KernelCall& call);
[[gnu::weak]] void swiglu_backward(const KernelCall& call);
[[gnu::weak]] void geglu(const KernelCall& call);
[[gnu::weak]] void geglu_backward(const KernelCall& call);
[[gnu::weak]] void softcap(const KernelCall& call);
[[gnu::weak]] void softcap_backward(const KernelCall& call);
[[gnu::weak]] void scale(const KernelCall& call);
[[gnu::weak]] void cross_entropy(const KernelCall& call);
[[gnu::weak]] void cross_entropy_backward(const KernelCall& call);
[[gnu::weak]] void head_loss(const KernelCall& call);
[[gnu::weak]] void mean_loss(const KernelCall& call);
[[gnu::weak]] void sample(const KernelCall& call);
[[gnu::weak]] void square_sums(const KernelCall& call);
[[gnu::weak]] void gradient_norm(const KernelCall& call);
[[gnu::weak]] void ordered_sum(const KernelCall& call);
[[gnu::weak]] void sum_partials(const KernelCall& call);
[[gnu::weak]] void fetch_start(const KernelCall& call);
[[gnu::weak]] void store_start(const KernelCall& call);
[[gnu::weak]] void copy_wait(const KernelCall& call);
[[gnu::weak]] void copy_parts(const KernelCall& call);
[[gnu::weak]] void fold(const KernelCall& call);
[[gnu::weak]] void step_guard(const KernelCall& call);
[[gnu::weak]] void adamw(const KernelCall& call);
[[gnu::weak]] void muon_momentum(const KernelCall& call);
[[gnu::weak]] void muon_apply(const KernelCall& call);
[[gnu::weak]] void combine(const KernelCall& call);
[[gnu::weak]] void route(const KernelCall& call);
[[gnu::weak]] void route_backward(const KernelCall& call);
[[gnu::weak]] void expert_load(const KernelCall& call);
[[gnu::weak]] void router_loss(const KernelCall& call);
[[gnu::weak]] void router_loss_backward(const KernelCall& call);
[[gnu::weak]] void router_statistics(const KernelCall& call);
[[gnu::weak]] void expert_order(const KernelCall& call);
[[gnu::weak]] void expert_rows(const KernelCall& call);
[[gnu::weak]] void expert_rows_backward(const KernelCall& call);
[[gnu::weak]] void expert_sum(const KernelCall& call);
[[gnu::weak]] void expert_sum_backward(const KernelCall& call);
[[gnu::weak]] void expert_counts(const KernelCall& call);
[[gnu::weak]] void expert_exchange(const KernelCall& call);
[[gnu::weak]] void grouped_linear(const KernelCall& call);
[[gnu::weak]] void grouped_linear_backward_input(const KernelCall& call);
[[gnu::weak]] void grouped_linear_backward_weight(const KernelCall& call);

}  // namespace llm::cuda
