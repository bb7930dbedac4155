// The training step as a graph: tensors, nodes in execution order, and the op rows that give them meaning.
//
// Every tensor is written by at most one node. Where a node updates memory in place (an optimizer step, a gradient that
// a second node adds to) its output is a new tensor whose `alias` names the tensor it shares storage with.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llm/base/shape.h"

namespace llm {

using TensorId = int32_t;
inline constexpr TensorId kNone = -1;  // an optional input or output that is absent

enum class Role : uint8_t {
  input,       // written by the program around the graph before each run: tokens, targets
  parameter,   // persistent, learned
  gradient,    // persistent over the micro-steps of a step: the gradient of a parameter
  state,       // persistent: optimizer moments, key-value cache
  activation,  // lives from its writer to its last reader
  workspace,   // lives during one node
};
const char* name_of(Role role);
inline bool is_persistent(Role r) { return r == Role::parameter || r == Role::gradient || r == Role::state; }

struct Tensor {
  std::string name;
  DType dtype = DType::fp32;
  Shape shape;
  Role role = Role::activation;
  TensorId alias = kNone;   // shares the storage of this tensor; always an earlier one
  int64_t row_padding = 0;  // elements that are left free behind each row (pad_rows.cpp)
  int64_t spare_rows = 0;  // room behind the last row, of a parameter or its gradient: zeros that a product may take in

  int64_t row_stride() const { return shape.last() + row_padding; }
  size_t bytes() const { return static_cast<size_t>(shape.rows() * row_stride()) * size_of(dtype); }
  size_t storage_bytes() const { return bytes() + static_cast<size_t>(spare_rows * row_stride()) * size_of(dtype); }
};

enum class Phase : uint8_t { forward, backward, optimizer };
const char* name_of(Phase phase);

// A node's constants by name: head counts, epsilon, flags. All are numbers; integers are exact up to 2^53.
class Attributes {
 public:
  Attributes() = default;
  Attributes(std::initializer_list<std::pair<const char*, double>> values) {
    for (auto& [key, value] : values) set(key, value);
  }
  void set(std::string_view key, double value);
  bool has(std::string_view key) const { return find(key) != nullptr; }
  double number(std::string_view key) const;  // throws when absent
  double number(std::string_view key, double otherwise) const;
  int64_t integer(std::string_view key) const { return static_cast<int64_t>(number(key)); }
  int64_t integer(std::string_view key, int64_t otherwise) const { return has(key) ? integer(key) : otherwise; }
  bool flag(std::string_view key) const { return number(key, 0) != 0; }
  const std::vector<std::pair<std::string, double>>& all() const { return values_; }

 private:
  const double* find(std::string_view key) const;
  std::vector<std::pair<std::string, double>> values_;
};

struct Op;

struct Node {
  const Op* op = nullptr;
  Attributes attributes;
  std::vector<TensorId> inputs, outputs;  // kNone where an optional one is absent
  TensorId workspace = kNone;
  Phase phase = Phase::forward;
  int layer = -1;  // the transformer block it belongs to, -1 outside the blocks

  TensorId input(size_t i) const { return i < inputs.size() ? inputs[i] : kNone; }
  TensorId output(size_t i) const { return i < outputs.size() ? outputs[i] : kNone; }
};

struct Graph {
  std::vector<Tensor> tensors;
  std::vector<Node> nodes;  // in execution order

  // What new nodes are marked with; the builder and autodiff set them as they go.
  Phase phase = Phase::forward;
  int layer = -1;

  Tensor& tensor(TensorId id) { return tensors[static_cast<size_t>(id)]; }
  const Tensor& tensor(TensorId id) const { return tensors[static_cast<size_t>(id)]; }
  const Shape& shape(TensorId id) const { return tensor(id).shape; }
  DType dtype(TensorId id) const { return tensor(id).dtype; }

  TensorId add_tensor(std::string name, DType dtype, Shape shape, Role role);
  TensorId find(std::string_view name) const;  // kNone when there is none

  // Appends a node and its outputs (the op's `infer` makes them); gives the outputs. `name` names them in dumps.
  std::vector<TensorId> add(std::string_view op, Attributes attributes, std::vector<TensorId> inputs,
                            std::string_view name = {});
  // The same for passes, whose new nodes take the place of others: the node, which is not appended, writes `outputs`, which
  // are there already. Throws Error where they are not of the shapes and types that the op's `infer` gives.
  Node make(std::string_view op, Attributes attributes, std::vector<TensorId> inputs, std::vector<TensorId> outputs);

  // For `infer` functions: adds an output of the node that is being made.
  TensorId add_output(Node& node, std::string_view suffix, DType dtype, Shape shape);

  // The tensor that owns the storage of `id`, through all aliases.
  TensorId storage(TensorId id) const {
    while (tensor(id).alias != kNone) id = tensor(id).alias;
    return id;
  }

  std::string naming;  // the name stem of the node being made
};

}  // namespace llm
