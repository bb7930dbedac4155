#include <algorithm>

#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {
namespace {

// In floats: the distance of rows that share a set of the first-level cache, and a cache line.
constexpr int64_t kSharedSet = 4096 / sizeof(float), kCacheLine = 64 / sizeof(float);

}  // namespace

PassReport pad_rows(Graph& graph, const std::vector<TensorId>& results) {
  PassReport report{"row padding", "", graph.nodes.size(), graph.nodes.size()};
  std::vector<char> fits(graph.tensors.size(), false);
  for (const Node& node : graph.nodes)
    for (TensorId id : node.outputs) {
      if (id == kNone) continue;
      const Tensor& t = graph.tensor(id);
      fits[static_cast<size_t>(id)] = t.role == Role::activation && t.dtype == DType::fp32 && t.shape.rank() > 1 &&
                                      t.shape.rows() > 1 && t.shape.last() % kSharedSet == 0;
    }
  const auto leave = [&](TensorId id) {
    if (id != kNone) fits[static_cast<size_t>(id)] = false;
  };
  for (TensorId id : results) leave(id);
  for (const Tensor& t : graph.tensors)
    if (t.alias != kNone) leave(t.alias), leave(static_cast<TensorId>(&t - graph.tensors.data()));
  for (const Node& node : graph.nodes) {
    if (node.op->cpu_takes_strides) continue;
    for (TensorId id : node.inputs) leave(id);
    for (TensorId id : node.outputs) leave(id);
  }
  for (size_t i = 0; i < fits.size(); ++i)
    if (fits[i]) graph.tensors[i].row_stride = graph.tensors[i].shape.last() + kCacheLine;
  if (const auto count = std::count(fits.begin(), fits.end(), true))
    report.detail = std::to_string(count) + " activations a cache line wider";
  return report;
}

}  // namespace llm
