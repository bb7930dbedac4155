// What a run reports: RUN/log.jsonl for programs, one live line for people.
#pragma once
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>

namespace llm {

// One line of the log; absent values are left out. Losses are in nats a token, `ms` is the step's time. The keys are a
// contract, since scripts read them.
struct LogEntry {
  int64_t step = 0;  // steps done
  std::optional<double> loss, val_loss, val_bits_per_byte, learning_rate, grad_norm, ms, tokens_per_second, mfu;
  std::optional<int64_t> tokens;
  std::optional<bool> skipped;  // true: the step left the weights as they were
  std::string json() const;     // one line, without the newline
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

// The live line on standard error: redrawn in place on a terminal; elsewhere at most one new line in ten seconds, and
// the last.
class ProgressLine {
 public:
  ProgressLine();
  void show(const std::string& line, bool last = false);
  void clear();  // before other text goes to the terminal

 private:
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point shown_{};
};

std::string format_seconds(double seconds);  // "4:05", "1:02:03"
std::string format_count(double count);      // "38.1k", "1.2M"

}  // namespace llm
