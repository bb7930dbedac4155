// From the type of a tensor, known when a kernel is called, to the type of its kernel.
#pragma once
#include "llm/base/bf16.h"
#include "llm/base/shape.h"

namespace llm::cuda {

// Calls body(T{}).
template <class Body>
void with_type(DType dtype, Body&& body) {
  dtype == DType::bf16 ? body(bf16{}) : body(float{});
}

}  // namespace llm::cuda
