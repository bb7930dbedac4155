// The large matrix products behind a node: what `bench --products` times one by one. Attention's products of small blocks
// and Muon's are not among them.
#pragma once
#include <vector>

#include "llm/graph/graph.h"

namespace llm {

// C (m, n) = A (m, k) B (k, n), as gemm() is called on the CPU.
struct Product {
  int64_t m, n, k;
  bool a_transposed, b_transposed;  // as they lie in memory
  int64_t calls;                    // in one run of the node

  friend bool operator==(const Product&, const Product&) = default;
};

// Empty for the other ops. head_loss makes its products by blocks of rows, of which the last may be a little smaller: all
// count as full ones.
std::vector<Product> products_of(const Graph& graph, const Node& node);

// Rows of a block of head_loss on the CPU, for logits (rows, V).
int64_t head_block_rows(int64_t rows, int64_t V);

}  // namespace llm
