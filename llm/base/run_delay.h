// Whether something else keeps the calling thread from its core: the share of the time in which the thread could have run
// and did not, as Linux counts it (/proc/thread-self/schedstat, "time spent waiting on a runqueue").
#pragma once
#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>

#include "llm/base/clock.h"

namespace llm {

// For one thread. Looks at the clock in each call, and at the system's count once in a window.
class RunDelay {
 public:
  static constexpr std::chrono::milliseconds kWindow{50};

  // Whether a window ends now in which more than `share` of the time was spent waiting for a core.
  bool exceeds(double share, Clock::time_point now) {
    if (now - begin_ < kWindow) return false;
    const int64_t waited = waited_ns();
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const bool is_first = begin_ == Clock::time_point{};
    const bool result = !is_first && static_cast<double>(waited - waited_) * 1e-9 > share * seconds;
    begin_ = now, waited_ = waited;
    return result;
  }
  // Begins a new window at the next call.
  void restart() { begin_ = {}; }

 private:
  // 0 where the system does not say. Allocates nothing, since kernels call this in every step.
  static int64_t waited_ns() {
    char text[128] = {};
    const int file = ::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    const ssize_t bytes = ::read(file, text, sizeof text - 1);
    ::close(file);
    long long ran = 0, waited = 0;
    return bytes > 0 && std::sscanf(text, "%lld %lld", &ran, &waited) == 2 ? waited : 0;
  }

  Clock::time_point begin_{};
  int64_t waited_ = 0;
};

}  // namespace llm
