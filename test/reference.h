// What the kernels are held against: every op of the forward pass once more as a naive loop in double precision, written
// from the formula and not from the kernel; memory in which a kernel that reads or writes the wrong place is caught; and
// a small model that trains, for what must not change a bit of it.
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
void add_product_references(References& table);  // matrix products, attention, losses, AdamW
void add_muon_references(References& table);
void add_backward_references(References& table);  // what autodiff makes of gpt2's and the modern model's forward pass
const References& references();                   // all of them, by the op's name

// Runs the nodes of `graph` in double. `values`, by tensor, holds its inputs and gets everything else. What a node updates
// in place changes there, too, so that a training graph can run again and again.
void evaluate(const Graph& graph, std::vector<Array>& values, const StepState& step);

// `count` numbers in [low, high) that the type holds exactly (whole numbers for int32), keyed by `name`. Those for bf16 are
// those for fp32, rounded.
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
  void run(ThreadTeam& threads, const StepState& step);  // all nodes in order, on the CPU
  void run_node(size_t index, ThreadTeam& threads, const StepState& step);
  // On a GPU: everything is copied there and back, all in one piece, or each tensor in an allocation of its own, whose bounds
  // a memory checker can watch.
  enum class Place { together, apart };
  void run(CudaDevice& device, const StepState& step, Place place);
  void run_node(size_t index, CudaDevice& device, const StepState& step);

  std::vector<double> values(TensorId id) const;
  bool same_bits(TensorId id, const Sandbox& other) const;
  // Names a tensor beside which something was written, or that no node writes but that has changed; else empty.
  std::string damage() const;

 private:
  size_t index(TensorId id) const { return static_cast<size_t>(id); }
  void run_nodes(size_t first, size_t end, CudaDevice& device, const StepState& step, Place place);

  const Graph& graph_;
  std::vector<std::byte> memory_;
  std::vector<size_t> offsets_;  // by tensor
  std::vector<void*> addresses_;
  std::map<TensorId, std::vector<std::byte>> filled_;  // the tensors that must stay as they were filled
};

using Words = std::vector<uint32_t>;            // a tensor's bits
using Snapshot = std::map<std::string, Words>;  // by a tensor's name
Words words_of(const Program& program, TensorId id);
double difference(const Words& a, const Words& b);  // relative_error of the fp32 values

// The phases of a step up to and with `last`.
inline Phases up_to(Phase last) {
  Phases phases = Phase::forward;
  for (const Phase phase : kPhases)
    if (phase <= last) phases = phases | phase;
  return phases;
}

// Three layers of "gpt2", "modern" or "relu2" (modern with that activation function).
ModelConfig small_config(const std::string& architecture);

constexpr int64_t kBatch = 4, kTokens = 24;

// A small model that trains on made-up tokens.
struct Trainer {
  struct Settings {
    int threads = 2;
    int64_t batch = kBatch;  // rows of a micro-step; a step's loss is always the mean over kBatch rows
    CompileOptions compile = {};
    RecomputeChoice recompute = {};
    OptimizerOptions optimizer = {};
    Precision precision = Precision::fp32;
    bool keep_logits = false;  // as a result: then the head cannot be fused
  };
  Trainer(const ModelConfig& config, const Settings& settings);

  // One micro-step on its rows of the step's batch, up to and with phase `last`.
  void run(int64_t step, Phase last, int64_t micro_step = 0);
  // The inputs and the step's state alone, into a program of this graph.
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
