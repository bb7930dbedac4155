// The tensors of a graph for the parameters: apart from the table, so that readers of files need no graph.
#include "llm/model/parameters.h"
#include "llm/ops/head_loss_cuda.h"

namespace llm {

void add_parameters(Graph& graph, const ModelConfig& config, DType dtype) {
  for (const Parameter& p : parameter_table(config)) {
    const TensorId id = graph.add_tensor(p.name, dtype, p.shape, Role::parameter);
    if (p.name == head_weight(config)) graph.tensor(id).spare_rows = padded_vocabulary(p.shape[0]) - p.shape[0];
  }
}

}  // namespace llm
