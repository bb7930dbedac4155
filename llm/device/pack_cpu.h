// Copies of pieces of a matrix in the order in which the microkernel reads them: panels of A of up to kRows rows,
// panels of B of kColumns columns, both with the panel's entries side by side at each k.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "llm/base/simd.h"
#include "llm/device/microkernel_cpu.h"

namespace llm::microkernel {

namespace detail {

// A full store is cheaper than a partial one. What it writes too much belongs to the next k, which is stored
// afterwards; at the end of the panel there is no next k. Wider panels take several stores a k, of which the last must
// be exact.
template <int Width, int Group>
inline void store_group(float* panel, int64_t k, int64_t depth, Vec v) {
  constexpr int kCount = std::min(kLanes, Width - Group * kLanes);
  float* to = panel + k * Width + Group * kLanes;
  if (kCount == kLanes || (Width < kLanes && k * Width + kLanes <= depth * Width))
    simd::store(to, v);
  else
    simd::store_part(to, v, kCount);
}

template <int Width, int Group>
inline void transpose_group(const float* in, int64_t stride, int64_t count, int64_t k, int64_t depth, float* panel,
                            Vec scale) {
  const int64_t columns = std::min<int64_t>(kLanes, depth - k);
  Vec block[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const int row = Group * kLanes + i;
    const float* from = in + row * stride + k;
    block[i] = row >= Width || row >= count ? Vec{}
               : columns == kLanes          ? simd::load(from)
                                            : simd::load_part(from, columns);
  }
  simd::transpose(block);
  if (columns == kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store_group<Width, Group>(panel, k + i, depth, block[i] * scale);
  } else {
    for (int i = 0; i < columns; ++i) store_group<Width, Group>(panel, k + i, depth, block[i] * scale);
  }
}

template <int Width, int... Groups>
void pack_transposing(const float* in, int64_t stride, int64_t count, int64_t depth, float* panel, float scale,
                      std::integer_sequence<int, Groups...>) {
  for (int64_t k = 0; k < depth; k += kLanes)
    (transpose_group<Width, Groups>(in, stride, count, k, depth, panel, simd::broadcast(scale)), ...);
}

template <int Width, int... Groups>
void pack_copying(const float* in, int64_t stride, int64_t count, int64_t depth, float* panel, float scale,
                  std::integer_sequence<int, Groups...>) {
  const auto group = [count](const float* from, int offset) {
    const int wanted = std::min(kLanes, Width - offset);
    const int64_t present = count >= Width ? wanted : count - offset;
    if (present >= kLanes) return simd::load(from + offset);
    return present > 0 ? simd::load_part(from + offset, present) : Vec{};
  };
  for (int64_t k = 0; k < depth; ++k)
    (store_group<Width, Groups>(panel, k, depth, group(in + k * stride, Groups * kLanes) * simd::broadcast(scale)),
     ...);
}

template <int Width>
using Groups = std::make_integer_sequence<int, (Width + kLanes - 1) / kLanes>;

}  // namespace detail

// Fills panel[k * Width + i] for k < depth and i < Width, with zeros for i >= count, from a piece of a matrix times
// `scale`: in[i * stride + k] when `along_k` (the entries of one i are neighbours in memory), else in[k * stride + i].
template <int Width>
void pack_panel(bool along_k, const float* in, int64_t stride, int64_t count, int64_t depth, float* panel,
                float scale = 1.0f) {
  if (along_k)
    detail::pack_transposing<Width>(in, stride, count, depth, panel, scale, detail::Groups<Width>{});
  else
    detail::pack_copying<Width>(in, stride, count, depth, panel, scale, detail::Groups<Width>{});
}

inline void pack_columns(bool along_k, const float* in, int64_t stride, int64_t count, int64_t depth, float* panel,
                         float scale = 1.0f) {
  pack_panel<kColumns>(along_k, in, stride, count, depth, panel, scale);
}

namespace detail {
using PackRows = void (*)(bool, const float*, int64_t, int64_t, int64_t, float*, float);
template <int... I>
constexpr std::array<PackRows, sizeof...(I)> row_packers(std::integer_sequence<int, I...>) {
  return {&pack_panel<I + 1>...};
}
inline constexpr auto kPackRows = row_packers(std::make_integer_sequence<int, kRows>{});
}  // namespace detail

// A panel exactly `rows` <= kRows wide.
inline void pack_rows(bool along_k, const float* in, int64_t stride, int64_t rows, int64_t depth, float* panel,
                      float scale = 1.0f) {
  detail::kPackRows[rows - 1](along_k, in, stride, rows, depth, panel, scale);
}

}  // namespace llm::microkernel
