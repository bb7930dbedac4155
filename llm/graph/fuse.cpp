// Fusion by window and use count. A pattern is a node and the node that reads its output; where nothing else stands
// between them, the second one's work moves into the first (or the first one's into the second), and a tensor that would
// have gone through memory is gone.
#include "llm/graph/fusion.h"
#include "llm/graph/passes.h"

namespace llm {
namespace {

class Fuser : Fusion {
 public:
  using Fusion::Fusion;

  std::string run(const Target& target) {
    const int norms = apply([&](int i) { return add_into_norm(i); });
    const int activations = apply([&](int i) { return activation_into_linear(i); });
    const int derivatives = apply([&](int i) { return derivative_into_linear(i); });
    const int kept = target.cuda ? 0 : apply([&](int i) { return derivative_instead_of_input(i); });
    const int addends = apply([&](int i) { return addend_into_norm_backward(i); });
    const int bias_gradients = target.cuda ? apply([&](int i) { return bias_gradient_into_writer(i); }) : 0;
    const int heads = apply([&](int i) { return head(i); });
    const int squares = target.cuda ? 0 : apply([&](int i) { return product_with_itself(i); });
    std::string text;
    const auto count = [&](int n, const char* what) {
      if (n) text += (text.empty() ? "" : ", ") + std::to_string(n) + " " + what;
    };
    count(norms, "residual + norm");
    count(activations, "linear + activation");
    count(derivatives, "linear backward + activation backward");
    count(kept, "derivative kept");
    count(addends, "norm backward + gradient sum");
    count(bias_gradients, "norm backward + bias gradient");
    count(heads, "head + cross-entropy");
    count(squares, "halves of symmetric products");
    return text;
  }

 private:
  // sum = add(x, delta); norm(sum) -> norm(x, .., delta), which also gives the sum. Moving the addition down to the norm
  // is allowed because the norm is the sum's first reader.
  bool add_into_norm(int index) {
    Node& add = node(index);
    if (!is(index, "add")) return false;
    const int first = first_reader(add.outputs[0]);
    if (first == kOutside) return false;
    Node& norm = node(first);
    if (!has(norm, &Slots::delta) || input(norm, &Slots::delta) != kNone || norm.inputs[0] != add.outputs[0])
      return false;
    norm.inputs[0] = add.inputs[0];
    norm.set_input(slot(norm, &Slots::delta), add.inputs[1]);
    norm.set_output(slot(norm, &Slots::sum), add.outputs[0]);
    add.op = nullptr;
    return true;
  }

  // y = linear(x); a = gelu(y) -> linear gives a too, and y only where the backward pass reads it.
  bool activation_into_linear(int index) {
    Node& linear = node(index);
    if (!has(linear, &Slots::activated) || linear.attributes.has("activation")) return false;
    const TensorId y = linear.outputs[0];
    if (first_reader(y) == kOutside) return false;
    Node& activation = node(first_reader(y));
    const ActivationKind kind = activation.op ? activation.op->function : ActivationKind::none;
    if (kind == ActivationKind::none) return false;
    linear.attributes.set("activation", static_cast<int64_t>(kind));
    linear.set_output(slot(linear, &Slots::activated), activation.outputs[0]);
    if (only_reader(y) != kOutside) linear.outputs[0] = kNone;
    activation.op = nullptr;
    return true;
  }

  // da = linear_backward_input(dy, w); dh = gelu_backward(da, h) -> one product whose epilogue multiplies.
  bool derivative_into_linear(int index) {
    Node& linear = node(index);
    if (!has(linear, &Slots::hidden) || linear.attributes.has("activation")) return false;
    const TensorId da = linear.outputs[0];
    const int reader = only_reader(da);
    if (reader == kOutside || !node(reader).op || node(reader).inputs[0] != da) return false;
    Node& backward = node(reader);
    const ActivationKind kind = backward.op->derivative_of;
    if (kind == ActivationKind::none || writer(backward.inputs[1]) > index) return false;
    linear.attributes.set("activation", static_cast<int64_t>(kind));
    linear.set_input(slot(linear, &Slots::hidden), backward.inputs[1]);
    linear.outputs[0] = backward.outputs[0];
    backward.op = nullptr;
    return true;
  }

  // Where only the derivative is made of y = linear(x) in the backward pass, it is made in the forward pass, beside the
  // activation, with which it shares its exponential, and takes y's place.
  bool derivative_instead_of_input(int index) {
    Node& backward = node(index);
    if (!has(backward, &Slots::hidden) || !backward.attributes.has("activation")) return false;
    const TensorId y = input(backward, &Slots::hidden);
    const int first = writer(y);
    if (first == kOutside || !has(node(first), &Slots::activated) || !node(first).attributes.has("activation") ||
        only_reader(y) != index || g_.dtype(y) != DType::fp32)
      return false;
    const TensorId derivative =
        g_.add_tensor(g_.tensor(y).name + ".derivative", DType::fp32, Shape(g_.shape(y)), Role::activation);
    node(first).attributes.set("derivative", true);
    node(first).outputs[0] = derivative;
    backward.attributes.set("derivative", true);
    backward.set_input(slot(backward, &Slots::hidden), derivative);
    return true;
  }

