#include "llm/base/packed_rows.h"

#include <algorithm>
#include <cstring>

#include "llm/base/bf16.h"
#include "llm/base/fp16.h"

namespace llm {

int64_t quantized_row_bytes(DType dtype, int64_t columns) {
  if (dtype != DType::int8) fail("no rows are packed as ", name_of(dtype));
  return round_up(packed_scales_at(columns) + ceil_div(columns, kBlockValues) * 2, 16);
}

void pack_row(DType dtype, const float* values, int64_t columns, std::byte* row) {
  if (dtype == DType::bf16) {
    std::transform(values, values + columns, reinterpret_cast<bf16*>(row), nearest_bf16);
  } else if (dtype == DType::int8) {
    std::byte* const scales = row + packed_scales_at(columns);
    for (int64_t first = 0; first < columns; first += kBlockValues) {
      float padded[kBlockValues] = {};
      std::copy_n(values + first, std::min(kBlockValues, columns - first), padded);
      const QuantizedBlock block = quantize_to_8_bits(padded);
      std::memcpy(scales + first / kBlockValues * 2, &block.scale, 2);
      std::memcpy(row + first, block.numbers, kBlockValues);
    }
  } else if (dtype == DType::fp32) {
    std::memcpy(row, values, static_cast<size_t>(columns) * sizeof(float));
  } else {
    fail("no rows are packed as ", name_of(dtype));
  }
}

void unpack_row(DType dtype, const std::byte* row, int64_t columns, float* values) {
  if (dtype == DType::bf16) {
    const auto* const from = reinterpret_cast<const bf16*>(row);
    std::transform(from, from + columns, values, [](bf16 x) { return to_float(x); });
  } else if (dtype == DType::int8) {
    const std::byte* const scales = row + packed_scales_at(columns);
    for (int64_t i = 0; i < columns; ++i) {
      uint16_t scale;
      std::memcpy(&scale, scales + i / kBlockValues * 2, 2);
      values[i] = float_of_half(scale) * static_cast<float>(static_cast<int8_t>(row[i]));
    }
  } else if (dtype == DType::fp32) {
    std::memcpy(values, row, static_cast<size_t>(columns) * sizeof(float));
  } else {
    fail("no rows are packed as ", name_of(dtype));
  }
}

}  // namespace llm
