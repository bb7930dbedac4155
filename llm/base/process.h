// This process: its memory, and requests to stop it.
#pragma once
#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <mutex>
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
// second signal of the same kind ends the process as usual. Several threads may have one, and share the flag.
class StopRequest {
 public:
  StopRequest() {
    const std::lock_guard lock(mutex_);
    if (users_++ > 0) return;
    requested_ = false;
    struct sigaction action {};
    action.sa_handler = [](int) { requested_ = true; };
    action.sa_flags = SA_RESETHAND | SA_RESTART;
    ::sigaction(SIGINT, &action, &old_interrupt_);
    ::sigaction(SIGTERM, &action, &old_terminate_);
  }
  ~StopRequest() {
    const std::lock_guard lock(mutex_);
    if (--users_ > 0) return;
    ::sigaction(SIGINT, &old_interrupt_, nullptr);
    ::sigaction(SIGTERM, &old_terminate_, nullptr);
  }
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;
  bool requested() const { return requested_; }

 private:
  // Static: a signal handler gets no pointer.
  static inline std::atomic<bool> requested_ = false;
  static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler must not wait for a lock");
  static inline std::mutex mutex_;
  static inline int users_ = 0;
  static inline struct sigaction old_interrupt_ { }, old_terminate_{}; };

}  // namespace llm
