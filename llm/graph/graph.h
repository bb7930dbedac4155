// The training step as a graph: tensors, nodes in execution order, and the op rows that give them meaning.
//
// Every tensor is written by at most one node. Where a node updates memory in place (an optimizer step, a gradient that
// a second node adds to), its output is a new tensor whose `alias` names the tensor with which it shares storage. A
// view is a tensor with an alias that no node writes: some rows of another tensor, or some columns of all its rows.
#pragma once
#include <array>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "llm/base/shape.h"

namespace llm {

using TensorId = int32_t;
inline constexpr TensorId kNone = -1;  // an optional input or output that is absent

enum class Role : uint8_t {
  input,        // written by the code around the graph before each run: tokens, targets
  parameter,    // persistent, learned
  accumulator,  // persistent, summed over the micro-steps of a step: a parameter's gradient, the loss
  state,        // persistent: optimizer moments, fp32 masters, key-value cache
  activation,   // lives from its writer to its last reader
  workspace,    // lives during one node
};
const char* name_of(Role role);
inline bool is_persistent(Role r) { return r == Role::parameter || r == Role::accumulator || r == Role::state; }

struct Tensor {
  std::string name;
  DType dtype = DType::fp32;
  Shape shape;
  Role role = Role::activation;
  TensorId alias = kNone;  // the tensor in whose storage this one lies
  int64_t offset = 0;      // the element of `alias` at which this tensor begins
  int64_t row_stride = 0;  // elements from one row to the next; 0: the rows are contiguous
  bool on_host = false;    // of optimizer state: it lies in the host's memory, where no kernel but copies touches it
  // Of a matrix of weights that lies as packed panels (llm/base/packed_panels.h): how many of its rows belong to one product,
  // all of them or those of one expert. 0: row after row.
  int64_t panel_rows = 0;
  int64_t spare_rows = 0;  // rows of zeros behind a parameter or its gradient, which a product may take in

  int64_t stride() const { return row_stride ? row_stride : shape.last(); }
  bool is_dense() const { return stride() == shape.last(); }
  size_t bytes() const { return bytes_of_rows(shape.rows(), shape.last()); }
  // bytes(), what lies between the rows, and the spare rows.
  size_t storage_bytes() const { return panel_rows ? bytes() : bytes_of_rows(shape.rows() + spare_rows, stride()); }

 private:
  size_t bytes_of_rows(int64_t rows, int64_t columns) const {
    if (panel_rows) return static_cast<size_t>(rows / panel_rows * packed_panels_bytes(dtype, panel_rows, columns));
    if (is_quantized(dtype)) return static_cast<size_t>(rows * quantized_row_bytes(dtype, columns));
    return static_cast<size_t>(rows * columns) * size_of(dtype);
  }
};

// The parts of a step, in their order. `weights` are those nodes of the backward pass that make gradients of parameters
// alone, where a pipeline runs these by themselves; otherwise they are `backward` too. In `reduce` the ranks of a run add up their gradients, between their last
// backward pass and the optimizer.
enum class Phase : uint8_t { forward, backward, weights, reduce, optimizer };
inline constexpr std::array kPhases = {Phase::forward, Phase::backward, Phase::weights, Phase::reduce,
                                       Phase::optimizer};
const char* name_of(Phase phase);

// A set of phases.
class Phases {
 public:
  constexpr Phases(Phase phase) : Phases(1u << static_cast<unsigned>(phase)) {}
  constexpr Phases(std::initializer_list<Phase> phases) {
    for (const Phase phase : phases) *this = *this | phase;
  }
  constexpr Phases operator|(Phases other) const { return Phases(bits_ | other.bits_); }
  constexpr bool contain(Phase phase) const { return (bits_ & Phases(phase).bits_) != 0; }
  constexpr bool meet(Phases other) const { return (bits_ & other.bits_) != 0; }
  constexpr unsigned bits() const { return bits_; }  // less than kCount
  static constexpr unsigned kCount = 1u << kPhases.size();

 private:
  constexpr explicit Phases(unsigned bits) : bits_(bits) {}
  unsigned bits_ = 0;
};
inline constexpr Phases kMicroStep = {Phase::forward, Phase::backward, Phase::weights};
inline constexpr Phases kWholeStep = kMicroStep | Phase::reduce | Phase::optimizer;

// A node's constants by name: head counts, epsilon, flags, lists of sizes. To ask for a constant as another kind throws
// Error, except that a whole number is a number too. An absent flag is false; any other absent constant throws Error
// unless the caller gives a value for that case (`otherwise`).
class Attributes {
 public:
  using Value = std::variant<int64_t, double, bool, std::vector<int64_t>, std::vector<double>>;

