#include "llm/graph/staging.h"

#include <algorithm>
#include <utility>

#include "llm/base/packed_rows.h"

namespace llm {

Staging::~Staging() = default;

float* Staging::in_place(const std::string& name) const {
  if ((piece_of_ && piece_of_(name).count >= 0) || layout_.dtype(name) != DType::fp32) return nullptr;
  return reinterpret_cast<float*>(arena_.on_host(layout_.offset(name)));
}

Piece Staging::piece_of(const std::string& name, size_t elements) const {
  const Piece piece = piece_of_ ? piece_of_(name) : Piece{};
  return piece.count < 0 ? Piece{0, static_cast<int64_t>(elements)} : piece;
}

float* Staging::room(const std::string& name, int64_t elements) {
  flush();
  if (float* values = in_place(name)) return values;
  pending_ = name;
  floats_.resize(static_cast<size_t>(elements));
  return floats_.data();
}

void Staging::flush() {
  if (pending_.empty()) return;
  const std::string name = std::exchange(pending_, "");
  const Piece piece = piece_of(name, floats_.size());
  if (piece.count == 0) return;
  const auto from = floats_.begin() + piece.first, to = from + piece.count;
  if (const DType dtype = layout_.dtype(name); is_quantized(dtype)) {
    const int64_t columns = layout_.shape(name).last(), bytes = packed_row_bytes(dtype, columns);
    const int64_t rows = piece.count / columns;
    packed_.resize(static_cast<size_t>(rows * bytes));
    arena_.device().threads().for_blocks(rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) pack_row(dtype, &*from + i * columns, columns, packed_.data() + i * bytes);
    });
    arena_.write(layout_.offset(name), packed_.data(), packed_.size());
  } else if (dtype == DType::bf16) {
    rounded_.resize(static_cast<size_t>(piece.count));
    std::transform(from, to, rounded_.begin(), nearest_bf16);
    arena_.write(layout_.offset(name), rounded_.data(), rounded_.size() * sizeof(bf16));
  } else {
    arena_.write(layout_.offset(name), &*from, static_cast<size_t>(piece.count) * sizeof(float));
  }
}

float* Staging::values(const std::string& name, int64_t elements) {
  flush();
  if (float* values = in_place(name)) return values;
  floats_.resize(static_cast<size_t>(elements));
  const Piece piece = piece_of(name, floats_.size());
  if (piece.count == 0) return floats_.data();
  if (is_quantized(layout_.dtype(name))) fail("the tensor ", name, " is quantized, and its values are not given back");
  const auto to = floats_.begin() + piece.first;
  if (layout_.dtype(name) == DType::bf16) {
    rounded_.resize(static_cast<size_t>(piece.count));
    arena_.read(layout_.offset(name), rounded_.data(), rounded_.size() * sizeof(bf16));
    std::transform(rounded_.begin(), rounded_.end(), to, [](bf16 x) { return to_float(x); });
  } else {
    arena_.read(layout_.offset(name), &*to, static_cast<size_t>(piece.count) * sizeof(float));
  }
  return floats_.data();
}

}  // namespace llm