  // dx = norm_backward(..); sum = add(d, dx) -> norm_backward(.., d) gives the sum.
  bool addend_into_norm_backward(int index) {
    Node& norm = node(index);
    if (!has(norm, &Slots::addend) || input(norm, &Slots::addend) != kNone) return false;
    const TensorId dx = norm.outputs[0];
    const int reader = only_reader(dx);
    if (reader == kOutside || !is(reader, "add")) return false;
    Node& add = node(reader);
    const TensorId other = add.inputs[0] == dx ? add.inputs[1] : add.inputs[0];
    if (writer(other) > index) return false;
    norm.set_input(slot(norm, &Slots::addend), other);
    norm.outputs[0] = add.outputs[0];
    add.op = nullptr;
    return true;
  }

  // dW, db = linear_backward_weight(dy, ..): whoever writes dy gives the sum of its rows, db, where it can.
  bool bias_gradient_into_writer(int index) {
    Node& linear = node(index);
    if (!has(linear, &Slots::bias_gradient)) return false;
    const TensorId db = output(linear, &Slots::bias_gradient);
    const int from = writer(linear.inputs[0]);
    if (db == kNone || from == kOutside || node(from).outputs[0] != linear.inputs[0]) return false;
    Node& source = node(from);
    if (!has(source, &Slots::column_sums) || output(source, &Slots::column_sums) != kNone) return false;
    source.set_output(slot(source, &Slots::column_sums), db);
    if (linear.outputs.size() == 1) {
      linear.op = nullptr;  // it does nothing else
    } else {
      linear.set_output(slot(linear, &Slots::bias_gradient), kNone);
      linear.attributes.set("bias", false);
    }
    return true;
  }

  // logits = linear(x, w); losses = cross_entropy(logits) [and their three backward nodes] -> head_loss.
  bool head(int index) {
    const Node linear = node(index);
    if (!is(index, "linear") || linear.inputs.size() > 2 || linear.attributes.has("activation")) return false;
    if (g_.tensor(linear.inputs[1]).panel_rows > 0) return false;  // which head_loss does not read
    const TensorId logits = linear.outputs[0];
    const std::vector<int> uses = readers(logits);
    if (uses.empty() || uses.size() > 2 || is_result(logits) || !is(uses[0], "cross_entropy")) return false;
    const Node loss = node(uses[0]);
    std::vector<TensorId> inputs = {linear.inputs[0], linear.inputs[1], loss.inputs[1]};
    std::vector<TensorId> outputs = {loss.outputs[0]};
    std::vector<int> removed = {index};
    if (uses.size() == 2) {
      if (!is(uses[1], "cross_entropy_backward")) return false;
      const Node backward = node(uses[1]);
      const std::vector<int> products = readers(backward.outputs[0]);
      if (products.size() != 2 || !is(products[0], "linear_backward_input") ||
          !is(products[1], "linear_backward_weight"))
        return false;
      inputs.push_back(backward.inputs[0]);
      outputs.push_back(node(products[0]).outputs[0]);
      outputs.push_back(node(products[1]).outputs[0]);
      removed.insert(removed.end(), {uses[1], products[0], products[1]});
    }
    g_.phase = Phase::forward;
    g_.layer = -1;
    node(uses[0]) = g_.make("head_loss", loss.attributes, inputs, outputs);
    for (int i : removed) node(i).op = nullptr;
    return true;
  }

  // x x^T or x^T x is symmetric: the CPU multiplies one half and copies it into the other, to the same bits.
  bool product_with_itself(int index) {
    Node& product = node(index);
    const std::optional<Factors>& factors = product.op->factors;
    if (!factors || factors->transposed[0] != factors->transposed[1] || product.inputs.size() != 2 ||
        product.inputs[0] != product.inputs[1] || product.outputs.size() != 1)
      return false;
    product.attributes.set("symmetric", true);
    return true;
  }
};

}  // namespace

PassReport fuse(Graph& graph, const std::vector<TensorId>& results, const Target& target) {
  PassReport report{"fusion", "", graph.nodes.size(), 0};
  const int few_rows = target.cuda ? fuse_few_rows(graph, results) : 0;
  report.detail = Fuser(graph, results).run(target);
  if (few_rows)
    report.detail += (report.detail.empty() ? "" : ", ") + std::to_string(few_rows) + " into products of few rows";
  report.nodes_after = graph.nodes.size();
  return report;
}

}  // namespace llm
