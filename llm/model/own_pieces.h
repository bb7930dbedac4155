// Where a rank has only its pieces of the parameters (distribute.h): the names of the tensors.
#pragma once
#include <string>

#include "llm/graph/graph.h"
#include "llm/model/parameters.h"

namespace llm {

// The whole parameter, in a rank's graph.
inline std::string whole_name(const Parameter& p) { return p.name + ".whole"; }

// The tensor of what this rank has of a parameter, of that shape. It has the parameter's name, and the parameter gets
// another.
TensorId own_piece(Graph& graph, const Parameter& parameter, const Shape& shape);

}  // namespace llm
