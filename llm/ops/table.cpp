#include <string>

#include "llm/ops/ops.h"

namespace llm {

std::span<const Op> op_table() {
  static const std::vector<Op> table = [] {
    std::vector<Op> rows;
    for (auto make : {embedding_ops,   add_ops,           cast_ops,       layernorm_ops,
                      rmsnorm_ops,     qk_norm_ops,       rope_ops,       document_starts_ops,
                      attention_ops,   dropout_ops,       linear_ops,     bias_gradient_ops,
                      quantize_ops,    product_fp8_ops,   activation_ops, swiglu_ops,
                      softcap_ops,     cross_entropy_ops, head_loss_ops,  mean_loss_ops,
                      select_last_ops, gradient_norm_ops, step_guard_ops, adamw_ops,
                      muon_ops,        combine_ops})
      for (Op& op : make()) rows.push_back(std::move(op));
    return rows;
  }();
  return table;
}

const Op* op_named(std::string_view name) {
  for (const Op& op : op_table())
    if (name == op.name) return &op;
  fail("there is no op named \"", name, "\"");
}

}  // namespace llm
