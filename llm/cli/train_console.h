// What a run says to people, and its log to programs.
#pragma once
#include <ostream>
#include <vector>

#include "llm/cli/progress.h"
#include "llm/train/rules.h"
#include "llm/train/trainer.h"

namespace llm {

// Shows a run while it trains.
class Console : public TrainingObserver {
 public:
  // `val_loss`: measured so far; NaN: none was. `prints_log`: the log's lines go to standard output as well.
  Console(int64_t steps, double val_loss, bool prints_log)
      : steps_(steps), val_loss_(val_loss), prints_log_(prints_log) {}

  void on_step(const LogEntry& entry, bool is_last) override;
  void on_evaluation(int64_t done, int64_t total) override;
  void on_skip(const SkippedStep& skipped) override;
  void on_sample(const Sample& sample) override;

 private:
  int64_t steps_;
  double val_loss_;
  bool prints_log_;
  double recent_ = 0;  // seconds a step
  ProgressLine progress_;
};

// Says what a run is about to do, with the rules that made what was not given.
void print_plan(const ModelConfig& model, const TrainOptions& options, const std::vector<Rule>& rules,
                const Trainer& trainer, int ranks, std::ostream& notes);

}  // namespace llm
