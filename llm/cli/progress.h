// How far a job is, on standard error.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace llm {

// A job over bytes: a live bar with rate and time left on a terminal, else only the final line.
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

// One live line: redrawn in place on a terminal; elsewhere at most one new line in ten seconds, and the last.
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

// Of the terminal that standard output goes to, or as COLUMNS says; 0: neither, so that nothing is cut.
size_t terminal_columns();

std::string format_seconds(double seconds);  // "4:05", "1:02:03"
std::string format_count(double count);      // "38.1k", "1.2M"

}  // namespace llm
