// Measures how long work takes on a GPU at the clock that it holds while training, to choose between algorithms.
#pragma once
#include <algorithm>
#include <cmath>

#include "llm/device/device.h"

namespace llm {

// What a choice is measured with: at least so many runs in succession, which take at least so long, after a warm-up.
constexpr int kTimedRuns = 10;
constexpr double kTimedSeconds = 2e-3, kWarmUpSeconds = 0.1;

class TuningClock {
 public:
  explicit TuningClock(Device& device) : watch_(device.new_stopwatch(2)) {}

  // Seconds that one run of `work`, which starts it on the device's stream, takes. `runs` runs are timed in succession,
  // and more where these take less than `at_least` seconds together.
  template <class Work>
  double seconds_a_run(Work&& work, int runs, double at_least) {
    if (!warm_) {  // an idle GPU has a low clock, which rises within milliseconds
      warm_ = true;
      double spent = 0;
      for (int i = 0; i < 1000 && spent < kWarmUpSeconds; ++i) spent += elapsed(work, kTimedRuns);
    }
    const double seconds = elapsed(work, runs);
    if (seconds >= at_least) return seconds / runs;
    const int more = static_cast<int>(std::min(1000.0, std::ceil(at_least / std::max(seconds, 1e-6) * runs)));
    return elapsed(work, more) / more;
  }

 private:
  template <class Work>
  double elapsed(Work& work, int runs) {
    watch_->mark(0);
    for (int i = 0; i < runs; ++i) work();
    watch_->mark(1);
    return watch_->seconds(0, 1);
  }

  std::unique_ptr<Stopwatch> watch_;
  bool warm_ = false;
};

}  // namespace llm
