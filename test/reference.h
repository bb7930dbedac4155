// What the kernels are compared with: each op of the forward pass once more as a naive loop in double precision,
// written from the formula and not from the kernel; memory that catches a kernel which reads or writes a wrong place;
// and a small model that trains, for what must not change a bit of it.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "llm/device/cpu.h"
#include "llm/graph/op.h"
#include "llm/graph/program.h"
#include "llm/model/gpt.h"

namespace llm::reference {

// A tensor's values; whole numbers are held as they are. An optional tensor that is absent has no values.
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
void add_row_references(References& table);      // ops on single rows or elements
void add_product_references(References& table);  // matrix products, attention, losses, AdamW
void add_muon_references(References& table);
void add_rank_references(References& table);      // sums over several ranks
void add_expert_references(References& table);    // layers with experts
void add_backward_references(References& table);  // the ops of gpt2's and the modern model's backward pass
const References& references();                   // all of them, by the op's name

// Runs the nodes of `graph` in double. `values`, by tensor, holds the inputs and gets all other tensors. What a node
// updates in place changes in `values`, so that a training graph can run again and again.
void evaluate(const Graph& graph, std::vector<Array>& values, const StepState& step);

// `count` numbers in [low, high) that the type holds exactly (whole numbers for int32), a function of `name`. The
// numbers for bf16 are those for fp32, rounded.
std::vector<double> random_values(const std::string& name, int64_t count, DType dtype, double low, double high);

// max |a - b| / max |b|; infinite where a value is not finite or the sizes differ.
double relative_error(const std::vector<double>& a, const std::vector<double>& b);

// Memory in which each tensor of a graph has a place of its own, filled with NaNs before it is written, between guards
// that no kernel may write. A kernel that reads a value that was never written, or beyond the end of a tensor, makes a
// NaN in the result.
class Sandbox {
 public:
  // Where `output` is given, it lies in the memory of `input`: the kernel must then work in place.
  explicit Sandbox(const Graph& graph, TensorId output = kNone, TensorId input = kNone);

  void fill(TensorId id, const std::vector<double>& values);
  void copy(TensorId id, const Sandbox& other);
  void run(ThreadTeam& threads, const StepState& step);  // all nodes in order, on the CPU
  void run_node(size_t index, ThreadTeam& threads, const StepState& step);
  // On a GPU all memory is copied there and back, in one piece, or with each tensor in an allocation of its own, whose
  // bounds a memory checker can watch.
  enum class Place { together, apart };
  void run(CudaDevice& device, const StepState& step, Place place);
  void run_node(size_t index, CudaDevice& device, const StepState& step);

  std::vector<double> values(TensorId id) const;
  bool same_bits(TensorId id, const Sandbox& other) const;
  // The name of a tensor beside which something was written, or that no node writes but that has changed; "" when there
  // is none.
  std::string damage() const;

 private:
  size_t index(TensorId id) const { return static_cast<size_t>(id); }
  void run_nodes(size_t first, size_t end, CudaDevice& device, const StepState& step, Place place);

  const Graph& graph_;
  std::vector<std::byte> memory_;
  std::vector<size_t> offsets_;  // by tensor
  std::vector<void*> addresses_;
  std::map<TensorId, std::vector<std::byte>> filled_;  // the tensors that must stay as they are
};

using Words = std::vector<uint32_t>;            // a tensor's bits
using Snapshot = std::map<std::string, Words>;  // by a tensor's name
Words words_of(const Program& program, TensorId id);
double difference(const Words& a, const Words& b);  // relative_error of the fp32 values

// The phases of a step up to and including `last`.
inline Phases up_to(Phase last) {
  Phases phases = Phase::forward;
  for (const Phase phase : kPhases)
    if (phase <= last) phases = phases | phase;
  return phases;
}

// Three layers of "gpt2", "modern", "relu2" (modern with that activation function) or "experts" (modern with four of them
// and a shared one).
ModelConfig small_config(const std::string& architecture);

constexpr int64_t kBatch = 4, kTokens = 24;

// A small model that trains on made-up tokens.
struct Trainer {
  struct Settings {
    int threads = 2;
    int64_t batch = kBatch;  // rows of a micro-step; the loss of a step is always the mean over kBatch rows
    CompileOptions compile = {};
    RecomputeChoice recompute = {};
    OptimizerOptions optimizer = {};
    Precision precision = Precision::fp32;
    bool keep_logits = false;  // as a result, so that the head cannot be fused
    RecipeOptions recipe = {};
  };
  Trainer(const ModelConfig& config, const Settings& settings);

  // Runs one micro-step, on its rows of the step's batch, up to and including phase `last`.
  void run(int64_t step, Phase last, int64_t micro_step = 0);
  // Sets only the inputs and the step's state, of a program of this graph.
  void prepare(Program& to, int64_t step, int64_t micro_step) const;
  Snapshot snapshot() const;  // losses, the gradients' norm, and everything persistent
  Snapshot after_steps(int steps);

  TrainingGraph graph;
  TensorId logits;
  ThreadTeam team;
  CpuDevice device{team};
  PersistentLayout layout;
  std::unique_ptr<Program> program;
  std::unique_ptr<Arena> arena;
};

}  // namespace llm::reference
