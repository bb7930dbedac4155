// The progress of a job over bytes, on stderr: a live bar with rate and time left on a terminal, else only the final line.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace llm {

class Progress {
 public:
  explicit Progress(std::string label);
  ~Progress();  // a bar that was left unfinished by an error is cleared away

  void update(int64_t done, int64_t total);
  void finish();  // the final line: how much, how fast
  double seconds() const;

 private:
  std::string label_;
  bool terminal_;
  bool shown_ = false;
  int64_t total_ = 0;
  std::chrono::steady_clock::time_point begin_, drawn_;
};

}  // namespace llm
