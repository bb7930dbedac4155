// The rows of the op table: one function for each .cpp file of this folder that has rows. llm/ops/README.md says how to
// add an op.
#pragma once
#include <vector>

#include "llm/graph/kernel.h"
#include "llm/graph/op.h"

// The files that have rows, in the order of the table.
// clang-format off
#define LLM_OP_FILES(_)                                                                                        \
  _(embedding) _(add) _(cast) _(norm) _(qk_norm) _(rope) _(document_starts) _(attention) _(attention_paged)    \
  _(split_heads) _(merge_attention) _(ring_attention) _(token_range)                                           \
  _(route) _(router_loss) _(expert_order) _(expert_rows) _(grouped_linear)                                     \
  _(dropout) _(linear) _(bias_gradient) _(quantize) _(product_fp8) _(activation) _(swiglu) _(softcap) _(scale) \
  _(cross_entropy) _(head_loss) _(mean_loss) _(sample) _(square_sums) _(step_guard) _(adamw)                   \
  _(muon) _(combine) _(exchange) _(row_exchange) _(expert_exchange) _(copy_parts) _(host_copy) _(ordered_sum)
// clang-format on

namespace llm {

#define LLM_DECLARE_OPS(file) std::vector<Op> file##_ops();
LLM_OP_FILES(LLM_DECLARE_OPS)
#undef LLM_DECLARE_OPS

}  // namespace llm
