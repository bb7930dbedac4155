// Which elements dropout keeps: a pure function of (seed, step, micro-step, stream, element), so nothing depends on threads or
// on whether a step is resumed or recomputed.
#pragma once
#include <array>
#include <cstdint>

#include "llm/base/bf16.h"
#include "llm/base/random.h"
#include "llm/graph/kernel.h"

namespace llm {

struct DropoutMask {
  uint32_t threshold;  // of random bits: at and above it an element is kept
  uint32_t stream;     // of the node

  DropoutMask(double probability, int64_t node)
      : threshold(static_cast<uint32_t>(probability * 4294967296.0)), stream(static_cast<uint32_t>(node)) {}

  // For elements 4 `group` to 4 `group` + 3, one word each.
  LLM_HOST_DEVICE std::array<uint32_t, 4> bits(const StepState& step, int64_t group) const {
    constexpr uint32_t kDropout = 0x64726f70;  // keeps apart from other users of the same seed
    return philox(
        {static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32) ^ static_cast<uint32_t>(step.micro_step),
         stream, kDropout ^ static_cast<uint32_t>(step.step >> 32)},
        {static_cast<uint32_t>(step.seed) ^ static_cast<uint32_t>(step.seed >> 32), static_cast<uint32_t>(step.step)});
  }
};

}  // namespace llm
