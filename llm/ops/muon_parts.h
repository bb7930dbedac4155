// How the tensors of muon_momentum and muon_apply belong together (muon.cpp), for their kernels on both devices.
#pragma once
#include <span>

#include "llm/base/error.h"
#include "llm/graph/graph.h"

namespace llm {

// Some rows of a matrix, which are orthogonalized by themselves.
struct MuonPart {
  size_t matrix;  // its number among the node's matrices
  size_t output;  // of the node: the part's x
  int64_t first;  // element of the matrix
  int64_t rows, columns;
  int64_t elements() const { return rows * columns; }
};

// Calls body(part) for each part of muon_momentum, in order. (Nothing is allocated: kernels call this in every step.)
template <class Body>
void for_muon_parts(const Graph& graph, const Node& node, Body&& body) {
  const std::span<const int64_t> rows = node.attributes.list("rows");
  const size_t matrices = (node.inputs.size() - 1) / 2;
  size_t part = 0;
  for (size_t m = 0; m < matrices; ++m) {
    const Shape shape = graph.shape(node.inputs[1 + 2 * m]);
    for (int64_t row = 0; row < shape[0]; row += rows[part++]) {
      if (part == rows.size() || rows[part] < 1 || row + rows[part] > shape[0])
        fail("muon_momentum: the parts' rows do not fill ", shape.text(), " from row ", row, " on");
      body(MuonPart{m, matrices + part, row * shape[1], rows[part], shape[1]});
    }
  }
}

struct MuonMatrix {
  size_t input;   // the parameter; then the master, then `parts` parts
  size_t output;  // the parameter; then the master
  size_t parts;
};

// Calls body(matrix) for each matrix of muon_apply, in order.
template <class Body>
void for_muon_matrices(const Graph& graph, const Node& node, Body&& body) {
  size_t output = 0;
  for (size_t i = 1; i < node.inputs.size(); output += 2) {
    MuonMatrix matrix{i, output, 0};
    const Shape shape = graph.shape(node.inputs[i]);
    i += 2;
    for (int64_t row = 0; row < shape[0]; ++matrix.parts, ++i) {
      const TensorId part = node.input(i);
      if (part == kNone || graph.dtype(part) != graph.dtype(node.inputs[3]) || graph.shape(part).last() != shape[1] ||
          row + graph.shape(part)[0] > shape[0])
        fail("muon_apply: the parts do not fill ", shape.text());
      row += graph.shape(part)[0];
    }
    body(matrix);
  }
}

// What the learning rate is multiplied by for a part.
double muon_step_size(double rms, const Shape& part);

}  // namespace llm
