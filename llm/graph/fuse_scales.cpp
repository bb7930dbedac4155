// The scale of an 8-bit matrix follows from the largest absolute value of the matrix. Where the kernel that writes the
// matrix can find that value too, its node gets one more output; `quantize` takes it as an input, and reads the matrix
// once instead of twice.
#include <map>
#include <string_view>

#include "llm/base/error.h"
#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {

PassReport fuse_scales(Graph& graph) {
  PassReport report{"scales", "", graph.nodes.size(), graph.nodes.size()};
  std::map<TensorId, size_t> makers;
  int found = 0, all = 0;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    Node& node = graph.nodes[i];
    if (node.op->slots.largest >= 0) makers[node.outputs[0]] = i;
    if (std::string_view(node.op->name) != "quantize") continue;
    ++all;
    const auto maker = makers.find(node.inputs[0]);
    if (maker == makers.end() || node.input(1) != kNone) continue;
    Node& made_by = graph.nodes[maker->second];
    const auto slot = static_cast<size_t>(made_by.op->slots.largest);
    if (made_by.output(slot) == kNone)
      made_by.set_output(
          slot, graph.add_tensor(graph.tensor(node.inputs[0]).name + ".largest", DType::fp32, {1}, Role::activation));
    node.set_input(1, made_by.output(slot));
    ++found;
  }
  report.detail = concat(found, " of ", all, " found by the kernel that writes the matrix");
  return report;
}

}  // namespace llm
