// Products in 8 bits: the linear layers of the blocks multiply e4m3 weights and activations, and e5m2 gradients in the
// backward pass (Micikevicius et al. 2022). The head, norms, attention and the residual stream stay in bf16, parameter
// gradients in fp32. A matrix that several products read is quantized once, in the layouts that they need.
#include <map>

#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {
namespace {

class Narrower {
 public:
  explicit Narrower(Graph& graph) : g_(graph) {}

  int run() {
    for (const Node& node : g_.nodes) {
      if (node.op == op_named("grouped_linear"))
        fail("--dtype fp8 has no products of experts in 8 bits; --dtype bf16 trains them");
      note_layouts(node);
    }
    std::vector<Node> nodes = std::move(g_.nodes);
    g_.nodes.clear();
    for (Node& node : nodes) {
      g_.phase = node.phase;
      g_.layer = node.layer;
      if (is_product(node))
        narrow(node);
      else
        g_.nodes.push_back(std::move(node));
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

  static bool is_product(const Node& node) { return node.layer >= 0 && node.op->factors; }

  void note_layouts(const Node& node) {
    if (!is_product(node)) return;
    for (const size_t i : {0u, 1u}) {
      const TensorId id = node.inputs[i];
      const bool transposed = node.op->factors->transposed[i];
      const int64_t width = transposed ? g_.shape(id).rows() : g_.shape(id).last();
      if (width % 16)
        fail("fp8 needs products of widths that are multiples of 16, but ", g_.tensor(id).name, " is ",
             g_.shape(id).text(), "; choose other dimensions, or bf16");
      (transposed ? layouts_[id].transposed : layouts_[id].rows) = true;
    }
  }

  // The 8-bit copy of a matrix, and its scale; the first product that asks for it gets the quantize node in front of
  // it.
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

  // Replaces a product by one of 8-bit matrices that writes the same output tensor.
  void narrow(const Node& node) {
    const Slots& slots = node.op->slots;
    const Factors& factors = *node.op->factors;
    if (slots.bias_gradient >= 0)
      if (const TensorId sum = node.output(static_cast<size_t>(slots.bias_gradient)); sum != kNone)
        g_.nodes.push_back(g_.make("bias_gradient", {}, {node.inputs[0]}, {sum}));
    const Factor a = quantized(node.inputs[0], factors.backward, factors.transposed[0]);
    const Factor b = quantized(node.inputs[1], false, factors.transposed[1]);
    std::vector<TensorId> inputs = {a.matrix, a.scale, b.matrix, b.scale};
    if (slots.bias >= 0)
      if (const TensorId bias = node.input(static_cast<size_t>(slots.bias)); bias != kNone) inputs.push_back(bias);
    const bool gradient = g_.dtype(node.outputs[0]) == DType::fp32;  // whether the output is a parameter's gradient
    g_.nodes.push_back(g_.make("product_fp8", {{"gradient", gradient}}, inputs, {node.outputs[0]}));
    ++products_;
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
