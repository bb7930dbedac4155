#include "test/op_subjects.h"

#include <algorithm>
#include <set>

#include "llm/base/bf16.h"
#include "llm/graph/autodiff.h"
#include "llm/graph/passes.h"

namespace llm::reference {
namespace {

// The type of a subject's input in a run of that precision.
DType dtype_of(const Example::Input& input, DType precision) {
  return input.dtype == DType::fp32 && !input.keeps_fp32 ? precision : input.dtype;
}

}  // namespace

bool is_statistic(const std::string& name) {
  return name.ends_with(".mean") || name.ends_with(".rstd") || name.ends_with(".log_sum_exp");
}

Built build(const Subject& subject, const BuildOptions& options) {
  const Target target{options.threads, options.cuda};
  Built b;
  Graph& g = b.forward;
  for (size_t i = 0; i < subject.inputs.size(); ++i) {
    const Example::Input& input = subject.inputs[i];
    b.inputs.push_back(input.shape.rank() == 0 ? kNone
                                               : g.add_tensor("input" + std::to_string(i),
                                                              dtype_of(input, options.dtype), input.shape, input.role));
  }
  subject.build(g, b.inputs);
  std::set<TensorId> read;
  for (const Node& node : g.nodes) read.insert(node.inputs.begin(), node.inputs.end());
  for (const Node& node : g.nodes)
    for (TensorId id : node.outputs)
      if (id != kNone && !read.contains(id)) b.outputs.push_back(id);
  b.whole = g;

  std::vector<TensorId> targets;
  for (size_t i = 0; i < subject.inputs.size(); ++i)
    if (b.inputs[i] != kNone && subject.inputs[i].dtype == DType::fp32 && subject.inputs[i].differentiable)
      targets.push_back(b.inputs[i]);
  const bool differentiable =
      !targets.empty() && std::all_of(g.nodes.begin(), g.nodes.end(), [](const Node& n) { return n.op->backward; });
  std::vector<TensorId> results = b.outputs;
  if (differentiable && !subject.forward_only) {
    int count = 0;
    for (TensorId id : b.outputs)
      if (!is_statistic(g.tensor(id).name) && g.dtype(id) != DType::int32 &&
          (options.only < 0 || count++ == options.only))
        b.seeds.emplace_back(id, b.whole.add_tensor("seed", g.dtype(id), g.shape(id), Role::input));
    const Gradients gradients = differentiate(b.whole, b.seeds, targets);
    for (TensorId id : targets)
      if (gradients.of(id) != kNone) b.gradients.emplace_back(id, gradients.of(id));
    for (auto& [id, gradient] : b.gradients) results.push_back(gradient);
  }
  if (subject.fused && options.fuse) {
    fuse(b.whole, results, target);
    remove_dead_code(b.whole, results);
  }
  if (!options.casts) return b;
  if (!options.cuda) cast_for_cpu(b.whole);
  add_workspaces(b.whole, target);
  return b;
}

std::vector<double> values_of(const Subject& subject, size_t i, DType precision) {
  const Example::Input& input = subject.inputs[i];
  if (!input.values.empty()) return input.values;
  return random_values(subject.name + "/" + std::to_string(i), input.shape.elements(), dtype_of(input, precision),
                       input.low, input.high);
}

std::vector<double> seed_of(const Built& b, TensorId output, DType precision) {
  return random_values("seed of " + b.forward.tensor(output).name, b.forward.shape(output).elements(), precision, -1,
                       1);
}

void fill(Sandbox& sandbox, const Subject& subject, const Built& b, DType precision) {
  for (size_t i = 0; i < b.inputs.size(); ++i)
    if (b.inputs[i] != kNone) sandbox.fill(b.inputs[i], values_of(subject, i, precision));
  for (auto& [output, seed] : b.seeds) sandbox.fill(seed, seed_of(b, output, precision));
}

std::vector<Array> evaluate(const Subject& subject, const Built& b, const StepState& step, DType precision) {
  std::vector<Array> values(b.forward.tensors.size());
  for (size_t i = 0; i < b.inputs.size(); ++i)
    if (b.inputs[i] != kNone)
      values[static_cast<size_t>(b.inputs[i])] = {subject.inputs[i].shape, values_of(subject, i, precision)};
  evaluate(b.forward, values, step);
  return values;
}

Subject subject_of(const Op& op, const Example& example, size_t number) {
  return {op.name + std::string(" ") + std::to_string(number), example.inputs,
          [&op, attributes = example.attributes](Graph& g, const std::vector<TensorId>& inputs) {
            g.add(op.name, attributes, inputs, op.name);
          }};
}

Subject document_subject(int64_t batch, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_size,
                         int64_t length) {
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  const Attributes a = {{"heads", heads}, {"kv_heads", kv_heads}, {"head_size", head_size}};
  return {concat("attention in documents of ", length, ", ", heads, ":", kv_heads, " heads of ", head_size, ", ",
                 tokens, " tokens"),
          {{.shape = {batch, tokens}, .dtype = DType::int32, .low = 0, .high = number(length)},
           {.shape = {batch, tokens, (heads + 2 * kv_heads) * head_size}, .low = -2, .high = 2}},
          [a](Graph& g, const std::vector<TensorId>& in) {
            g.add("attention", a, {in[1], g.add("document_starts", {{"end_of_text", 1}}, {in[0]}, "starts")[0]}, "out");
          }};
}

// Chains of ops that the fusion pass joins: products followed by an activation function or its derivative, norms with a
// residual addition, the head with its loss.
std::vector<Subject> fused_subjects() {
  using Ids = std::vector<TensorId>;
  const auto parameter = [](Shape shape) { return Example::Input{.shape = shape, .role = Role::parameter}; };
  std::vector<Subject> subjects;
  for (const char* activation : {"gelu", "relu2"}) {
    const auto half = [=](Graph& g, const Ids& in) {
      return g.add(activation, {}, {g.add("linear", {}, {in[0], in[1], in[2]}, "hidden")[0]}, "activated")[0];
    };
    const auto whole = [=](Graph& g, const Ids& in) { g.add("linear", {}, {half(g, in), in[3]}, "y"); };
    const std::vector<Example::Input> inputs = {
        {.shape = {2, 3, 33}}, parameter({37, 33}), parameter({37}), parameter({5, 37})};
    const std::vector<Example::Input> first(inputs.begin(), inputs.begin() + 3);
    subjects.push_back({concat("linear + ", activation), first, half, true});
    subjects.push_back({concat("linear + ", activation, ", forward alone"), first, half, true, true});
    subjects.push_back({concat("MLP with ", activation), inputs, whole, true});
  }
  for (const char* norm : {"layernorm", "rmsnorm"}) {
    const auto residual = [=](Graph& g, const Ids& in) {
      const TensorId sum = g.add("add", {}, {in[0], in[1]}, "sum")[0];
      Ids inputs = {sum, in[2]};
      if (in.size() > 3) inputs.push_back(in[3]);
      g.add("add", {}, {sum, g.add(norm, {{"epsilon", 1e-5}}, inputs, "normal")[0]}, "y");
    };
    std::vector<Example::Input> inputs = {{.shape = {3, 5, 18}}, {.shape = {3, 5, 18}}, parameter({18})};
    if (norm == std::string("layernorm")) inputs.push_back(parameter({18}));
    subjects.push_back({concat("residual + ", norm), inputs, residual, true});
  }
  // Here the norm's backward pass gives the gradient of the linear layer's bias; one width has packs of 16 bytes, the
  // other has none.
  for (const int64_t C : {24, 18}) {
    const auto biased = [](Graph& g, const Ids& in) {
      const TensorId sum = g.add("add", {}, {in[3], g.add("linear", {}, {in[0], in[1], in[2]}, "linear")[0]}, "sum")[0];
      g.add("add", {}, {sum, g.add("layernorm", {{"epsilon", 1e-5}}, {sum, in[4], in[5]}, "normal")[0]}, "y");
    };
    subjects.push_back({concat("linear with bias + residual + layernorm, ", C, " channels"),
                        {{.shape = {3, 50, 9}},
                         parameter({C, 9}),
                         parameter({C}),
                         {.shape = {3, 50, C}},
                         parameter({C}),
                         parameter({C})},
                        biased,
                        true});
  }
  const Example::Input tokens{{2, 6}, DType::int32, 0, 19}, targets{{2, 6}, DType::int32, -1, 19};
  const auto head = [](Graph& g, const Ids& in) {
    const TensorId x = g.add("embedding", {}, {in[0], in[2]}, "x")[0];
    g.add("cross_entropy", {}, {g.add("linear", {}, {x, in.back()}, "logits")[0], in[1]}, "losses");
  };
  subjects.push_back({"head and loss", {tokens, targets, parameter({19, 10}), parameter({19, 10})}, head, true});
  subjects.push_back({"tied head and loss", {tokens, targets, parameter({19, 10})}, head, true});
  const auto capped_head = [](Graph& g, const Ids& in) {
    const TensorId x = g.add("embedding", {}, {in[0], in[2]}, "x")[0];
    g.add("cross_entropy", {{"softcap", 2}, {"z_loss", 0.1}}, {g.add("linear", {}, {x, in[3]}, "logits")[0], in[1]},
          "losses");
  };
  subjects.push_back(
      {"head and capped loss", {tokens, targets, parameter({19, 10}), parameter({19, 10})}, capped_head, true});
  subjects.push_back({"head and loss, forward alone", {tokens, targets, parameter({19, 10})}, head, true, true});
  subjects.push_back(document_subject(2, 37, 2, 1, 8, 6));
  subjects.push_back(document_subject(1, 70, 1, 1, 20, 40));
  return subjects;
}

}  // namespace llm::reference
