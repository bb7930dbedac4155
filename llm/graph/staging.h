// Persistent tensors on their way to and from files: as floats in the host's memory, whatever the run's precision and
// wherever its arena lies.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "llm/graph/program.h"

namespace llm {

class Staging {
 public:
  Staging(const Arena& arena, const PersistentLayout& layout) : arena_(arena), layout_(layout) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Memory for the caller to write the values of a tensor (elements) into. The values go to the arena (to bf16: rounded
  // to the nearest) with the next call, or with flush(). fp32 tensors that the host can address are given as they are.
  float* room(const std::string& name, int64_t elements);
  void flush();

  // The values of a tensor (elements); valid until the next call.
  const float* values(const std::string& name, int64_t elements);

 private:
  float* in_place(const std::string& name) const;

  const Arena& arena_;
  const PersistentLayout& layout_;
  std::string pending_;  // the tensor whose values are in `floats_` and not yet in the arena; empty: none
  std::vector<float> floats_;
  std::vector<bf16> rounded_;
};

}  // namespace llm
