// The training loop: batches in, steps, evaluations, samples, checkpoints, log.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "llm/base/threads.h"
#include "llm/checkpoint/checkpoint.h"
#include "llm/device/communicator.h"
#include "llm/graph/program.h"
#include "llm/infer/evaluate.h"
#include "llm/infer/generator.h"
#include "llm/model/gpt.h"
#include "llm/text/loader.h"
#include "llm/text/tokenize.h"
#include "llm/train/log.h"
#include "llm/train/options.h"
#include "llm/train/pipeline.h"
#include "llm/train/placement.h"
#include "llm/train/schedule.h"
#include "llm/train/step_runner.h"

namespace llm {

// A step that left the weights as they were.
struct SkippedStep {
  int64_t step = 0;
  double loss = 0, gradient_norm = 0;
  bool finite = true;  // only far above those before
  std::string batch;   // where its data lie, and how they begin
};

// What the trained model makes of a few tokens.
struct Sample {
  int64_t step = 0;
  std::string prompt, continuation;
};

// Who is told what a run does, on the thread that runs it.
class TrainingObserver {
 public:
  virtual ~TrainingObserver() = default;
  virtual void on_step(const LogEntry& /*entry*/, bool /*is_last*/) {}
  virtual void on_evaluation(int64_t /*batches_done*/, int64_t /*batches*/) {}
  virtual void on_skip(const SkippedStep&) {}
  virtual void on_sample(const Sample&) {}
};

// One rank of a run. All ranks of a run do the same; rank 0 alone writes files and has an observer.
class Trainer {
 public:
  // Builds and compiles all programs; no large memory yet. `options` are complete (apply_rules). `ranks`: null where
  // the run has one rank.
  Trainer(const ModelConfig& model, const TrainOptions& options, Dataset dataset, Device& device,
          Communicator* ranks = nullptr);

  const Program& program() const { return *training_; }
  const Pipeline* pipeline() const { return pipeline_.get(); }
  const TrainerState& state() const { return state_; }
  size_t arena_bytes() const;  // on the device
  size_t allocated_bytes() const { return arena_ ? arena_->bytes() : 0; }
  const ModelConfig& model() const { return model_; }
  size_t host_bytes() const { return layout_.host_bytes(); }  // of tensors that lie in the host's memory beside these
  // What this rank sent to others in the last step that was started.
  int64_t step_bytes_sent() const { return step_sent_; }

  // The one arena. `device_ranks` carries messages between the ranks' devices; `forward` and `backward` those of a
  // pipeline (null: `device_ranks` does).
  void allocate(Communicator* device_ranks = nullptr, Communicator* forward = nullptr,
                Communicator* backward = nullptr);
  void initialise();  // parameters by the table, moments zero
  // The same with the weights of a model directory, whose config must be that of this run.
  void initialise_from(const std::string& directory);
  void load(const std::string& checkpoint);  // throws Error when it does not belong to this run

  struct Outcome {
    bool stopped = false;                         // by a signal; a checkpoint was saved
    double val_loss = 0, val_bits_per_byte = 0;   // of the last evaluation; 0 when there was none
    int64_t val_tokens = 0, held_out_tokens = 0;  // on how many of those that can be predicted
    double seconds = 0, tokens_per_second = 0;
    double step_ms = 0;  // the median of the steps after the first; 0: there was one alone
  };
  // `peak_gflops` is what MFU is a fraction of, 0 where it is not known.
  Outcome run(double peak_gflops, TrainingObserver& observer);
  Outcome run() {
    TrainingObserver nobody;
    return run(0, nobody);
  }

 private:
  using StepResult = StepRunner::Result;
  // What looks at the weights after a step. The next one cannot be started before that.
  struct Due {
    bool evaluation = false, sample = false, save = false, end = false;
    bool any() const { return evaluation || sample || save || end; }
  };
  Due due_after(int64_t steps) const;
  void start_steps(int64_t& started, bool stop_requested);
  LogEntry finish_step(const StepResult& result, double seconds, double peak_gflops);
  void check_skipped(const StepResult& result, TrainingObserver& observer);
  bool is_first() const { return !ranks_ || ranks_->rank() == 0; }
  std::string weights_of(const Parameter& p) const;
  WholeTensors whole_tensors() const { return {*arena_, layout_, placement_, ranks_}; }
  void round_parameter(WholeTensors& tensors, const Parameter& p, const float* values);
  void load_weights(const std::string& directory);
  double evaluate(int64_t max_batches, LogEntry& entry, TrainingObserver& observer);
  double bits_per_byte(double loss) const;
  Sample sample();
  void save(double val_loss);
  std::vector<StateTensor> state_tensors() const;
  std::string batch_position() const;
  std::string excerpt(int64_t position) const;

  ModelConfig model_;
  TrainOptions options_;
  Dataset dataset_;
  Device& device_;
  Communicator* ranks_;
  DataParallel parallel_;
  std::vector<Parameter> table_;  // of the whole model
  Placement placement_;
  Schedule schedule_;
  std::unique_ptr<Loader> loader_;

  StepRunner::Tensors tensors_;
  PersistentLayout layout_;
  std::unique_ptr<VirtualRankSums> sums_;
  std::unique_ptr<Program> training_;   // of a pipeline, the end of a step
  std::unique_ptr<Pipeline> pipeline_;  // null: there is none
  std::unique_ptr<Evaluator> evaluator_;
  std::unique_ptr<Generator> generator_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<StepRunner> runner_;

  int64_t step_samples_, step_tokens_;
  TrainerState state_;
  Communicator* device_ranks_ = nullptr;
  int64_t step_sent_ = 0;   // bytes
  double step_waited_ = 0;  // seconds
  int64_t first_step_ = 0;  // of this process
  int64_t skipped_ = 0;     // steps in a row that were not finite
  int64_t dead_ = 0;        // whose gradient was exactly 0
};

}  // namespace llm
