// A matrix of weights (rows, columns) in bf16, 8 or 4 bits, as products of few rows read it: row after row, each
// packed_row_bytes() long.
//   bf16: the values.
//   int8: the whole numbers of its blocks (quantize_blocks.h), then the blocks' scales.
//   int4: groups of 8 vectors of simd::kLanes values. Bits [4 j, 4 j + 4) of word i of a group hold 8 + the number of
//     value j kLanes + i, so that one shift gives a vector. Then the blocks' scales.
// Rows in 8 and 4 bits are filled up with zeros, and begin at multiples of 16 bytes. The form is that of the CPU which
// runs the program, and never goes into a file.
#pragma once
#include <cstddef>
#include <cstdint>

#include "llm/base/quantize_blocks.h"
#include "llm/base/rounding.h"
#include "llm/base/shape.h"
#include "llm/base/simd.h"

namespace llm {

inline constexpr int64_t kGroupValues = 8 * simd::kLanes;

inline int64_t packed_columns(DType dtype, int64_t columns) {
  return round_up(columns, dtype == DType::int4 ? std::max<int64_t>(kGroupValues, kBlockValues) : kBlockValues);
}
// Where the scales of a row begin, in bytes.
inline int64_t packed_scales_at(DType dtype, int64_t columns) {
  return packed_columns(dtype, columns) / (dtype == DType::int4 ? 2 : 1);
}
inline int64_t packed_row_bytes(DType dtype, int64_t columns) {
  if (!is_quantized(dtype)) return columns * static_cast<int64_t>(size_of(dtype));
  return quantized_row_bytes(dtype, columns);
}

// Rounds a row of `columns` values to `dtype`.
void pack_row(DType dtype, const float* values, int64_t columns, std::byte* row);
// The values that a packed row stands for.
void unpack_row(DType dtype, const std::byte* row, int64_t columns, float* values);

}  // namespace llm
