// A matrix of weights W (n, k) in fp32, bf16, 8 or 4 bits, as the CPU's products y = x W^T read it. kPanelColumns rows of W,
// which are columns of y, lie together in a panel, k after k, so that a product of any number of rows of x walks memory
// from front to back:
//   fp32: for each k the panel's values.
//   bf16: for each k kLanes words: the lower half of word c is column c, the upper half is column kLanes + c.
//   int8: blocks of 32 k (quantize_blocks.h): the scales of the columns in fp16, then for each k the columns' numbers.
//   int4: the same scales, then four groups of two vectors of kLanes words, one for each half of the columns: bits
//     [4 j, 4 j + 4) of a word of group g hold 8 and the number of k = 4 j + g of the block.
//   w8a8: the scales, then for each p < 16 the numbers of k = p and 16 + p of each column, side by side. w4a8: as int4.
// The last panel is filled up with zeros, and so is the last block of k. The form is that of the CPU which runs the program,
// and never goes into a file.
#pragma once
#include <cstddef>
#include <cstdint>

#include "llm/base/quantize_blocks.h"
#include "llm/base/rounding.h"
#include "llm/base/shape.h"
#include "llm/base/simd.h"

namespace llm {

inline constexpr int64_t kPanelColumns = 2 * simd::kLanes;

constexpr int64_t quantized_block_bytes(int bits) { return kPanelColumns * (2 + kBlockValues * bits / 8); }

inline int64_t panel_bytes(DType dtype, int64_t k) {
  if (is_quantized(dtype)) return ceil_div(k, kBlockValues) * quantized_block_bytes(bits_of_number(dtype));
  return kPanelColumns * k * static_cast<int64_t>(size_of(dtype));
}

// Rounds `count` <= kPanelColumns rows of W, `stride` floats apart, to `dtype` and packs them.
void pack_panel(DType dtype, const float* rows, int64_t stride, int64_t count, int64_t k, std::byte* panel);
// The k values that row `row` of W stands for.
void unpack_panel_row(DType dtype, const std::byte* panels, int64_t row, int64_t k, float* values);

}  // namespace llm