  Attributes() = default;
  Attributes(std::initializer_list<std::pair<const char*, Value>> values) {
    for (auto& [key, value] : values) set(key, value);
  }
  void set(std::string_view key, Value value);
  bool has(std::string_view key) const { return find(key) != nullptr; }
  int64_t integer(std::string_view key) const;
  int64_t integer(std::string_view key, int64_t otherwise) const { return has(key) ? integer(key) : otherwise; }
  double number(std::string_view key) const;
  double number(std::string_view key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  bool flag(std::string_view key) const;
  std::span<const int64_t> list(std::string_view key) const;
  std::span<const double> numbers(std::string_view key) const;
  const std::vector<std::pair<std::string, Value>>& all() const { return values_; }

 private:
  const Value* find(std::string_view key) const;
  template <class T>
  const T& get(std::string_view key, const char* kind) const;
  std::vector<std::pair<std::string, Value>> values_;
};

struct Op;

struct Node {
  const Op* op = nullptr;
  Attributes attributes;
  std::vector<TensorId> inputs, outputs;  // kNone where an optional one is absent
  TensorId workspace = kNone;
  Phase phase = Phase::forward;
  int layer = -1;  // the transformer block of the node; -1: none

  TensorId input(size_t i) const { return i < inputs.size() ? inputs[i] : kNone; }
  TensorId output(size_t i) const { return i < outputs.size() ? outputs[i] : kNone; }
  void set_input(size_t i, TensorId id) { set(inputs, i, id); }
  void set_output(size_t i, TensorId id) { set(outputs, i, id); }

 private:
  static void set(std::vector<TensorId>& ids, size_t i, TensorId id) {
    if (ids.size() <= i) ids.resize(i + 1, kNone);
    ids[i] = id;
  }
};

struct Graph {
  std::vector<Tensor> tensors;
  std::vector<Node> nodes;  // in execution order

  // The phase and layer that new nodes get; the builder, autodiff and passes set them.
  Phase phase = Phase::forward;
  int layer = -1;
  // How many numbers the exchanges between ranks have been given. Ranks whose exchanges meet number them alike, and so
  // count those that only other ranks make.
  int64_t channels = 0;

  Tensor& tensor(TensorId id) { return tensors[static_cast<size_t>(id)]; }
  const Tensor& tensor(TensorId id) const { return tensors[static_cast<size_t>(id)]; }
  const Shape& shape(TensorId id) const { return tensor(id).shape; }
  DType dtype(TensorId id) const { return tensor(id).dtype; }

  TensorId add_tensor(std::string name, DType dtype, Shape shape, Role role);
  TensorId find(std::string_view name) const;  // kNone when there is none
  // A view: rows of shape.last() elements, `row_stride` apart (0: contiguous), from element `offset` of `whole` on.
  // Throws Error where the view does not lie within `whole`.
  TensorId add_view(std::string name, TensorId whole, Shape shape, int64_t offset, int64_t row_stride = 0);

  // Appends a node; the op's `infer` adds its outputs, which are returned. `name` names the outputs in dumps.
  std::vector<TensorId> add(std::string_view op, Attributes attributes, std::vector<TensorId> inputs,
                            std::string_view name = {});
  // For passes, whose new nodes replace others: returns a node, which is not appended, that writes the existing tensors
  // `outputs`. Throws Error where these do not have the shapes and types that the op's `infer` gives.
  Node make(std::string_view op, Attributes attributes, std::vector<TensorId> inputs, std::vector<TensorId> outputs);

  // For `infer` functions: adds a tensor and makes it the next output of `node`.
  TensorId add_output(Node& node, std::string_view suffix, DType dtype, Shape shape);

  // The tensor that owns the storage of `id`, through all aliases.
  TensorId storage(TensorId id) const {
    while (tensor(id).alias != kNone) id = tensor(id).alias;
    return id;
  }
  size_t bytes_into_storage(TensorId id) const {
    size_t bytes = 0;
    for (; tensor(id).alias != kNone; id = tensor(id).alias)
      bytes += static_cast<size_t>(tensor(id).offset) * size_of(dtype(id));
    return bytes;
  }

  std::string naming;  // the name from which add_output() makes the names of outputs
};

}  // namespace llm
