// The tensors of a graph for the parameters: apart from the table, so that readers of files need no graph.
#include "llm/model/parameters.h"
#include "llm/ops/head_loss_cuda.h"

namespace llm {

DType type_of(const Parameter& p, DType dtype, std::optional<DType> weights) {
  for (const char* matrix :
       {"qkv.weight", "attention_out.weight", "mlp_in.weight", "mlp_out.weight", "experts_in.weight",
        "experts_out.weight", "shared_in.weight", "shared_out.weight", "head.weight", "token_embedding.weight"})
    if (p.shape.rank() == 2 && p.name.ends_with(matrix)) return weights.value_or(dtype);
  return dtype;
}

void add_parameters(Graph& graph, const ModelConfig& config, DType dtype, std::optional<DType> weights) {
  for (const Parameter& p : parameter_table(config)) {
    const TensorId id = graph.add_tensor(p.name, type_of(p, dtype, weights), p.shape, Role::parameter);
    if (p.name == head_weight(config)) graph.tensor(id).spare_rows = padded_vocabulary(p.shape[0]) - p.shape[0];
  }
}

}  // namespace llm
