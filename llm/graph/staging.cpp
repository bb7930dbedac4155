#include "llm/graph/staging.h"

#include <algorithm>

namespace llm {

Staging::~Staging() = default;

float* Staging::in_place(const std::string& name) const {
  std::byte* const memory = arena_.on_host();
  if (!memory || layout_.dtype(name) != DType::fp32) return nullptr;
  return reinterpret_cast<float*>(memory + layout_.offset(name));
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
  if (layout_.dtype(pending_) == DType::bf16) {
    rounded_.resize(floats_.size());
    std::transform(floats_.begin(), floats_.end(), rounded_.begin(), nearest_bf16);
    arena_.write(layout_.offset(pending_), rounded_.data(), rounded_.size() * sizeof(bf16));
  } else {
    arena_.write(layout_.offset(pending_), floats_.data(), floats_.size() * sizeof(float));
  }
  pending_.clear();
}

const float* Staging::values(const std::string& name, int64_t elements) {
  flush();
  if (const float* values = in_place(name)) return values;
  floats_.resize(static_cast<size_t>(elements));
  if (layout_.dtype(name) == DType::bf16) {
    rounded_.resize(floats_.size());
    arena_.read(layout_.offset(name), rounded_.data(), rounded_.size() * sizeof(bf16));
    std::transform(rounded_.begin(), rounded_.end(), floats_.begin(), [](bf16 x) { return to_float(x); });
  } else {
    arena_.read(layout_.offset(name), floats_.data(), floats_.size() * sizeof(float));
  }
  return floats_.data();
}

}  // namespace llm
