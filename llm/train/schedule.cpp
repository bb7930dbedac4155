#include "llm/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "llm/base/error.h"

namespace llm {

double Schedule::at(int64_t step) const {
  if (step < warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (kind == ScheduleKind::constant) return peak;
  // The decay runs over steps [start, steps); a warm-up as long as the run leaves none.
  int64_t start = std::max<int64_t>(warmup - 1, 0);
  if (kind == ScheduleKind::wsd) start = std::max(start, steps - std::max<int64_t>(1, steps / 5));
  if (step <= start) return peak;
  const double done =
      std::min(1.0, static_cast<double>(step - start) / static_cast<double>(std::max<int64_t>(1, steps - start)));
  const double left = kind == ScheduleKind::cosine ? 0.5 * (1 + std::cos(std::numbers::pi * done)) : 1 - done;
  return peak * (end_fraction + (1 - end_fraction) * left);
}

}  // namespace llm
