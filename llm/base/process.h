// This process: its memory, and requests to stop it.
#pragma once
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <string>

namespace llm {

// The bytes that a line of /proc/self/status names, such as "VmHWM:" (the peak of resident memory) or "VmRSS:"
// (resident memory now); 0 if unknown.
inline size_t process_memory(const char* field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(field, 0) == 0)
      return static_cast<size_t>(std::strtoull(line.c_str() + std::string(field).size(), nullptr, 10)) * 1024;
  return 0;
}

// While a StopRequest exists, the first SIGINT and the first SIGTERM only set a flag, which a loop can look at; a
// second signal of the same kind ends the process as usual.
class StopRequest {
 public:
  StopRequest() {
    requested_ = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { requested_ = 1; };
    action.sa_flags = SA_RESETHAND | SA_RESTART;
    ::sigaction(SIGINT, &action, &old_interrupt_);
    ::sigaction(SIGTERM, &action, &old_terminate_);
  }
  ~StopRequest() {
    ::sigaction(SIGINT, &old_interrupt_, nullptr);
    ::sigaction(SIGTERM, &old_terminate_, nullptr);
  }
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;
  bool requested() const { return requested_ != 0; }

 private:
  static inline volatile std::sig_atomic_t requested_ = 0;  // static: a signal handler gets no pointer
  struct sigaction old_interrupt_ {
  }, old_terminate_{};
};

}  // namespace llm
