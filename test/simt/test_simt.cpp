// The SIMT test bed itself: tiny kernels with a known result, and tiny kernels with a known mistake, which the bed must
// see. (test_mutation.cpp asks whether the tests of the ops' kernels would see a mistake.)
#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "llm/base/random.h"
#include "llm/device/cuda.h"
#include "test/cuda_check.h"
#include "test/helpers.h"
#include "test/simt/bed.h"
#include "test/simt/child.h"
#include "test/simt/cuda_runtime.h"
#include "test/simt/samples.h"

namespace {

using namespace llm;
using simt::bed::Order;
using test::has;

// An array in the bed's memory.
template <class T>
struct OnDevice {
  explicit OnDevice(std::vector<T> values) : size(values.size()) {
    REQUIRE(cudaMalloc(&data, size * sizeof(T)) == cudaSuccess);
    REQUIRE(cudaMemcpy(data, values.data(), size * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
  }
  explicit OnDevice(size_t n) : OnDevice(std::vector<T>(n)) {}
  ~OnDevice() { cudaFree(data); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  std::vector<T> values() const {
    std::vector<T> v(size);
    REQUIRE(cudaMemcpy(v.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return v;
  }
  T* data = nullptr;
  size_t size;
};

std::vector<float> counted(size_t n) {
  std::vector<float> v(n);
  std::iota(v.begin(), v.end(), 0.0f);
  return v;
}

template <class Work>
void in_each_order(Work work) {
  simt::bed::Settings& settings = simt::bed::settings();
  const simt::bed::Settings before = settings;
  for (const Order order : {Order::ascending, Order::descending, Order::random, Order::random, Order::random}) {
    settings.order = order;
    ++settings.seed;
    CAPTURE(static_cast<int>(order));
    work();
  }
  settings = before;
}

// The bed's verdict on a launch: its error, or "right" or "wrong" by the result. The launch runs in a process of its
// own, which a sanitizer may stop: then the verdict is "crash".
std::string verdict(const std::function<bool()>& is_right) {
  return simt::bed::outcome_of([&] { return is_right() ? "right" : "wrong"; }, 10);
}

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

}  // namespace

TEST_CASE("simt: shuffles and votes") {
  OnDevice<int> results(size_t{12} * 32);
  in_each_order([&] {
    samples::shuffles(nullptr, results.data);
    const std::vector<int> all = results.values();
    for (int lane = 0; lane < 32; ++lane) {
      CAPTURE(lane);
      const std::vector<int> expected = {105,
                                         100 + lane / 8 * 8 + (lane + 3) % 8,
                                         100 + (lane ^ 9),
                                         100 + (lane < 29 ? lane + 3 : lane),
                                         100 + (lane >= 3 ? lane - 3 : lane),
                                         100 + (lane % 8 < 5 ? lane + 3 : lane),
                                         0x49249249,
                                         1,
                                         0,
                                         100 + (lane < 16 ? lane ^ 1 : lane ^ 2),
                                         104,
                                         7};
      for (size_t i = 0; i < expected.size(); ++i) {
        CAPTURE(i);
        CHECK(all[i * 32 + static_cast<size_t>(lane)] == expected[i]);
      }
    }
  });
}

TEST_CASE("simt: mma and ldmatrix against plain loops") {
  const Random random(3, 4);
  std::vector<uint16_t> a(256), b(128);
  std::vector<float> d(128);
  const auto value = [&](uint64_t i) { return static_cast<float>(2 * random.uniform(i) - 1); };
  for (size_t i = 0; i < a.size(); ++i) a[i] = nearest_bf16(value(i)).bits;
  for (size_t i = 0; i < b.size(); ++i) b[i] = nearest_bf16(value(1000 + i)).bits;
  for (size_t i = 0; i < d.size(); ++i) d[i] = value(2000 + i);
  in_each_order([&] {
    const OnDevice<uint16_t> on_a(a), on_b(b);
    const OnDevice<float> on_d(d);
    samples::multiply(nullptr, on_d.data, on_a.data, on_b.data);
    const std::vector<float> result = on_d.values();
    for (size_t row = 0; row < 16; ++row)
      for (size_t column = 0; column < 8; ++column) {
        double sum = d[row * 8 + column];
        for (size_t k = 0; k < 16; ++k)
          sum += double{to_float(bf16{a[row * 16 + k]})} * double{to_float(bf16{b[column * 16 + k]})};
        CHECK(result[row * 8 + column] == doctest::Approx(sum).epsilon(1e-5));
      }
  });

  // Four matrices side by side: matrix i, row r, column c is 1000 i + 10 r + c.
  std::vector<uint16_t> values(256);
  for (size_t i = 0; i < 256; ++i) values[i] = static_cast<uint16_t>(i % 32 / 8 * 1000 + i / 32 * 10 + i % 8);
  const OnDevice<uint16_t> on_values(values);
  const OnDevice<uint32_t> words(256);
  samples::matrices(nullptr, words.data, on_values.data);
  const std::vector<uint32_t> result = words.values();
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4, column = lane % 4 * 2, at = 1000 * i;
      CHECK(result[lane * 4 + i] == ((at + 10 * row + column) | (at + 10 * row + column + 1) << 16));
      CHECK(result[128 + lane * 4 + i] == ((at + 10 * column + row) | (at + 10 * (column + 1) + row) << 16));
    }
}

TEST_CASE("simt: asynchronous copies and atomics") {
  in_each_order([&] {
    const OnDevice<float> to(256), from(counted(256));
    samples::copy(nullptr, to.data, from.data);
    CHECK(to.values() == counted(256));
    std::vector<int> numbers(1000), expected(7);
    for (size_t i = 0; i < numbers.size(); ++i)
      ++expected[static_cast<size_t>(numbers[i] = static_cast<int>(i * i % 7))];
    const OnDevice<int> on_numbers(numbers), counts(7);
    samples::count(nullptr, counts.data, on_numbers.data, 1000);
    CHECK(counts.values() == expected);
  });
}

TEST_CASE("simt: barriers, and their lack") {
  const auto reversed = [](size_t n) {
    std::vector<float> v = counted(n);
    return std::vector<float>(v.rbegin(), v.rend());
  };
  in_each_order([&] {
    for (const bool with_barrier : {true, false}) {
      const std::string block = verdict([&] {
        const OnDevice<float> data(counted(64));
        samples::reverse(nullptr, data.data, with_barrier);
        return data.values() == reversed(64);
      });
      const std::string warp = verdict([&] {
        const OnDevice<float> data(counted(32));
        samples::reverse_in_warp(nullptr, data.data, with_barrier);
        return data.values() == reversed(32);
      });
      CAPTURE(block);
      CAPTURE(warp);
      CHECK((block == "right") == with_barrier);
      CHECK((warp == "right") == with_barrier);
      if (!with_barrier && !kSanitized) {
        CHECK(has(block, "no barrier between"));
        CHECK(has(warp, "no barrier between"));
        CHECK(has(warp, "samples.cpp:"));
      }
    }
  });
}

TEST_CASE("simt: mistakes are seen and named") {
  if (!kSanitized) CHECK(simt::bed::watches_accesses());
  const auto says = [](void (*launch)(CUstream_st*, float*)) {
    const std::string said = verdict([&] {
      const OnDevice<float> data(counted(64));
      launch(nullptr, data.data);
      for (float v : data.values())
        if (std::isnan(v)) return false;
      return true;
    });
    CAPTURE(said);
    return said;
  };
  CHECK(says(samples::uninitialised) == "wrong");
  in_each_order([&] {
    const std::string divergent = says(samples::divergent);
    CHECK(has(divergent, "thread 32,0,0 is at __syncthreads at test/simt/samples.cpp:"));
    CHECK(has(divergent, "while thread 0,0,0 is at __syncthreads at test/simt/samples.cpp:"));
    CHECK(has(divergent, "block 0,0,0"));
    CHECK(has(says(samples::left_out), "thread 5,0,0 has finished"));
    CHECK(has(says(samples::wrong_mask), "does not name the lane"));
    // Whether lane 7 has finished or comes later depends on the order.
    const std::string stays_away = says(samples::short_of_a_lane);
    CHECK(has(stays_away, "__shfl_xor_sync at test/simt/samples.cpp:"));
    CHECK(has(stays_away, "has finished"));
  });
  if (!kSanitized) CHECK(has(says(samples::spoils_another_block), "another block wrote it"));
  for (const bool shared : {false, true}) {
    const auto write = [&](int count) {
      return verdict([&] {
        const OnDevice<float> data(counted(40));
        samples::writes_behind(nullptr, data.data, count, shared);
        return true;
      });
    };
    CHECK(write(shared ? 64 : 40) == "right");
    CHECK(write(shared ? 65 : 41) != "right");
    if (!kSanitized) CHECK(has(write(shared ? 65 : 41), "out of bounds"));
  }
}

TEST_CASE(
    "simt: attention by the kernels for GPUs that are no Hoppers, for the head sizes that Hopper has its own for") {
  simt::bed::Settings& settings = simt::bed::settings();
  const simt::bed::Settings before = settings;
  settings.compute_capability = 80;
  ThreadTeam threads(1);
  CudaDevice device(threads);
  size_t checks = 0;
  reference::for_each_cuda_check([&](const reference::CudaCheck& check) {
    if (!check.name().starts_with("attention") || !check.name().ends_with("bf16")) return;
    if (check.name().find("heads of 64") == std::string::npos && check.name().find("heads of 128") == std::string::npos)
      return;
    INFO(check.name());
    CHECK(check.run(device, false) == "");
    ++checks;
  });
  CHECK(checks > 10);
  settings = before;
}

TEST_CASE("simt: a site that is switched off is missed") {
  simt::bed::watch_sites(true);
  const auto is_copied = [] {
    const OnDevice<float> to(256), from(counted(256));
    samples::copy(nullptr, to.data, from.data);
    return to.values() == counted(256);
  };
  CHECK(is_copied());
  const std::vector<simt::bed::Site> sites = simt::bed::watched_sites();
  simt::bed::watch_sites(false);
  REQUIRE(sites.size() == 3);  // one wait, two barriers
  for (const simt::bed::Site& site : sites) {
    if (kSanitized && site.kind == simt::bed::Kind::barrier)
      continue;  // without the watch some orders hide that it is missing
    CAPTURE(site.text());
    CHECK(verdict([&] {
            simt::bed::disable(site);
            return is_copied();
          }) != "right");
  }
}
