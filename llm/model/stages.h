// Pipeline parallelism: the parts into which a forward graph is cut, each with the blocks of some layers; embedding in
// front of the first, final norm, head and loss behind the last. One tensor goes from a part to the next, the residual
// stream, and its gradient comes back. What needs no parameter (rotary angles, where documents begin) each part computes
// for itself.
#pragma once
#include <vector>

#include "llm/graph/graph.h"
#include "llm/model/mesh.h"
#include "llm/model/parameters.h"

namespace llm {

// The first layer of each part, then the number of layers; at least one layer a part. The most expensive part costs as
// little as can be, by FLOPs: the head counts with the last. Throws UsageError where there are more parts than layers.
std::vector<int> cut_layers(const ModelConfig& config, int64_t tokens, int parts);

// The part that has a parameter. (The last part has the matrix of a tied head as well, the token embedding.)
int part_of(const Parameter& parameter, const std::vector<int>& cuts);

struct ModelPart {
  Graph graph;
  TensorId received = kNone;  // an input; kNone: of the first part
  TensorId sent = kNone;      // kNone: of the last part
};
// `whole`: a forward graph. Parameters that the part does not read are no longer persistent in its graph.
ModelPart cut_part(const Graph& whole, const std::vector<int>& cuts, int part);

}  // namespace llm
