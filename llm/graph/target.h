// What a graph is compiled for: the kind of device, the CPU's threads, and the precision.
#pragma once
#include <cstdint>
#include <optional>

#include "llm/base/names.h"
#include "llm/base/shape.h"

namespace llm {

class Device;

// The value of --dtype. A bf16 run holds parameters and activations in bf16, with fp32 master weights for the
// optimizer. An fp8 run is a bf16 run whose transformer blocks multiply 8-bit matrices. Statistics, losses, parameter
// gradients and moments are always fp32.
enum class Precision : uint8_t { fp32, bf16, fp8 };
template <>
inline constexpr std::array kNames<Precision> = {"fp32", "bf16", "fp8"};

// The type of parameters and activations.
inline DType dtype_of(Precision precision) { return precision == Precision::fp32 ? DType::fp32 : DType::bf16; }

struct Target {
  int threads = 1;  // of the CPU's team: some CPU kernels need a workspace for each thread
  bool cuda = false;
  Precision precision = Precision::fp32;
  // For inference on a CPU: the type of the matrices of weights, which are then packed panels (llm/base/packed_panels.h).
  // Else they lie as in training.
  std::optional<DType> weights = {};
  // The type of the cache of keys and values; on a GPU that of the activations.
  std::optional<DType> cache = {};
  DType cache_type() const { return cache.value_or(dtype_of(precision)); }
};
Target target_on(Device& device, Precision precision);

}  // namespace llm
