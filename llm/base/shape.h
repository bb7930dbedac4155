// The type of a tensor's elements and the extent of its dimensions, row-major.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "llm/base/error.h"

namespace llm {

// int8, int4: values in blocks of 32 with one scale (llm/base/quantize_blocks.h). w8a8, w4a8: the same weights, for products
// that round activations to 8 bits, too (llm/device/gemm_rounded_cpu.h).
enum class DType : uint8_t { fp32, bf16, e4m3, e5m2, int32, int8, int4, w8a8, w4a8 };

inline bool is_fp8(DType dtype) { return dtype == DType::e4m3 || dtype == DType::e5m2; }
inline bool rounds_activations(DType dtype) { return dtype == DType::w8a8 || dtype == DType::w4a8; }
inline bool is_quantized(DType dtype) {
  return dtype == DType::int8 || dtype == DType::int4 || rounds_activations(dtype);
}
// Of an element; not of a quantized one, which has no size of its own.
inline size_t size_of(DType dtype) { return is_fp8(dtype) ? 1 : dtype == DType::bf16 ? 2 : 4; }
// Bytes of a row that lies by itself, with its scales (packed_rows.cpp).
int64_t quantized_row_bytes(DType dtype, int64_t columns);
// Bytes of a matrix (n, k) of weights as packed panels (packed_panels.cpp).
int64_t packed_panels_bytes(DType dtype, int64_t n, int64_t k);

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::fp32: return "fp32";
    case DType::bf16: return "bf16";
    case DType::e4m3: return "e4m3";
    case DType::e5m2: return "e5m2";
    case DType::int32: return "int32";
    case DType::int8: return "int8";
    case DType::int4: return "int4";
    case DType::w8a8: return "w8a8";
    case DType::w4a8: return "w4a8";
  }
  return "?";
}

// Up to four dimensions; the last one is contiguous. A shape knows no strides: those are a tensor's
// (llm/graph/graph.h). The constructor throws Error for more dimensions or a negative one.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    if (dims.size() > dims_.size()) fail("a shape has at most 4 dimensions, not ", dims.size());
    for (int64_t d : dims) {
      if (d < 0) fail("a dimension cannot be negative: ", d);
      dims_[static_cast<size_t>(rank_++)] = d;
    }
  }

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  int64_t last() const { return rank_ ? (*this)[rank_ - 1] : 1; }
  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= (*this)[i];
    return n;
  }
  // The number of rows when all dimensions but the last are seen as one: elements / last.
  int64_t rows() const { return rank_ == 0 ? 1 : (last() == 0 ? 0 : elements() / last()); }
  bool operator==(const Shape&) const = default;

  std::string text() const {
    std::string s = "(";
    for (int i = 0; i < rank_; ++i) s += (i ? ", " : "") + std::to_string((*this)[i]);
    return s + ")";
  }

 private:
  std::array<int64_t, 4> dims_{};
  int rank_ = 0;
};

}  // namespace llm
