// Values of persistent tensors on their way to and from files: as floats in the host's memory, whatever precision the run has
// and wherever its arena lies.
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

  // Room for the values of a tensor. They are put to their place (in bf16: rounded to the nearest) when room for the next
  // one is asked for, or by `flush`. Floats in the host's memory are their own room.
  float* room(const std::string& name, int64_t elements);
  void flush();

  // The values of a tensor; valid until the next call.
  const float* values(const std::string& name, int64_t elements);

 private:
  float* in_place(const std::string& name) const;

  const Arena& arena_;
  const PersistentLayout& layout_;
  std::string pending_;  // what `floats_` holds and has to be put to its place
  std::vector<float> floats_;
  std::vector<bf16> rounded_;
};

}  // namespace llm
