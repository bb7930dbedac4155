// Weights in 8 or 4 bits: each block of 32 values has one scale in fp16, and a value is the scale times a whole number. A
// block holds the same numbers here as in GGUF's Q8_0 (whole numbers from -127 to 127) and Q4_0 (from -8 to 7). How the
// blocks lie in a file is the business of llm/model/gguf.h, how they lie in memory that of packed_panels.h and packed_rows.h.
//
// A scale has 11 bits and a whole number at most 8, so their product is exact in fp32.
#pragma once
#include <cstdint>

#include "llm/base/shape.h"

namespace llm {

inline constexpr int64_t kBlockValues = 32;

// Of a quantized type.
constexpr int bits_of_number(DType dtype) { return dtype == DType::int8 || dtype == DType::w8a8 ? 8 : 4; }

struct QuantizedBlock {
  uint16_t scale;  // fp16
  int8_t numbers[kBlockValues];
};

// The scale maps the largest absolute value to 127.
QuantizedBlock quantize_to_8_bits(const float* values);
// The scale is the one of a few candidates that gives the least sum of squared errors. A block that is already of this
// form stays as it is.
QuantizedBlock quantize_to_4_bits(const float* values);

// Rounds a row of weights to what it stands for in this type: fp32, bf16 or a quantized one.
void round_row(DType dtype, float* values, int64_t columns);

}  // namespace llm
