// Rows of values in fp32, bf16 or 8 bits, each packed_row_bytes() long: keys and values that wait in a cache.
//   bf16: the values.
//   int8: the whole numbers of its blocks (quantize_blocks.h), then the blocks' scales; filled up with zeros.
#pragma once
#include <cstddef>
#include <cstdint>

#include "llm/base/quantize_blocks.h"
#include "llm/base/rounding.h"
#include "llm/base/shape.h"

namespace llm {

// Where the scales of a row in 8 bits begin, in bytes.
inline int64_t packed_scales_at(int64_t columns) { return round_up(columns, kBlockValues); }
inline int64_t packed_row_bytes(DType dtype, int64_t columns) {
  if (!is_quantized(dtype)) return columns * static_cast<int64_t>(size_of(dtype));
  return quantized_row_bytes(dtype, columns);
}

// Rounds a row of `columns` values to `dtype`. Throws Error for other types than these three, as the next one does.
void pack_row(DType dtype, const float* values, int64_t columns, std::byte* row);
// The values that a packed row stands for.
void unpack_row(DType dtype, const std::byte* row, int64_t columns, float* values);

}  // namespace llm
