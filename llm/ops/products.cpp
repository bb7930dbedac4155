#include "llm/ops/products.h"

#include <string_view>

#include "llm/graph/op.h"

namespace llm {

std::vector<Product> products_of(const Graph& graph, const Node& node) {
  const std::string_view op = node.op->name;
  const auto rows = [&](size_t input) { return graph.shape(node.inputs[input]).rows(); };
  const auto weight = [&](TensorId id) { return graph.shape(id); };
  if (op == "linear") {
    const Shape w = weight(node.inputs[1]);
    return {{rows(0), w[0], w[1], false, true, 1}};
  }
  if (op == "linear_backward_input") {
    const Shape w = weight(node.inputs[1]);
    return {{rows(0), w[1], w[0], false, false, 1}};
  }
  if (op == "linear_backward_weight") {
    const Shape w = weight(node.outputs[0]);
    return {{w[0], w[1], rows(0), true, false, 1}};
  }
  if (op == "head_loss") {
    const int64_t V = weight(node.inputs[1])[0], C = weight(node.inputs[1])[1];
    const int64_t block = head_block_rows(rows(0), V), blocks = (rows(0) + block - 1) / block;
    std::vector<Product> products = {{block, V, C, false, true, blocks}};
    if (node.input(3) != kNone) {
      products.push_back({block, C, V, false, false, blocks});
      products.push_back({V, C, block, true, false, blocks});
    }
    return products;
  }
  return {};
}

}  // namespace llm
