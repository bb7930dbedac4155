// How the tensors of muon_momentum and muon_apply belong together (muon.cpp), for their kernels on both devices.
#pragma once
#include <vector>

#include "llm/graph/graph.h"

namespace llm {

// Some rows of a matrix, which are orthogonalized by themselves.
struct MuonPart {
  size_t matrix;  // its number among the node's matrices
  int64_t first;  // element of the matrix
  int64_t rows, columns;
};
std::vector<MuonPart> muon_momentum_parts(const Graph& graph, const Node& node);

struct MuonMatrix {
  size_t input;  // the parameter; then the master, then `parts` parts
  size_t parts;
};
std::vector<MuonMatrix> muon_apply_matrices(const Graph& graph, const Node& node);

// What the learning rate is multiplied by for a part.
double muon_step_size(double rms, const Shape& part);

}  // namespace llm
