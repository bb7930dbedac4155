// What this machine can do at most, measured on it: the ceilings that `bench` holds each op against, and MFU's peak.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "llm/base/threads.h"

namespace llm {

// All threads of the team together. Bandwidths count bytes read plus bytes written, in 10^9 bytes per second, with
// ordinary stores, as kernels use them. "cached": of arrays that take kCachedBytes together and were touched just before.
struct Ceilings {
  static constexpr size_t kCachedBytes = size_t{16} << 20;

  double gflops = 0;  // fp32 fused multiply-add, an fma counts 2
  double read_gbs = 0, copy_gbs = 0, update_gbs = 0;
  double cached_read_gbs = 0, cached_copy_gbs = 0, cached_update_gbs = 0;
};

// Measures in rounds, to be made by turns with what is held against them: a virtual machine's clocks and memory change with
// its neighbours within seconds, and the clock that a core holds is lower than the one it begins with.
class CeilingMeter {
 public:
  explicit CeilingMeter(ThreadTeam& threads);
  ~CeilingMeter();
  // About 0.15 s; what was in the caches is gone. From the first on the meter holds 512 MiB: a virtual machine that gets pages
  // back returns them to its host seconds later, in the midst of what is measured between two rounds.
  void round();
  Ceilings medians() const;  // of the rounds so far, at least one

 private:
  ThreadTeam& threads_;
  class Pages;
  std::unique_ptr<Pages> pages_;
  std::vector<Ceilings> rounds_;
};

// `gflops` alone as all threads hold it for 20 ms: a round's.
double measure_held_gflops(ThreadTeam& threads);

// The highest `gflops` that shows, in less than 30 ms on an idle machine and without memory. The best of several short rounds: whatever
// else runs on the machine makes a round slower and never faster, and a peak that is too low would make MFU look too good.
double measure_peak_gflops(ThreadTeam& threads);

}  // namespace llm
