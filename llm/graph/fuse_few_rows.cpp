// A product of few rows on a GPU, as in token-by-token decoding, takes along what stands in front of it and behind: the time
// from one kernel to the next counts as much there as the bytes. The patterns are chains in which each tensor has one reader:
// norm -> linear, linear -> rope, linear -> swiglu, linear -> add.
#include "llm/device/few_rows_cuda.h"
#include "llm/graph/fusion.h"
#include "llm/graph/passes.h"

namespace llm {
namespace {

class FewRowsFuser : Fusion {
 public:
  using Fusion::Fusion;

  int run() {
    const int norms = apply([&](int i) { return is_few_rows(i) && take_norm(i); });
    return norms + apply([&](int i) { return is_few_rows(i) && (take_rope(i) || take_swiglu(i) || take_addition(i)); });
  }

 private:
  // Whether that kernel computes the product: of any number of rows, where their bits must not depend on the number.
  bool is_few_rows(int i) {
    return is(i, "linear") &&
           (g_.shape(node(i).inputs[0]).rows() <= kFewRows || node(i).attributes.flag("row_invariant"));
  }

  // y = norm(x); linear(y) -> linear(x) with the norm's weights.
  bool take_norm(int index) {
    Node& linear = node(index);
    const TensorId y = linear.inputs[0];
    const Shape& shape = g_.shape(y);
    if (writer(y) == kOutside || only_reader(y) != index ||
        !few_rows_takes_norm(linear.attributes.flag("row_invariant") ? 1 : shape.rows(), shape.last(), g_.dtype(y)))
      return false;
    Node& norm = node(writer(y));
    if (!has(norm, &Slots::delta) || norm.outputs[0] != y || input(norm, &Slots::delta) != kNone) return false;
    for (size_t i = 1; i < norm.outputs.size(); ++i)
      if (norm.outputs[i] != kNone && !readers(norm.outputs[i]).empty()) return false;
    linear.inputs[0] = norm.inputs[0];
    linear.set_input(linear_input::norm_weight, norm.inputs[1]);
    if (has(norm, &Slots::bias)) linear.set_input(linear_input::norm_bias, input(norm, &Slots::bias));
    linear.attributes.set("epsilon", norm.attributes.number("epsilon"));
    norm.op = nullptr;
    return true;
  }

  // The node that alone reads what the product makes, if it is of this op; or null.
  Node* follower(int index, std::string_view name) {
    const int reader = only_reader(node(index).outputs[0]);
    return reader != kOutside && is(reader, name) ? &node(reader) : nullptr;
  }

  // Query and key heads are turned as they are made.
  bool take_rope(int index) {
    Node& linear = node(index);
    Node* const rope = follower(index, "rope");
    if (!rope || rope->attributes.has("rotary_size") || writer(rope->inputs[1]) > index) return false;
    linear.set_input(linear_input::angles, rope->inputs[1]);
    for (const char* name : {"heads", "kv_heads", "head_size"})
      linear.attributes.set(name, rope->attributes.integer(name));
    linear.outputs[0] = rope->outputs[0];
    rope->op = nullptr;
    return true;
  }

  bool take_swiglu(int index) {
    Node& linear = node(index);
    Node* const swiglu = follower(index, "swiglu");
    if (!swiglu) return false;
    linear.attributes.set("activation", static_cast<int64_t>(ActivationKind::swiglu));
    linear.outputs = {kNone, swiglu->outputs[0]};
    swiglu->op = nullptr;
    return true;
  }

  // sum = add(x, linear(..)), or the other way round.
  bool take_addition(int index) {
    Node& linear = node(index);
    Node* const add = follower(index, "add");
    if (!add) return false;
    const TensorId other = add->inputs[add->inputs[0] == linear.outputs[0] ? 1 : 0];
    if (writer(other) > index) return false;
    linear.set_input(linear_input::addend, other);
    linear.outputs[0] = add->outputs[0];
    add->op = nullptr;
    return true;
  }
};

}  // namespace

int fuse_few_rows(Graph& graph, const std::vector<TensorId>& results) { return FewRowsFuser(graph, results).run(); }

}  // namespace llm
