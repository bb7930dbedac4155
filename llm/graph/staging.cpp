#include "llm/graph/staging.h"

#include <algorithm>
#include <utility>

#include "llm/base/packed_panels.h"

namespace llm {

Staging::~Staging() = default;

float* Staging::in_place(const std::string& name) const {
  if ((piece_of_ && piece_of_(name).count >= 0) || layout_.dtype(name) != DType::fp32 || layout_.panel_rows(name) > 0)
    return nullptr;
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
  const DType dtype = layout_.dtype(name);
  if (const int64_t rows = layout_.panel_rows(name); rows > 0) {
    const int64_t columns = layout_.shape(name).last(), bytes = panel_bytes(dtype, columns);
    const int64_t panels = ceil_div(rows, kPanelColumns);  // of each product's rows
    auto* const to_panels = arena_.on_host(layout_.offset(name));
    arena_.device().threads().for_items(piece.count / (rows * columns) * panels, [&](int64_t i, int) {
      const int64_t first = i % panels * kPanelColumns;
      pack_panel(dtype, &*from + (i / panels * rows + first) * columns, columns, std::min(kPanelColumns, rows - first),
                 columns, to_panels + i * bytes);
    });
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
  if (layout_.panel_rows(name) > 0) fail("the tensor ", name, " lies as panels, and its values are not given back");
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
