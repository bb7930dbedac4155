// What a graph is compiled for: the device, its threads, and how narrow the numbers are.
#pragma once
#include <cstdint>

#include "llm/base/names.h"
#include "llm/base/shape.h"

namespace llm {

class Device;

// What --dtype says. A bf16 run holds parameters and activations in bf16, with fp32 master weights for the optimizer;
// statistics, losses, parameter gradients and moments are fp32 in either. fp8 is bf16 with the blocks' products in 8 bits.
enum class Precision : uint8_t { fp32, bf16, fp8 };
template <>
inline constexpr std::array kNames<Precision> = {"fp32", "bf16", "fp8"};

// Of parameters and activations.
inline DType dtype_of(Precision precision) { return precision == Precision::fp32 ? DType::fp32 : DType::bf16; }

struct Target {
  int threads = 1;  // of the CPU's team: some of its workspaces are per thread
  bool cuda = false;
  Precision precision = Precision::fp32;
};
Target target_on(Device& device, Precision precision);

}  // namespace llm
