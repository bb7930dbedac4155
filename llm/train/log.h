// RUN/log.jsonl: what a run reports to programs.
#pragma once
#include <cstdio>
#include <optional>
#include <string>

namespace llm {

// One line of the log; absent values are left out. Losses are in nats a token, `ms` is the step's time. The keys are a
// contract, since scripts read them.
struct LogEntry {
  int64_t step = 0;  // steps done
  std::optional<double> loss, val_loss, val_bits_per_byte, learning_rate, grad_norm, ms, tokens_per_second, mfu;
  std::optional<int64_t> tokens, val_tokens;  // trained on so far; predicted by the evaluation
  std::optional<int64_t> ranks, sent_bytes;   // of a run with several: how many, and what rank 0 sent in the step
  // Of a model with experts (StepRunner::Routers): 1 is an even load, and an even balance; no token is ever dropped.
  std::optional<double> expert_load, balance_loss, router_entropy;
  std::optional<double> wait_ms;  // what rank 0 waited for the others; of GPUs not known
  std::optional<bool> skipped;    // true: the step left the weights as they were
  std::string json() const;       // one line, without the newline
};

class RunLog {
 public:
  // Opens RUN/log.jsonl to append. Lines of steps after `keep_up_to` are removed first: a resumed run writes them
  // again.
  RunLog(const std::string& run, int64_t keep_up_to);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;
  void write(const LogEntry& entry);  // throws Error when the disk is full

 private:
  std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace llm
