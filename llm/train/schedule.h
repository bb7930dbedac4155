// The learning rate over a run.
#pragma once
#include <cstdint>
#include <string>

namespace llm {

// cosine:   half a cosine from the peak to the end value (Loshchilov and Hutter 2017)
// linear:   a straight line to the end value
// wsd:      constant, then a straight line to the end value over the last fifth (Hu et al. 2024)
// constant: the peak after the warm-up
enum class ScheduleKind { cosine, linear, wsd, constant };
ScheduleKind schedule_named(const std::string& name);  // throws UsageError
const char* name_of(ScheduleKind kind);

struct Schedule {
  ScheduleKind kind = ScheduleKind::linear;
  double peak = 1e-3;
  double end_fraction = 0;  // the end value as a fraction of the peak
  int64_t steps = 1;
  int64_t warmup = 0;  // steps; the first step has peak / warmup, step number `warmup` the peak

  // For step 0 .. steps - 1. The decay is spread so that the step after the last would have the end value: with an end
  // value of 0 the last step still learns. Beyond the last step it stays at the end value.
  double at(int64_t step) const;
};

}  // namespace llm
