// Products in 8 bits: the linear layers of the blocks multiply e4m3 weights and activations, and e5m2 gradients in the
// backward pass (Micikevicius et al. 2022); the head, norms, attention and the residual stream stay in bf16, parameter
// gradients in fp32. A matrix that several products read is quantized once, in the layouts they need.
#include <map>

#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {
namespace {

class Narrower {
 public:
  explicit Narrower(Graph& graph) : g_(graph) {}

  int run() {
    for (const Node& node : g_.nodes) note_layouts(node);
    std::vector<Node> nodes = std::move(g_.nodes);
    g_.nodes.clear();
    for (Node& node : nodes) {
      g_.phase = node.phase;
      g_.layer = node.layer;
      if (!is_product(node))
        g_.nodes.push_back(std::move(node));
      else if (is(node, "linear"))
        product(quantized(node.inputs[0], false, false), quantized(node.inputs[1], false, false), node.input(2),
                node.outputs[0], false);
      else if (is(node, "linear_backward_input"))
        product(quantized(node.inputs[0], true, false), quantized(node.inputs[1], false, true), kNone, node.outputs[0],
                false);
      else
        weight_gradient(node);
    }
    g_.phase = Phase::forward;
    g_.layer = -1;
    return products_;
  }

 private:
  struct Layouts {
    bool rows = false, transposed = false;
  };
  struct Quantized {
    TensorId rows, transposed, scale;
  };
  struct Factor {
    TensorId matrix, scale;
  };

  static bool is(const Node& node, std::string_view name) { return node.op->name == name; }
  static bool is_product(const Node& node) {
    return node.layer >= 0 &&
           (is(node, "linear") || is(node, "linear_backward_input") || is(node, "linear_backward_weight"));
  }

  void note_layouts(const Node& node) {
    if (!is_product(node)) return;
    const bool weight = is(node, "linear_backward_weight"), input = is(node, "linear_backward_input");
    const auto need = [&](TensorId id, bool transposed) {
      const int64_t width = transposed ? g_.shape(id).rows() : g_.shape(id).last();
      if (width % 16)
        fail("--dtype fp8 needs products of widths that are multiples of 16, but ", g_.tensor(id).name, " is ",
             g_.shape(id).text(), "; choose other dimensions, or --dtype bf16");
      (transposed ? layouts_[id].transposed : layouts_[id].rows) = true;
    };
    need(node.inputs[0], weight);
    need(node.inputs[1], weight || input);
  }

  // The matrix in 8 bits; made when it is first asked for, right in front of the product.
  Factor quantized(TensorId id, bool gradient, bool transposed) {
    if (!quantized_.contains(id)) {
      const Layouts layouts = layouts_[id];
      const auto made =
          g_.add("quantize", {{"e5m2", gradient}, {"rows", layouts.rows}, {"transposed", layouts.transposed}}, {id},
                 g_.tensor(id).name + ".fp8");
      quantized_[id] = {made[0], made[1], made[2]};
    }
    const Quantized& q = quantized_[id];
    return {transposed ? q.transposed : q.rows, q.scale};
  }

  // Writes a b^T to `output`, which keeps its name and its alias.
  void product(Factor a, Factor b, TensorId bias, TensorId output, bool gradient) {
    std::vector<TensorId> inputs = {a.matrix, a.scale, b.matrix, b.scale};
    if (bias != kNone) inputs.push_back(bias);
    g_.nodes.push_back(g_.make("product_fp8", {{"gradient", gradient}}, inputs, {output}));
    ++products_;
  }

  void weight_gradient(const Node& node) {
    if (node.output(1) != kNone) g_.nodes.push_back(g_.make("bias_gradient", {}, {node.inputs[0]}, {node.outputs[1]}));
    product(quantized(node.inputs[0], true, true), quantized(node.inputs[1], false, true), kNone, node.outputs[0],
            true);
  }

  Graph& g_;
  std::map<TensorId, Layouts> layouts_;
  std::map<TensorId, Quantized> quantized_;
  int products_ = 0;
};

}  // namespace

PassReport narrow_to_fp8(Graph& graph) {
  PassReport report{"fp8", "", graph.nodes.size(), 0};
  report.detail = std::to_string(Narrower(graph).run()) + " products in 8 bits";
  report.nodes_after = graph.nodes.size();
  return report;
}

}  // namespace llm
