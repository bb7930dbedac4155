// A product of few rows on a GPU, as in token-by-token decoding, takes along what stands in front of it and behind: the time
// from one kernel to the next counts as much there as the bytes. The patterns are chains in which each tensor has one reader:
// norm -> linear, linear -> rope, linear -> swiglu, linear -> add.
#include <algorithm>
#include <string_view>

#include "llm/device/few_rows_cuda.h"
#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {
namespace {

class FewRowsFuser {
 public:
  FewRowsFuser(Graph& graph, const std::vector<TensorId>& results) : g_(graph), results_(results) {}

  int run() {
    int count = 0;
    for (size_t i = 0; i < g_.nodes.size(); ++i) {
      if (!is(g_.nodes[i], "linear") || g_.shape(g_.nodes[i].inputs[0]).rows() > kFewRows) continue;
      count += take_norm(i) + (take_rope(i) || take_swiglu(i) || take_addition(i));
    }
    std::erase_if(g_.nodes, [](const Node& n) { return n.op == nullptr; });
    return count;
  }

 private:
  static bool is(const Node& node, std::string_view name) { return node.op && node.op->name == name; }

  // The node that alone reads the tensor, which is no result; or null.
  Node* only_reader(TensorId id) {
    Node* reader = nullptr;
    if (std::find(results_.begin(), results_.end(), id) != results_.end()) return nullptr;
    for (Node& node : g_.nodes)
      for (TensorId input : node.inputs) {
        if (!node.op || input != id) continue;
        if (reader) return nullptr;
        reader = &node;
      }
    return reader;
  }
  bool is_read(TensorId id) const {
    return std::any_of(g_.nodes.begin(), g_.nodes.end(), [&](const Node& node) {
      return node.op && std::find(node.inputs.begin(), node.inputs.end(), id) != node.inputs.end();
    });
  }

  // y = norm(x); linear(y) -> linear(x) with the norm's weights.
  bool take_norm(size_t index) {
    Node& linear = g_.nodes[index];
    const TensorId y = linear.inputs[0];
    const Shape& shape = g_.shape(y);
    const auto norm = std::find_if(g_.nodes.begin(), g_.nodes.end(), [&](const Node& node) {
      return (is(node, "layernorm") || is(node, "rmsnorm")) && node.outputs[0] == y;
    });
    if (norm == g_.nodes.end() || only_reader(y) != &linear ||
        !few_rows_takes_norm(shape.rows(), shape.last(), g_.dtype(y)))
      return false;
    const bool centered = is(*norm, "layernorm");
    if (norm->input(centered ? 3 : 2) != kNone) return false;  // it adds up two tensors
    for (size_t i = 1; i < norm->outputs.size(); ++i)
      if (norm->outputs[i] != kNone && is_read(norm->outputs[i])) return false;
    linear.inputs[0] = norm->inputs[0];
    linear.set_input(linear_input::norm_weight, norm->inputs[1]);
    if (centered) linear.set_input(linear_input::norm_bias, norm->inputs[2]);
    linear.attributes.set("epsilon", norm->attributes.number("epsilon"));
    norm->op = nullptr;
    return true;
  }

  // Query and key heads are turned as they are made.
  bool take_rope(size_t index) {
    Node& linear = g_.nodes[index];
    Node* const rope = only_reader(linear.outputs[0]);
    if (!rope || !is(*rope, "rope") || writer(rope->inputs[1]) > static_cast<int>(index)) return false;
    linear.set_input(linear_input::angles, rope->inputs[1]);
    for (const char* name : {"heads", "kv_heads", "head_size"})
      linear.attributes.set(name, rope->attributes.integer(name));
    linear.outputs[0] = rope->outputs[0];
    rope->op = nullptr;
    return true;
  }

  bool take_swiglu(size_t index) {
    Node& linear = g_.nodes[index];
    Node* const swiglu = only_reader(linear.outputs[0]);
    if (!swiglu || !is(*swiglu, "swiglu")) return false;
    linear.attributes.set("activation", static_cast<int64_t>(ActivationKind::swiglu));
    linear.outputs = {kNone, swiglu->outputs[0]};
    swiglu->op = nullptr;
    return true;
  }

  // sum = add(x, linear(..)), or the other way round.
  bool take_addition(size_t index) {
    Node& linear = g_.nodes[index];
    const TensorId y = linear.outputs[0];
    Node* const add = only_reader(y);
    if (!add || !is(*add, "add")) return false;
    const TensorId other = add->inputs[0] == y ? add->inputs[1] : add->inputs[0];
    if (writer(other) > static_cast<int>(index)) return false;
    linear.set_input(linear_input::addend, other);
    linear.outputs[0] = add->outputs[0];
    add->op = nullptr;
    return true;
  }

  int writer(TensorId id) const {
    for (size_t i = 0; i < g_.nodes.size(); ++i)
      if (g_.nodes[i].op &&
          std::find(g_.nodes[i].outputs.begin(), g_.nodes[i].outputs.end(), id) != g_.nodes[i].outputs.end())
        return static_cast<int>(i);
    return -1;
  }

  Graph& g_;
  const std::vector<TensorId>& results_;
};

}  // namespace

int fuse_few_rows(Graph& graph, const std::vector<TensorId>& results) { return FewRowsFuser(graph, results).run(); }

}  // namespace llm
