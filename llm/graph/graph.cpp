#include "llm/graph/graph.h"

#include "llm/device/device.h"
#include "llm/graph/op.h"
#include "llm/graph/target.h"

namespace llm {

const char* name_of(Role role) {
  switch (role) {
    case Role::input: return "input";
    case Role::parameter: return "parameter";
    case Role::accumulator: return "accumulator";
    case Role::state: return "state";
    case Role::activation: return "activation";
    case Role::workspace: return "workspace";
  }
  return "?";
}

Target target_on(Device& device, Precision precision) {
  return {.threads = device.threads().size(), .cuda = device.cuda() != nullptr, .precision = precision};
}

const char* name_of(Phase phase) {
  switch (phase) {
    case Phase::forward: return "forward";
    case Phase::backward: return "backward";
    case Phase::weights: return "weights";
    case Phase::reduce: return "reduce";
    case Phase::optimizer: return "optimizer";
  }
  return "?";
}

void Attributes::set(std::string_view key, Value value) {
  for (auto& [k, v] : values_)
    if (k == key) {
      v = std::move(value);
      return;
    }
  values_.emplace_back(std::string(key), std::move(value));
}

const Attributes::Value* Attributes::find(std::string_view key) const {
  for (auto& [k, v] : values_)
    if (k == key) return &v;
  return nullptr;
}

template <class T>
const T& Attributes::get(std::string_view key, const char* kind) const {
  const Value* value = find(key);
  if (!value) fail("an op lacks its attribute \"", key, "\"");
  if (const T* held = std::get_if<T>(value)) return *held;
  fail("an op's attribute \"", key, "\" is not ", kind);
}

int64_t Attributes::integer(std::string_view key) const { return get<int64_t>(key, "a whole number"); }

double Attributes::number(std::string_view key) const {
  const Value* value = find(key);
  const int64_t* whole = value ? std::get_if<int64_t>(value) : nullptr;
  return whole ? static_cast<double>(*whole) : get<double>(key, "a number");
}

bool Attributes::flag(std::string_view key) const { return has(key) && get<bool>(key, "a flag"); }

std::span<const int64_t> Attributes::list(std::string_view key) const {
  return get<std::vector<int64_t>>(key, "a list of whole numbers");
}

std::span<const double> Attributes::numbers(std::string_view key) const {
  return get<std::vector<double>>(key, "a list of numbers");
}

TensorId Graph::add_tensor(std::string name, DType dtype, Shape shape, Role role) {
  tensors.push_back({.name = std::move(name), .dtype = dtype, .shape = shape, .role = role});
  return static_cast<TensorId>(tensors.size()) - 1;
}

TensorId Graph::add_view(std::string name, TensorId whole, Shape shape, int64_t offset, int64_t row_stride) {
  const Tensor owner = tensor(whole);
  Tensor view{.name = std::move(name), .dtype = owner.dtype, .shape = shape, .role = owner.role, .alias = whole};
  view.offset = offset, view.row_stride = row_stride;
  const int64_t end = offset + (shape.rows() - 1) * view.stride() + shape.last();
  if (offset < 0 || view.stride() < shape.last() || end > owner.shape.rows() * owner.stride())
    fail("the view ", view.name, " ", shape.text(), " from element ", offset, " on does not lie in ", owner.name, " ",
         owner.shape.text());
  tensors.push_back(std::move(view));
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
