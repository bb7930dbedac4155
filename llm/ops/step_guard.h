// The rule by which step_guard leaves a step out, for the CPU and the GPU alike: one thread applies it, in double.
#pragma once
#include <cmath>

#include "llm/base/bf16.h"

namespace llm {

inline constexpr int kGuardStatistics =
    5;  // steps counted, mean and variance of losses, mean and variance of log norms

struct GuardRule {
  double deviations, after;

  // `statistics` are those of the steps before this one, and take it in. Whether the step sticks out.
  LLM_HOST_DEVICE bool look(double norm, double loss, float* statistics) const {
    constexpr double kLeastLoss = 0.5, kLeastLogNorm = 1.3862943611198906;  // nats; log 4
    constexpr double kLong = 0.02, kShort = 5, kMost = 1e6;                 // steps beyond kMost are not counted
    const double log_norm = log(norm > 1e-30 ? norm : 1e-30);
    const double count = statistics[0];
    const bool judges = count >= after;
    // About the last fifth of the steps so far, at the most 50: losses fall fast at the start, which must not pass for noise.
    const double recent = kShort / (count + kShort), weight = recent > kLong ? recent : kLong;
    const bool loss_sticks_out = take_in(loss, kLeastLoss, judges, weight, statistics + 1);
    const bool norm_sticks_out = take_in(log_norm, kLeastLogNorm, judges, weight, statistics + 3);
    statistics[0] = static_cast<float>(count < kMost ? count + 1 : count);
    return loss_sticks_out || norm_sticks_out;
  }

 private:
  // What sticks out counts as the largest value that would not: one spike hardly moves the statistics, but a level that
  // stays is accepted after about ten steps.
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
