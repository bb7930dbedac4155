// The rule by which step_guard skips a step, shared by the CPU and the GPU. One thread applies it, in double.
#pragma once
#include <cmath>

#include "llm/base/bf16.h"

namespace llm {

inline constexpr int kGuardStatistics =
    5;  // steps counted; mean and variance of losses; mean and variance of logarithms of norms

struct GuardRule {
  double deviations, after;

  // Whether the step is an outlier. `statistics` (5) are those of the steps before; the step is then added to them.
  LLM_HOST_DEVICE bool look(double norm, double loss, float* statistics) const {
    constexpr double kLeastLoss = 0.5, kLeastLogNorm = 1.3862943611198906;  // nats; log 4
    constexpr double kLong = 0.02, kShort = 5, kMost = 1e6;                 // the count of steps ends at kMost
    const double log_norm = log(norm > 1e-30 ? norm : 1e-30);
    const double count = statistics[0];
    const bool judges = count >= after;
    // The window is about the last fifth of the steps so far, at most 50: at the start losses fall fast, and in a
    // longer window that fall would count as variance.
    const double recent = kShort / (count + kShort), weight = recent > kLong ? recent : kLong;
    const bool loss_sticks_out = take_in(loss, kLeastLoss, judges, weight, statistics + 1);
    const bool norm_sticks_out = take_in(log_norm, kLeastLogNorm, judges, weight, statistics + 3);
    statistics[0] = static_cast<float>(count < kMost ? count + 1 : count);
    return loss_sticks_out || norm_sticks_out;
  }

 private:
  // Adds x to the statistics; returns whether x is an outlier. An outlier is added as the largest value that is not
  // one: a single spike hardly moves the statistics, but a new level that stays is accepted after about ten steps.
  LLM_HOST_DEVICE bool take_in(double x, double least, bool judges, double weight, float* mean_and_variance) const {
    const double mean = mean_and_variance[0], variance = mean_and_variance[1];
    const double spread = deviations * sqrt(variance), most = spread > least ? spread : least;
    const bool sticks_out = judges && x - mean > most;
    const double distance = sticks_out ? most : x - mean;
    mean_and_variance[0] = static_cast<float>(mean + weight * distance);
    mean_and_variance[1] = static_cast<float>((1 - weight) * (variance + weight * distance * distance));
    return sticks_out;
  }
};

}  // namespace llm
