#include "llm/device/ceilings.h"

#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "llm/base/clock.h"
#include "llm/base/error.h"
#include "llm/base/median.h"
#include "llm/base/simd.h"

namespace llm {

// Memory straight from the system, in huge pages where the system gives them, so that page faults and TLB misses do not
// count in the measurement.
class CeilingMeter::Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
    data_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED)
      fail("the system does not give the ", bytes_ >> 20, " MiB that measuring its memory needs");
    ::madvise(data_, bytes_, MADV_HUGEPAGE);  // may fail: it is only advice
  }
  ~Pages() { ::munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  float* floats() const { return static_cast<float*>(data_); }

 private:
  size_t bytes_;
  void* data_;
};

namespace {

using simd::Vec;

// Independent chains of fma: more than latency times throughput, so that the units are never idle, and few enough to
// stay in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kChains = 24;
#else
constexpr int kChains = 12;
#endif

// Seconds that all threads take for `steps` fma on each chain. The constants come from volatile variables and the sum
// goes to a volatile variable, so that the compiler can neither compute the result nor leave the work out.
double fma_seconds(ThreadTeam& threads, int64_t steps) {
  static volatile float factor_source = 0.999f, term_source = 1e-3f;
  std::vector<float> sums(static_cast<size_t>(threads.size()));
  const auto start = Clock::now();
  threads.run([&](int rank) {
    const Vec factor = simd::broadcast(factor_source), term = simd::broadcast(term_source);
    Vec chain[kChains];
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) chain[i] = term * static_cast<float>(i);
    for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 32
      for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + term;
    }
    Vec sum{};
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) sum += chain[i];
    sums[static_cast<size_t>(rank)] = simd::reduce_add(sum);
  });
  const double seconds = seconds_since(start);
  volatile float sink = 0;
  for (float s : sums) sink = sink + s;
  return seconds;
}

constexpr int64_t kBlock = 16384;  // floats that a thread takes at a time, as the streaming kernels do
constexpr int kUnroll = 8;
constexpr int64_t kStride = kUnroll * simd::kLanes;  // divides kBlock

// Each thread reads at kStreams places far apart, a quarter of the array: one after the other they do not reach what memory
// gives (gemm_panels_cpu.cpp).
constexpr int64_t kStreams = 4;

void read_all(ThreadTeam& threads, const float* from, float* sums, int64_t n) {
  constexpr int64_t kPart = kBlock / kStreams;
  constexpr int kVectors = kUnroll / kStreams;
  threads.for_blocks(n / kStreams, kPart, [&](int64_t begin, int64_t end) {
    Vec sum[kUnroll] = {};
    for (int64_t i = begin; i < end; i += kVectors * simd::kLanes)
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s)
#pragma GCC unroll 2
        for (int u = 0; u < kVectors; ++u)
          sum[s * kVectors + u] += simd::load(from + s * (n / kStreams) + i + u * simd::kLanes);
    Vec total{};
    for (const Vec& s : sum) total += s;
    sums[begin / kPart] = simd::reduce_add(total);  // keeps the compiler from leaving the loads out
  });
}

void copy_all(ThreadTeam& threads, const float* from, float* to, int64_t n) {
  threads.for_blocks(n, kBlock, [&](int64_t begin, int64_t end) {
    // The negation keeps the compiler from calling memcpy, whose streaming stores the kernels do not use.
    for (int64_t i = begin; i < end; i += kStride)
#pragma GCC unroll 8
      for (int u = 0; u < kUnroll; ++u)
        simd::store(to + i + u * simd::kLanes, -simd::load(from + i + u * simd::kLanes));
  });
}

void update_all(ThreadTeam& threads, float* data, int64_t n) {
  const Vec factor = simd::broadcast(0.5f);
  threads.for_blocks(n, kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kStride)
#pragma GCC unroll 8
      for (int u = 0; u < kUnroll; ++u) {
        float* p = data + i + u * simd::kLanes;
        simd::store(p, simd::load(p) * factor);
      }
  });
}

struct Bandwidths {
  double read, copy, update;  // in 10^9 bytes per second
};

