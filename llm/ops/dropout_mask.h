// Which elements dropout keeps: a pure function of (seed, step, sample, element of the sample, stream). So the mask
// does not depend on threads or ranks, on how a step is cut into micro-steps, or on whether it is resumed or
// recomputed.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>

#include "llm/base/bf16.h"
#include "llm/base/random.h"
#include "llm/base/shape.h"
#include "llm/graph/kernel.h"

namespace llm {

struct DropoutMask {
  uint32_t threshold;  // an element whose random bits are at least this is kept
  uint32_t stream;     // the node's attribute

  DropoutMask(double probability, int64_t node)
      : threshold(static_cast<uint32_t>(probability * 4294967296.0)), stream(static_cast<uint32_t>(node)) {}

  // Random bits for elements 4 group to 4 group + 3 of row `row` of the batch, one word each (Philox).
  LLM_HOST_DEVICE std::array<uint32_t, 4> bits(const StepState& step, int64_t row, int64_t group) const {
    constexpr uint32_t kDropout = 0x64726f70;  // distinguishes dropout from other users of the same seed
    const auto sample = static_cast<uint64_t>(step.first_sample + row);
    return philox(
        {static_cast<uint32_t>(group), static_cast<uint32_t>(sample),
         stream ^ static_cast<uint32_t>(sample >> 32) << 16, kDropout ^ static_cast<uint32_t>(step.step >> 32)},
        {static_cast<uint32_t>(step.seed) ^ static_cast<uint32_t>(step.seed >> 32), static_cast<uint32_t>(step.step)});
  }
};

// Where in a batch of whole samples the groups of four elements are that a node has (dropout.cpp).
class DropoutPlace {
 public:
  DropoutPlace(const Attributes& a, int64_t channels)
      : first_row_(a.integer("first_row", 0)), first_group_(a.integer("first_group", 0)) {
    if (!a.has("firsts")) return;
    const auto firsts = a.list("firsts");
    chunk_groups_ = a.integer("chunk") * channels / 4;
    for (size_t i = 0; i < 2; ++i)
      shifts_[i] = firsts[std::min(i, firsts.size() - 1)] * channels / 4 - static_cast<int64_t>(i) * chunk_groups_;
  }
  LLM_HOST_DEVICE int64_t row(int64_t own) const { return own + first_row_; }
  LLM_HOST_DEVICE int64_t group(int64_t own) const {
    const int64_t group = own + first_group_;
    return group + (group < chunk_groups_ ? shifts_[0] : shifts_[1]);
  }

 private:
  int64_t first_row_, first_group_;
  int64_t chunk_groups_ = 0;    // of a chunk
  int64_t shifts_[2] = {0, 0};  // from groups of the chunks together to those of the whole sample
};

// The rows of a batch, each cut into groups of four elements; the last group of a row may have fewer.
struct DropoutGroups {
  int64_t rows, elements, groups;  // elements and groups: of a row

  explicit DropoutGroups(const Shape& shape)
      : rows(shape[0]), elements(shape.elements() / std::max<int64_t>(1, rows)), groups((elements + 3) / 4) {}
};

}  // namespace llm
