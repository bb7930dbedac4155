// Persistent tensors on their way to and from files: as floats in the host's memory, whatever the run's precision and
// wherever its arena lies.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "llm/graph/program.h"

namespace llm {

// The part of a tensor that a rank has: elements [first, first + count).
struct Piece {
  int64_t first = 0, count = -1;  // -1: all
};

class Staging {
 public:
  // `piece_of`: which part of a tensor the layout holds, where that is not all of it.
  using PieceOf = std::function<Piece(const std::string& name)>;
  Staging(const Arena& arena, const PersistentLayout& layout, PieceOf piece_of = {})
      : arena_(arena), layout_(layout), piece_of_(std::move(piece_of)) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Memory for the caller to write the values of a tensor (elements) into. The values go to the arena (to bf16: rounded
  // to the nearest; packed as panels: whole matrices alone) with the next call, or with flush(). fp32 tensors that the host can address are given as they are.
  float* room(const std::string& name, int64_t elements);
  void flush();

  // The values of a tensor (elements); valid until the next call. Those outside this rank's piece mean nothing.
  float* values(const std::string& name, int64_t elements);

 private:
  float* in_place(const std::string& name) const;
  Piece piece_of(const std::string& name, size_t elements) const;

  const Arena& arena_;
  const PersistentLayout& layout_;
  PieceOf piece_of_;
  std::string pending_;  // the tensor whose values are in `floats_` and not yet in the arena; empty: none
  std::vector<float> floats_;
  std::vector<bf16> rounded_;
};

}  // namespace llm
