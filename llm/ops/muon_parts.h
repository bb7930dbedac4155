// Which inputs and outputs of muon_momentum and muon_apply (muon.cpp) belong to one matrix, for the kernels of both
// devices.
#pragma once
#include <span>

#include "llm/base/error.h"
#include "llm/graph/graph.h"

namespace llm {

// Some rows of a matrix, which are orthogonalized by themselves.
struct MuonPart {
  size_t matrix;  // the number of the matrix in the node
  size_t output;  // the number of the node's output that is the part's x
  int64_t first;  // the part's first element in the matrix
  int64_t rows, columns;
  int64_t elements() const { return rows * columns; }
};

// Calls body(part) for each part of muon_momentum, in order. Allocates nothing, since kernels call this in every step.
// Throws Error where the parts' rows do not fill the matrices.
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
  size_t input;   // the number of the input that is the parameter; the master and `parts` parts follow
  size_t output;  // the number of the output that is the parameter; the master follows
  size_t parts;
};

// Calls body(matrix) for each matrix of muon_apply, in order. Throws Error where the parts do not fill a matrix.
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

// The size of the step of part number `number` (rows, columns) of a parameter as a multiple of the learning rate: rms
// sqrt(max(rows, columns)).
double muon_step_size(const Attributes& attributes, const Shape& part, size_t number);

}  // namespace llm
