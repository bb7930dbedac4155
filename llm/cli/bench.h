// What the files of the subcommand bench share: bench_step.cpp measures the ops of a training step, bench_products.cpp its
// matrix products alone, bench_scaling.cpp how it divides among threads, bench_busy.cpp how it runs beside other processes,
// bench_decode.cpp the inference engine; bench_print.cpp prints each; bench.cpp is the command line. benched_step.cpp is
// the step itself.
#pragma once
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "llm/base/json.h"
#include "llm/base/median.h"
#include "llm/cli/options.h"
#include "llm/device/hardware.h"
#include "llm/graph/program.h"

namespace llm {

struct BenchFlags {
  ModelOptions model;
  TrainOptions recipe;
  DeviceOptions device;
  WeightOptions weights;  // of --decode
  std::string format = "text", save, compare, only, hardware_out;
  int64_t batch = 0, steps = 10;
  int scaling = 0;  // up to so many threads; 0: not asked for
  bool nodes = false, products = false, busy = false, decode = false;
  std::string model_name() const { return model.preset.empty() ? "small" : model.preset; }
};

// A training step of the model over random tokens.
class BenchedStep {
 public:
  // The parameters have their initial values; memory is in place only after a first run.
  BenchedStep(const BenchFlags& flags, Device& on, const ModelConfig& config);

  Program& whole() { return *whole_; }
  // The nodes of one op alone, at the same places in memory. Run the whole step first, which fills them.
  std::unique_ptr<Program> only(const std::string& op) const;
  // Returns the seconds it took; `seconds`, if given, gets each node's added.
  double run(Program& program, int64_t step, std::vector<double>* seconds = nullptr);

  size_t persistent_bytes() const { return whole_->compiled().persistent_bytes; }
  size_t transient_bytes() const { return whole_->compiled().plan.bytes; }

 private:
  void fill_inputs(int64_t step);

  Device& on_;
  int64_t tokens_a_step_, vocabulary_;
  TensorId tokens_ = kNone, targets_ = kNone, loss_weights_ = kNone;
  PersistentLayout layout_;
  std::unique_ptr<Program> whole_;
  std::unique_ptr<Arena> arena_;
};

// A machine's description from measurements of its own, which take less than 20 s: the time of each node of a few small
// training steps, and of exchanges between two ranks of this process. `device`: a rank with all that this machine gives one
// rank. What is not measured (the network, the price) is taken from `otherwise`.
Hardware measure_hardware(Device& device, Precision precision, const Hardware& otherwise);
// The results of `bench --save` and `--format json`.
Json bench_step(const BenchFlags& flags, Device& on, const ModelConfig& config);
Json bench_products(const BenchFlags& flags, Device& on, const ModelConfig& config);
Json bench_scaling(const BenchFlags& flags, Device& on, const ModelConfig& config);
Json bench_busy(const BenchFlags& flags, Device& on, const ModelConfig& config);
Json bench_decode(const BenchFlags& flags, Device& on, const ModelConfig& config);

// `earlier`: the result of an earlier run to compare with, or null.
void print_step(const Json& result, const Json& earlier, bool nodes);
void print_step_as_markdown(const Json& result, bool nodes);
void print_products(const Json& result);
void print_scaling(const Json& result);
void print_busy(const Json& result);
void print_decode(const Json& result);

}  // namespace llm
