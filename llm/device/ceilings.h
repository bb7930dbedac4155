// The measured limits of this machine: the ceilings with which `bench` compares each op, and the peak that MFU refers
// to.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "llm/base/threads.h"

namespace llm {

// Rates of all threads of the team together. Bandwidths count bytes read plus bytes written, in 10^9 bytes per second,
// with ordinary stores, as the kernels use them. The "cached" ones are of arrays that take kCachedBytes together and
// were touched just before.
struct Ceilings {
  static constexpr size_t kCachedBytes = size_t{16} << 20;

  double gflops = 0;  // 10^9 operations per second of fp32 fused multiply-adds; an fma counts 2
  double read_gbs = 0, copy_gbs = 0, update_gbs = 0;
  double cached_read_gbs = 0, cached_copy_gbs = 0, cached_update_gbs = 0;
};

// Measures in rounds, to be taken in turn with the measurements that are compared with the ceilings: on a virtual
// machine clocks and memory bandwidth change with its neighbours within seconds, and a core begins at a higher clock
// than it holds.
class CeilingMeter {
 public:
  explicit CeilingMeter(ThreadTeam& threads);
  ~CeilingMeter();
  // Takes about 0.15 s and empties the caches of other data. From the first round on the meter keeps its 512 MiB: a
  // virtual machine returns freed pages to its host seconds later, which would disturb what is measured between two
  // rounds.
  void round();
  Ceilings medians() const;  // over the rounds so far, of which there must be at least one

 private:
  ThreadTeam& threads_;
  class Pages;
  std::unique_ptr<Pages> pages_;
  std::vector<Ceilings> rounds_;
};

// Ceilings::gflops as all threads hold it for about 20 ms, as in a round of the meter.
double measure_held_gflops(ThreadTeam& threads);

// The highest Ceilings::gflops of several short rounds, which take less than 30 ms together on an idle machine. The
// best one counts because other work on the machine makes a round slower, never faster, and a peak that is too low
// would make MFU look too good.
double measure_peak_gflops(ThreadTeam& threads);

}  // namespace llm
