// The rows of the op table, one function for each file of this folder. llm/ops/README.md says how to add one.
#pragma once
#include <vector>

#include "llm/graph/kernel.h"
#include "llm/graph/op.h"

namespace llm {

std::vector<Op> embedding_ops();
std::vector<Op> add_ops();
std::vector<Op> cast_ops();
std::vector<Op> layernorm_ops();
std::vector<Op> rmsnorm_ops();
std::vector<Op> qk_norm_ops();
std::vector<Op> rope_ops();
std::vector<Op> document_starts_ops();
std::vector<Op> attention_ops();
std::vector<Op> dropout_ops();
std::vector<Op> linear_ops();
std::vector<Op> bias_gradient_ops();
std::vector<Op> quantize_ops();
std::vector<Op> product_fp8_ops();
std::vector<Op> activation_ops();
std::vector<Op> swiglu_ops();
std::vector<Op> softcap_ops();
std::vector<Op> cross_entropy_ops();
std::vector<Op> head_loss_ops();
std::vector<Op> mean_loss_ops();
std::vector<Op> select_last_ops();
std::vector<Op> gradient_norm_ops();
std::vector<Op> step_guard_ops();
std::vector<Op> adamw_ops();
std::vector<Op> muon_ops();
std::vector<Op> combine_ops();

}  // namespace llm
