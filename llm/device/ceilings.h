// What this machine can do at most, measured on it: the ceilings that `bench` holds each op against, and MFU's peak.
#pragma once
#include <cstddef>

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

// About half a second and 512 MiB of memory, given back afterwards. The bandwidths are medians of interleaved rounds.
Ceilings measure_ceilings(ThreadTeam& threads);

// `gflops` alone, in less than 30 ms on an idle machine and without memory. The best of several rounds: whatever else runs on the machine
// makes a round slower and never faster, and a peak that is too low would make MFU look too good.
double measure_peak_gflops(ThreadTeam& threads);

}  // namespace llm
