#include "llm/base/packed_rows.h"

#include <algorithm>
#include <cstring>

#include "llm/base/bf16.h"
#include "llm/base/fp16.h"

namespace llm {
namespace {

// The place of a value of a row in 4 bits.
struct Nibble {
  int64_t word;
  int shift;
  explicit Nibble(int64_t column)
      : word(column / kGroupValues * simd::kLanes + column % simd::kLanes),
        shift(static_cast<int>(column % kGroupValues / simd::kLanes) * 4) {}
};

void pack_blocks(DType dtype, const float* values, int64_t columns, std::byte* row) {
  std::memset(row, 0, static_cast<size_t>(packed_row_bytes(dtype, columns)));
  std::byte* const scales = row + packed_scales_at(dtype, columns);
  for (int64_t first = 0; first < packed_columns(dtype, columns); first += kBlockValues) {
    float padded[kBlockValues] = {};
    std::copy_n(values + std::min(first, columns), std::clamp<int64_t>(columns - first, 0, kBlockValues), padded);
    const QuantizedBlock block = dtype == DType::int8 ? quantize_to_8_bits(padded) : quantize_to_4_bits(padded);
    std::memcpy(scales + first / kBlockValues * 2, &block.scale, 2);
    if (dtype == DType::int8) {
      std::memcpy(row + first, block.numbers, kBlockValues);
      continue;
    }
    for (int64_t i = 0; i < kBlockValues; ++i) {
      const Nibble at(first + i);
      uint32_t word;
      std::memcpy(&word, row + at.word * 4, 4);
      word |= static_cast<uint32_t>(block.numbers[i] + 8) << at.shift;
      std::memcpy(row + at.word * 4, &word, 4);
    }
  }
}

}  // namespace

int64_t quantized_row_bytes(DType dtype, int64_t columns) {
  return round_up(packed_scales_at(dtype, columns) + packed_columns(dtype, columns) / kBlockValues * 2, 16);
}

void pack_row(DType dtype, const float* values, int64_t columns, std::byte* row) {
  if (is_quantized(dtype)) return pack_blocks(dtype, values, columns, row);
  if (dtype == DType::bf16) {
    auto* const to = reinterpret_cast<bf16*>(row);
    std::transform(values, values + columns, to, nearest_bf16);
    return;
  }
  if (dtype != DType::fp32) fail("no rows of weights are packed as ", name_of(dtype));
  std::memcpy(row, values, static_cast<size_t>(columns) * sizeof(float));
}

void unpack_row(DType dtype, const std::byte* row, int64_t columns, float* values) {
  if (dtype == DType::fp32) {
    std::memcpy(values, row, static_cast<size_t>(columns) * sizeof(float));
    return;
  }
  if (dtype == DType::bf16) {
    const auto* const from = reinterpret_cast<const bf16*>(row);
    std::transform(from, from + columns, values, [](bf16 x) { return to_float(x); });
    return;
  }
  if (!is_quantized(dtype)) fail("no rows of weights are packed as ", name_of(dtype));
  const std::byte* const scales = row + packed_scales_at(dtype, columns);
  for (int64_t i = 0; i < columns; ++i) {
    uint16_t scale;
    std::memcpy(&scale, scales + i / kBlockValues * 2, 2);
    int number = 0;
    if (dtype == DType::int8) {
      number = static_cast<int8_t>(row[i]);
    } else {
      const Nibble at(i);
      uint32_t word;
      std::memcpy(&word, row + at.word * 4, 4);
      number = static_cast<int>(word >> at.shift & 15u) - 8;
    }
    values[i] = float_of_half(scale) * static_cast<float>(number);
  }
}

}  // namespace llm
