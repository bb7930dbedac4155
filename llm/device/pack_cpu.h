// Copies pieces of a matrix into the order in which the microkernel reads its B: panels of kColumns columns, where the
// entries of one k are contiguous.
#pragma once
#include <algorithm>
#include <cstdint>

#include "llm/base/narrow_vectors.h"
#include "llm/base/simd.h"
#include "llm/device/microkernel_cpu.h"

namespace llm::microkernel {

namespace detail {

// kLanes columns of a panel, of which the first `count` exist. Here the entries of one column are contiguous in memory;
// in pack_copying the entries of one k are.
template <class T>
void pack_transposing(const T* in, int64_t stride, int64_t count, int64_t depth, float* panel, Vec scale) {
  for (int64_t k = 0; k < depth; k += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, depth - k);
    Vec block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const T* from = in + i * stride + k;
      block[i] = i >= count ? Vec{} : lanes == kLanes ? simd::load(from) : simd::load_part(from, lanes);
    }
    simd::transpose(block);
    float* to = panel + k * kColumns;
    if (lanes == kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) simd::store(to + i * kColumns, block[i] * scale);
    } else {
      for (int i = 0; i < lanes; ++i) simd::store(to + i * kColumns, block[i] * scale);
    }
  }
}

template <class T>
void pack_copying(const T* in, int64_t stride, int64_t count, int64_t depth, float* panel, Vec scale) {
  for (int64_t k = 0; k < depth; ++k) {
    const T* from = in + k * stride;
    const Vec v = count >= kLanes ? simd::load(from) : count > 0 ? simd::load_part(from, count) : Vec{};
    simd::store(panel + k * kColumns, v * scale);
  }
}

}  // namespace detail

// Fills panel[k * kColumns + i] for k < depth and i < kColumns, with zeros for i >= count, with `scale` times an entry
// of the matrix in fp32 or bf16: in[i * stride + k] with `along_k` (the entries of one i are contiguous), otherwise
// in[k * stride + i].
template <class T>
void pack_columns(bool along_k, const T* in, int64_t stride, int64_t count, int64_t depth, float* panel,
                  float scale = 1.0f) {
  for (int64_t column = 0; column < kColumns; column += kLanes) {
    const T* from = in + column * (along_k ? stride : 1);
    if (along_k)
      detail::pack_transposing(from, stride, count - column, depth, panel + column, simd::broadcast(scale));
    else
      detail::pack_copying(from, stride, count - column, depth, panel + column, simd::broadcast(scale));
  }
}

}  // namespace llm::microkernel
