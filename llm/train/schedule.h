// The learning rate over a run.
#pragma once
#include <cstdint>

#include "llm/base/names.h"

namespace llm {

// After the warm-up the learning rate is
//   cosine:   half a cosine from the peak to the end value (Loshchilov and Hutter 2017)
//   linear:   a straight line to the end value
//   wsd:      the peak, then a straight line to the end value over the last fifth of the run (Hu et al. 2024)
//   constant: the peak
enum class ScheduleKind { cosine, linear, wsd, constant };
template <>
inline constexpr std::array kNames<ScheduleKind> = {"cosine", "linear", "wsd", "constant"};

struct Schedule {
  ScheduleKind kind = ScheduleKind::linear;
  double peak = 1e-3;
  double end_fraction = 0;  // the end value as a fraction of the peak
  int64_t steps = 1;
  int64_t warmup = 0;  // steps; step 0 has peak / warmup, step warmup - 1 the peak

  // The learning rate of step 0 .. steps - 1. The decay is such that the step after the last would have the end value:
  // even with an end value of 0 the last step learns. Beyond the last step the rate stays at the end value.
  double at(int64_t step) const;
};

}  // namespace llm
