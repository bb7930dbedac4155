// What the kernels are held against: every op of the forward pass once more as a naive loop in double precision, written
// from the formula and not from the kernel; and memory in which a kernel that reads or writes the wrong place is caught.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "llm/graph/kernel.h"
#include "llm/graph/op.h"

namespace llm::reference {

// A tensor's values; whole numbers are held as they are. No values at all: an optional tensor that is absent.
struct Array {
  Shape shape;
  std::vector<double> values;

  bool present() const { return !values.empty(); }
  double operator[](int64_t i) const { return values[static_cast<size_t>(i)]; }
  double& operator[](int64_t i) { return values[static_cast<size_t>(i)]; }
};
Array zeros(const Shape& shape);

// From a node's attributes and inputs to its outputs, in the node's order.
using Reference = std::function<std::vector<Array>(const Attributes&, const std::vector<Array>&, const StepState&)>;
using References = std::map<std::string, Reference, std::less<>>;
void add_row_references(References& table);      // ops that treat rows or elements one by one
void add_product_references(References& table);  // matrix products, attention, losses, the optimizer
const References& references();                  // all of them, by the op's name

// Runs the nodes of `graph` in double. `values`, by tensor, holds its inputs and gets everything else.
void evaluate(const Graph& graph, std::vector<Array>& values, const StepState& step);

// `count` numbers in [low, high) that fp32 holds exactly (whole numbers for int32), keyed by `name`.
std::vector<double> random_values(const std::string& name, int64_t count, DType dtype, double low, double high);

// max |a - b| / max |b|; infinite where a value is not finite or the sizes differ.
double relative_error(const std::vector<double>& a, const std::vector<double>& b);

// A place of its own for each tensor of a graph, everything NaN before it is written, between guards that nobody may
// write. Reading what was never written, or beyond a tensor's end, shows as a NaN in the result.
class Sandbox {
 public:
  // `output` is laid over `input` where given: the kernel must then work in place.
  explicit Sandbox(const Graph& graph, TensorId output = kNone, TensorId input = kNone);

  void fill(TensorId id, const std::vector<double>& values);
  void copy(TensorId id, const Sandbox& other);
  void run(ThreadTeam& threads, const StepState& step);  // all nodes in order
  void run_node(size_t index, ThreadTeam& threads, const StepState& step);

  std::vector<double> values(TensorId id) const;
  bool same_bits(TensorId id, const Sandbox& other) const;
  // Names a tensor beside which something was written, or that no node writes but that has changed; else empty.
  std::string damage() const;

 private:
  size_t index(TensorId id) const { return static_cast<size_t>(id); }

  const Graph& graph_;
  std::vector<uint32_t> memory_;
  std::vector<size_t> offsets_;  // by tensor, in words
  std::vector<void*> addresses_;
  std::map<TensorId, std::vector<uint32_t>> filled_;  // the tensors that must stay as they were filled
};

}  // namespace llm::reference
