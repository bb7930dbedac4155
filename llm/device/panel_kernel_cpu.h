// The inner loop of products of few rows with packed panels: rows of A times one or more panels in one stage of k, with the bits
// of the microkernel (microkernel_cpu.h): sum = 0; sum += a(k) b(k) for k = 0, 1, ...; then C = sum or C = addend + sum.
#pragma once
#include <array>

#include "llm/device/microkernel_cpu.h"
#include "llm/device/panel_readers_cpu.h"

namespace llm::panels {

struct Stage {
  int64_t k;       // steps
  const float* a;  // (rows, k)
  int64_t a_stride;
  const std::byte* at;  // the first panel's weights of this stage
  int64_t apart;        // bytes from one panel to the next one
  float* c;             // the first panel's columns of C
  int64_t c_stride, c_apart;
  const float* addend;  // (rows, columns), may be C; null: none
  int64_t addend_stride;
  int64_t columns;  // of the last panel; the others are full
};

// `count` steps as floats (count, kPanelColumns).
template <class Reader>
void widen(const std::byte* at, int64_t count, float* to) {
  constexpr int kPart = Reader::kPart;
  const auto widen_block = [&](auto is_whole) __attribute__((always_inline)) {
    const typename Reader::Block block(at);
    for_constants<kBlockValues / kPart>([&](auto j) __attribute__((always_inline)) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const auto part = block.template part<j>(half);
        for_constants<kPart>([&](auto i) __attribute__((always_inline)) {
          constexpr int k = j * kPart + i;
          if (is_whole || k < count) simd::store(to + k * kPanelColumns + half * kLanes, part.template vector<i>());
        });
      }
    });
  };
  for (; count >= kBlockValues; count -= kBlockValues, at += Reader::kBlockBytes, to += kBlockValues * kPanelColumns)
    widen_block(std::true_type{});
  if (count > 0) widen_block(std::false_type{});
}

template <class Reader, int Panels, int... P>
std::array<typename Reader::Block, Panels> blocks_at(const std::byte* at, int64_t apart,
                                                     std::integer_sequence<int, P...>) {
  return {typename Reader::Block(at + P * apart)...};
}

template <class Reader, int Rows, int Panels>
void multiply(const Stage& s) {
  Vec sum[Rows][Panels][2];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p) sum[i][p][0] = sum[i][p][1] = Vec{};
  const float* a[Rows];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) a[i] = s.a + i * s.a_stride;
  const std::byte* at = s.at;
  int64_t left = s.k;
  constexpr int kPart = Reader::kPart;
  for (; left >= kBlockValues; left -= kBlockValues) {
    const auto blocks = blocks_at<Reader, Panels>(at, s.apart, std::make_integer_sequence<int, Panels>{});
    for_constants<kBlockValues / kPart>([&](auto j) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int p = 0; p < Panels; ++p)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const auto part = blocks[static_cast<size_t>(p)].template part<j>(half);
          for_constants<kPart>([&](auto k) __attribute__((always_inline)) {
            const Vec weights = part.template vector<k>();
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i)
              sum[i][p][half] =
                  microkernel::multiply_add(simd::broadcast(a[i][j * kPart + k]), weights, sum[i][p][half]);
          });
        }
    });
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) a[i] += kBlockValues;
    at += Reader::kBlockBytes;
  }
  if (left > 0) {
    float last[Panels][kBlockValues * kPanelColumns];
    for (int p = 0; p < Panels; ++p) widen<Reader>(at + p * s.apart, left, last[p]);
    for (int64_t k = 0; k < left; ++k)
#pragma GCC unroll 4
      for (int p = 0; p < Panels; ++p)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const Vec weights = simd::load(last[p] + k * kPanelColumns + half * kLanes);
#pragma GCC unroll 8
          for (int i = 0; i < Rows; ++i)
            sum[i][p][half] = microkernel::multiply_add(simd::broadcast(a[i][k]), weights, sum[i][p][half]);
        }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int64_t column = p * s.c_apart + half * kLanes;
        float* const c = s.c + i * s.c_stride + column;
        const float* const addend = s.addend ? s.addend + i * s.addend_stride + column : nullptr;
        const int64_t count = p + 1 < Panels ? kLanes : s.columns - half * kLanes;
        if (count >= kLanes)
          simd::store(c, addend ? simd::load(addend) + sum[i][p][half] : sum[i][p][half]);
        else if (count > 0)
          simd::store_part(c, addend ? simd::load_part(addend, count) + sum[i][p][half] : sum[i][p][half], count);
      }
}

}  // namespace llm::panels
