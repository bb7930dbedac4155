#include "llm/base/packed_panels.h"

#include <algorithm>
#include <cstring>

#include "llm/base/bf16.h"
#include "llm/base/fp16.h"

namespace llm {
namespace {

using simd::kLanes;

constexpr int64_t kScaleBytes = 2 * kPanelColumns;

// The place of a number of 4 bits in a block of 32 k.
struct Nibble {
  int64_t word;
  int shift;
  Nibble(int64_t k, int64_t column)
      : word((k % 4 * 2 + column / kLanes) * kLanes + column % kLanes), shift(static_cast<int>(k / 4) * 4) {}
};

// The place of a number of 8 bits, behind the scales.
int64_t place_of_byte(DType dtype, int64_t k, int64_t column) {
  return dtype == DType::int8 ? k * kPanelColumns + column : (k % 16 * kPanelColumns + column) * 2 + k / 16;
}

void pack_quantized(DType dtype, const float* rows, int64_t stride, int64_t count, int64_t k, std::byte* panel) {
  const bool is_8 = bits_of_number(dtype) == 8;
  const int64_t block_bytes = quantized_block_bytes(bits_of_number(dtype));
  for (int64_t first = 0; first < k; first += kBlockValues, panel += block_bytes) {
    uint16_t scales[kPanelColumns];
    uint32_t nibbles[kBlockValues / 8 * kPanelColumns] = {};
    for (int64_t column = 0; column < kPanelColumns; ++column) {
      float values[kBlockValues] = {};
      if (column < count) std::copy_n(rows + column * stride + first, std::min(kBlockValues, k - first), values);
      const QuantizedBlock block = is_8 ? quantize_to_8_bits(values) : quantize_to_4_bits(values);
      scales[column] = block.scale;
      for (int64_t i = 0; i < kBlockValues; ++i) {
        if (is_8) panel[kScaleBytes + place_of_byte(dtype, i, column)] = static_cast<std::byte>(block.numbers[i]);
        const Nibble at(i, column);
        nibbles[at.word] |= static_cast<uint32_t>(block.numbers[i] + 8) << at.shift;
      }
    }
    std::memcpy(panel, scales, sizeof scales);
    if (!is_8) std::memcpy(panel + kScaleBytes, nibbles, sizeof nibbles);
  }
}

void unpack_quantized(DType dtype, const std::byte* panel, int64_t column, int64_t k, float* values) {
  for (int64_t i = 0; i < k; ++i) {
    const std::byte* const block = panel + i / kBlockValues * quantized_block_bytes(bits_of_number(dtype));
    const int64_t of_block = i % kBlockValues;
    uint16_t scale;
    std::memcpy(&scale, block + column * 2, 2);
    int number = 0;
    if (bits_of_number(dtype) == 8) {
      number = static_cast<int8_t>(block[kScaleBytes + place_of_byte(dtype, of_block, column)]);
    } else {
      const Nibble at(of_block, column);
      uint32_t word;
      std::memcpy(&word, block + kScaleBytes + at.word * 4, 4);
      number = static_cast<int>(word >> at.shift & 15u) - 8;
    }
    values[i] = float_of_half(scale) * static_cast<float>(number);
  }
}

// The place of a value in bf16.
int64_t place_of_half(int64_t k, int64_t column) { return k * kPanelColumns + column % kLanes * 2 + column / kLanes; }

}  // namespace

int64_t packed_panels_bytes(DType dtype, int64_t n, int64_t k) {
  return ceil_div(n, kPanelColumns) * panel_bytes(dtype, k);
}

void pack_panel(DType dtype, const float* rows, int64_t stride, int64_t count, int64_t k, std::byte* panel) {
  if (is_quantized(dtype)) return pack_quantized(dtype, rows, stride, count, k, panel);
  if (dtype != DType::bf16 && dtype != DType::fp32) fail("no weights are packed as ", name_of(dtype));
  for (int64_t column = 0; column < kPanelColumns; ++column)
    for (int64_t i = 0; i < k; ++i) {
      const float value = column < count ? rows[column * stride + i] : 0.0f;
      if (dtype == DType::bf16)
        reinterpret_cast<bf16*>(panel)[place_of_half(i, column)] = nearest_bf16(value);
      else
        reinterpret_cast<float*>(panel)[i * kPanelColumns + column] = value;
    }
}

void unpack_panel_row(DType dtype, const std::byte* panels, int64_t row, int64_t k, float* values) {
  const std::byte* const panel = panels + row / kPanelColumns * panel_bytes(dtype, k);
  const int64_t column = row % kPanelColumns;
  if (is_quantized(dtype)) return unpack_quantized(dtype, panel, column, k, values);
  if (dtype != DType::bf16 && dtype != DType::fp32) fail("no weights are packed as ", name_of(dtype));
  for (int64_t i = 0; i < k; ++i)
    values[i] = dtype == DType::bf16 ? to_float(reinterpret_cast<const bf16*>(panel)[place_of_half(i, column)])
                                     : reinterpret_cast<const float*>(panel)[i * kPanelColumns + column];
}

}  // namespace llm
