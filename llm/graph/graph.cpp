#include "llm/graph/graph.h"

#include "llm/graph/op.h"
#include "llm/graph/target.h"

namespace llm {

const char* name_of(Role role) {
  switch (role) {
    case Role::input: return "input";
    case Role::parameter: return "parameter";
    case Role::gradient: return "gradient";
    case Role::state: return "state";
    case Role::activation: return "activation";
    case Role::workspace: return "workspace";
  }
  return "?";
}

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::fp32: return "fp32";
    case Precision::bf16: return "bf16";
    case Precision::fp8: return "fp8";
  }
  return "?";
}

Precision precision_named(std::string_view name) {
  for (const Precision p : {Precision::fp32, Precision::bf16, Precision::fp8})
    if (name == name_of(p)) return p;
  fail_usage("unknown --dtype ", name, "; known: fp32, bf16, fp8");
}

const char* name_of(Phase phase) {
  switch (phase) {
    case Phase::forward: return "forward";
    case Phase::backward: return "backward";
    case Phase::optimizer: return "optimizer";
  }
  return "?";
}

void Attributes::set(std::string_view key, double value) {
  for (auto& [k, v] : values_)
    if (k == key) {
      v = value;
      return;
    }
  values_.emplace_back(std::string(key), value);
}

const double* Attributes::find(std::string_view key) const {
  for (auto& [k, v] : values_)
    if (k == key) return &v;
  return nullptr;
}

double Attributes::number(std::string_view key) const {
  if (const double* v = find(key)) return *v;
  fail("an op lacks its attribute \"", key, "\"");
}

double Attributes::number(std::string_view key, double otherwise) const {
  const double* v = find(key);
  return v ? *v : otherwise;
}

TensorId Graph::add_tensor(std::string name, DType dtype, Shape shape, Role role) {
  tensors.push_back({std::move(name), dtype, shape, role, kNone});
  return static_cast<TensorId>(tensors.size()) - 1;
}

TensorId Graph::find(std::string_view name) const {
  for (size_t i = 0; i < tensors.size(); ++i)
    if (tensors[i].name == name) return static_cast<TensorId>(i);
  return kNone;
}

std::vector<TensorId> Graph::add(std::string_view op, Attributes attributes, std::vector<TensorId> inputs,
                                 std::string_view name) {
  Node node{op_named(op), std::move(attributes), std::move(inputs), {}, kNone, phase, layer};
  naming = name.empty() ? std::string(op) + "." + std::to_string(nodes.size()) : std::string(name);
  node.op->infer(*this, node);
  nodes.push_back(node);
  return node.outputs;
}

Node Graph::make(std::string_view op, Attributes attributes, std::vector<TensorId> inputs,
                 std::vector<TensorId> outputs) {
  Node node{op_named(op), std::move(attributes), std::move(inputs), {}, kNone, phase, layer};
  const size_t before = tensors.size();
  node.op->infer(*this, node);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const TensorId given = outputs[i], inferred = node.output(i);
    if (given != kNone && (inferred == kNone || shape(given) != shape(inferred) || dtype(given) != dtype(inferred)))
      fail("a pass: ", tensor(given).name, " is not what ", op, " gives");
  }
  tensors.resize(before);
  node.outputs = std::move(outputs);
  return node;
}

TensorId Graph::add_output(Node& node, std::string_view suffix, DType dtype, Shape shape) {
  const std::string name = suffix.empty() ? naming : naming + "." + std::string(suffix);
  node.outputs.push_back(add_tensor(name, dtype, shape, Role::activation));
  return node.outputs.back();
}

Cost streaming_cost(const Graph& graph, const Node& node, double flops) {
  Cost cost{flops, 0, 0};
  for (TensorId id : node.inputs)
    if (id != kNone) cost.bytes_read += static_cast<double>(graph.tensor(id).bytes());
  for (TensorId id : node.outputs)
    if (id != kNone) cost.bytes_written += static_cast<double>(graph.tensor(id).bytes());
  return cost;
}

}  // namespace llm
