// What a server has done, in the text format that Prometheus reads:
// https://prometheus.io/docs/instrumenting/exposition_formats
#pragma once
#include <array>
#include <cstdint>
#include <mutex>
#include <string>

#include "llm/infer/engine.h"

namespace llm {

// How often a time was at most each of the bounds, in seconds.
class Histogram {
 public:
  static constexpr std::array kBounds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
                                         0.2,   0.5,   1.0,   2.0,  5.0,  10.0, 30.0};
  void add(double seconds);
  void append_to(std::string& text, const char* name, const char* help) const;

 private:
  std::array<int64_t, kBounds.size()> counts_ = {};
  int64_t count_ = 0;
  double sum_ = 0;
};

// May be used by several threads at once.
class Metrics {
 public:
  void first_token_after(double seconds);
  void token_every(double seconds);  // the mean of a text behind its first token
  void request_ended(const char* how, double seconds);
  std::string text(const EngineStatistics& engine) const;

 private:
  mutable std::mutex mutex_;
  Histogram first_token_, per_token_, whole_;
  struct Ended {
    const char* how;
    int64_t requests;
  };
  std::array<Ended, 5> ended_ = {{{"stop", 0}, {"length", 0}, {"cancelled", 0}, {"refused", 0}, {"error", 0}}};
};

}  // namespace llm
