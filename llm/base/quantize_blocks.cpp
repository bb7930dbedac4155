#include "llm/base/quantize_blocks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "llm/base/fp16.h"

namespace llm {
namespace {

constexpr float kLargestHalf = 65504;

// The nearest fp16 that is finite: a value that large is clipped.
uint16_t finite_half(float x) { return nearest_half(std::clamp(x, -kLargestHalf, kLargestHalf)); }

// Rounds the values to whole multiples of the scale, which lie in [low, high].
void divide(const float* values, float scale, float low, float high, int8_t* numbers) {
  const float inverse = scale == 0 ? 0.0f : 1 / scale;
  for (int64_t i = 0; i < kBlockValues; ++i)
    numbers[i] = static_cast<int8_t>(std::max(low, std::min(high, std::nearbyint(values[i] * inverse))));  // NaN: high
}

double squared_error(const float* values, float scale, const int8_t* numbers) {
  double sum = 0;
  for (int64_t i = 0; i < kBlockValues; ++i) {
    const double error = static_cast<double>(values[i]) - static_cast<double>(scale) * numbers[i];
    sum += error * error;
  }
  return sum;
}

}  // namespace

QuantizedBlock quantize_to_8_bits(const float* values) {
  float largest = 0;
  for (int64_t i = 0; i < kBlockValues; ++i) largest = std::max(largest, std::fabs(values[i]));
  QuantizedBlock block{finite_half(largest / 127), {}};
  divide(values, float_of_half(block.scale), -127, 127, block.numbers);
  return block;
}

QuantizedBlock quantize_to_4_bits(const float* values) {
  float largest = 0;  // in size; with its sign
  for (int64_t i = 0; i < kBlockValues; ++i)
    if (std::fabs(values[i]) > std::fabs(largest)) largest = values[i];
  QuantizedBlock best{};
  double least = std::numeric_limits<double>::infinity();
  // What the largest value is in units of the scale: it becomes -8, 7 or -7. Where that clips it, the others are finer.
  for (const float number : {-8.0f, 7.0f, -7.0f, -7.5f, -8.5f, -9.0f, -9.5f, -6.7f, 6.7f, 7.5f, 8.0f}) {
    QuantizedBlock block{finite_half(largest / number), {}};
    const float scale = float_of_half(block.scale);
    divide(values, scale, -8, 7, block.numbers);
    const double error = squared_error(values, scale, block.numbers);
    if (error < least) least = error, best = block;
  }
  return best;
}

void round_row(DType dtype, float* values, int64_t columns) {
  if (dtype == DType::fp32) return;
  if (dtype == DType::bf16) {
    std::transform(values, values + columns, values, [](float x) { return to_float(nearest_bf16(x)); });
    return;
  }
  if (!is_quantized(dtype)) fail("no weights are rounded to ", name_of(dtype));
  for (int64_t first = 0; first < columns; first += kBlockValues) {
    const int64_t count = std::min(kBlockValues, columns - first);
    float padded[kBlockValues] = {};
    std::copy_n(values + first, count, padded);
    const QuantizedBlock block = bits_of_number(dtype) == 8 ? quantize_to_8_bits(padded) : quantize_to_4_bits(padded);
    for (int64_t i = 0; i < count; ++i)
      values[first + i] = float_of_half(block.scale) * static_cast<float>(block.numbers[i]);
  }
}

}  // namespace llm
