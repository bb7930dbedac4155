// The training loop: batches in, steps, evaluations, samples, checkpoints, log.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llm/base/threads.h"
#include "llm/checkpoint/checkpoint.h"
#include "llm/graph/program.h"
#include "llm/infer/evaluate.h"
#include "llm/infer/generator.h"
#include "llm/model/gpt.h"
#include "llm/text/loader.h"
#include "llm/text/tokenize.h"
#include "llm/train/log.h"
#include "llm/train/options.h"
#include "llm/train/schedule.h"
#include "llm/train/step_runner.h"

namespace llm {

class Trainer {
 public:
  // Builds and compiles all programs; no large memory yet. `options` are complete (apply_rules).
  Trainer(const ModelConfig& model, const TrainOptions& options, Dataset dataset, Device& device);

  const Program& program() const { return *training_; }
  size_t arena_bytes() const;

  void allocate();    // the one arena
  void initialise();  // parameters by the table, moments zero
  // The same with the weights of a model directory, whose config must be that of this run.
  void initialise_from(const std::string& directory);
  void load(const std::string& checkpoint);  // throws Error when it does not belong to this run

  struct Outcome {
    bool stopped = false;                        // by a signal; a checkpoint was saved
    double val_loss = 0, val_bits_per_byte = 0;  // of all held-out text; 0 when there is none
    double seconds = 0, tokens_per_second = 0;
  };
  // `peak_gflops` is what MFU is a fraction of; `on_log` also gets every line that goes to the log.
  Outcome run(double peak_gflops, const std::function<void(const LogEntry&)>& on_log = {});

 private:
  using StepResult = StepRunner::Result;
  void start_step(int64_t step);
  // Whether something looks at the weights after so many steps: the next one cannot be started before that.
  bool looked_at(int64_t steps_done) const;
  std::string weights_of(const Parameter& p) const;
  void round_parameters();
  double evaluate(int64_t max_batches);
  double bits_per_byte(double loss) const;
  void sample();
  void save(double val_loss);
  std::vector<StateTensor> state_tensors() const;
  void report(const StepResult& result);
  std::string batch_position() const;
  std::string excerpt(int64_t position) const;

  ModelConfig model_;
  TrainOptions options_;
  Dataset dataset_;
  Device& device_;
  std::vector<Parameter> table_;
  Schedule schedule_;
  std::unique_ptr<TokenStream> train_stream_, val_stream_;
  std::unique_ptr<Loader> loader_;

  StepRunner::Tensors tensors_;
  PersistentLayout layout_;
  std::unique_ptr<Program> training_;
  std::unique_ptr<Evaluator> evaluator_;
  std::unique_ptr<Generator> generator_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<StepRunner> runner_;

  TrainerState state_;
  ProgressLine progress_;
  int64_t skipped_ = 0;  // steps in a row that were not finite
};

}  // namespace llm
