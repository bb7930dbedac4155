// The tensors of a graph for the parameters: apart from the table, so that readers of files need no graph.
#include <algorithm>

#include "llm/model/parameters.h"
#include "llm/ops/head_loss_cuda.h"

namespace llm {

bool is_matrix_of_weights(const Parameter& p) {
  for (const char* matrix :
       {"qkv.weight", "attention_out.weight", "mlp_in.weight", "mlp_out.weight", "experts_in.weight",
        "experts_out.weight", "shared_in.weight", "shared_out.weight", "head.weight", "token_embedding.weight"})
    if (p.shape.rank() == 2 && p.name.ends_with(matrix)) return true;
  return false;
}

DType type_of(const Parameter& p, DType dtype, std::optional<DType> weights) {
  return is_matrix_of_weights(p) ? weights.value_or(dtype) : dtype;
}

void add_parameters(Graph& graph, const ModelConfig& config, DType dtype, std::optional<DType> weights) {
  for (const Parameter& p : parameter_table(config)) {
    const TensorId id = graph.add_tensor(p.name, type_of(p, dtype, weights), p.shape, Role::parameter);
    if (weights && is_matrix_of_weights(p)) graph.tensor(id).panel_rows = p.shape[0] / std::max<int64_t>(p.experts, 1);
    if (p.name == head_weight(config)) graph.tensor(id).spare_rows = padded_vocabulary(p.shape[0]) - p.shape[0];
  }
}

}  // namespace llm