// Measures with arrays that take `bytes` together; each pass over them is repeated `repeats` times.
Bandwidths measure_bandwidths(ThreadTeam& threads, float* data, float* sums, size_t bytes, int repeats) {
  const int64_t n = static_cast<int64_t>(bytes / sizeof(float)) / (kStreams * kBlock) * (kStreams * kBlock);
  const double moved = static_cast<double>(n) * sizeof(float) * repeats * 1e-9;
  const auto gbs = [&](double factor, auto&& pass) {
    const auto start = Clock::now();
    for (int r = 0; r < repeats; ++r) pass();
    return factor * moved / seconds_since(start);
  };
  Bandwidths b{};
  b.read = gbs(1, [&] { read_all(threads, data, sums, n); });
  b.copy = gbs(1, [&] { copy_all(threads, data, data + n / 2, n / 2); });
  b.update = gbs(2, [&] { update_all(threads, data, n); });
  return b;
}

double flops_of_steps(ThreadTeam& threads, int64_t steps) {
  return 2.0 * kChains * simd::kLanes * threads.size() * static_cast<double>(steps);
}

// A number of steps that takes at least `seconds`. The search also wakes the threads and raises the cores' clocks.
int64_t steps_for(ThreadTeam& threads, double seconds) {
  const auto start = Clock::now();
  int64_t steps = 1024;
  while (fma_seconds(threads, steps) < seconds && seconds_since(start) < 8 * seconds) steps *= 2;
  return steps;
}

}  // namespace

double measure_peak_gflops(ThreadTeam& threads) {
  // Rounds of 1 to 2 ms: shorter than a time slice, so that some of them run undisturbed.
  const auto start = Clock::now();
  const int64_t steps = steps_for(threads, 1e-3);
  double best = 0;
  for (int round = 0; round < 3 || (round < 10 && seconds_since(start) < 20e-3); ++round)
    best = std::max(best, flops_of_steps(threads, steps) / fma_seconds(threads, steps) * 1e-9);
  return best;
}

double measure_held_gflops(ThreadTeam& threads) {
  const int64_t steps = 16 * steps_for(threads, 1e-3);
  return flops_of_steps(threads, steps) / fma_seconds(threads, steps) * 1e-9;
}

CeilingMeter::CeilingMeter(ThreadTeam& threads) : threads_(threads) {}
CeilingMeter::~CeilingMeter() = default;

void CeilingMeter::round() {
  // More than the caches hold. The size of the caches cannot be asked: virtual machines report up to what their host
  // has.
  constexpr size_t kBytes = size_t{512} << 20;
  if (!pages_) {
    pages_ = std::make_unique<Pages>(kBytes);
    update_all(threads_, pages_->floats(), static_cast<int64_t>(kBytes / sizeof(float)));  // touches every page
  }
  std::vector<float> sums(kBytes / sizeof(float) / kBlock);
  const auto bandwidths = [&](size_t bytes, int repeats) {
    return measure_bandwidths(threads_, pages_->floats(), sums.data(), bytes, repeats);
  };
  Ceilings c;
  c.gflops = measure_held_gflops(threads_);
  const Bandwidths memory = bandwidths(kBytes, 1);
  bandwidths(Ceilings::kCachedBytes, 1);
  const Bandwidths cached = bandwidths(Ceilings::kCachedBytes, 8);
  c.read_gbs = memory.read, c.copy_gbs = memory.copy, c.update_gbs = memory.update;
  c.cached_read_gbs = cached.read, c.cached_copy_gbs = cached.copy, c.cached_update_gbs = cached.update;
  rounds_.push_back(c);
}

Ceilings CeilingMeter::medians() const {
  Ceilings c;
  for (double Ceilings::*what :
       {&Ceilings::gflops, &Ceilings::read_gbs, &Ceilings::copy_gbs, &Ceilings::update_gbs, &Ceilings::cached_read_gbs,
        &Ceilings::cached_copy_gbs, &Ceilings::cached_update_gbs}) {
    std::vector<double> values;
    for (const Ceilings& round : rounds_) values.push_back(round.*what);
    c.*what = median(values);
  }
  return c;
}

}  // namespace llm
