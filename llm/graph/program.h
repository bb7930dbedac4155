// A compiled graph that can run: its tensors have addresses in an arena, its kernels are called in order.
//
// One arena serves all programs of a process. Persistent tensors come first, at offsets that a PersistentLayout gives by
// name, so that the training, evaluation and generation programs share the parameters; behind them each program places
// its transient tensors in the same bytes.
#pragma once
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "llm/graph/kernel.h"
#include "llm/graph/passes.h"

namespace llm {

class PersistentLayout {
 public:
  void add(const Graph& graph);                  // all its persistent tensors that have no place yet
  size_t offset(const std::string& name) const;  // throws for an unknown name
  bool has(const std::string& name) const { return offsets_.contains(name); }
  size_t bytes() const { return bytes_; }

 private:
  std::map<std::string, size_t> offsets_;
  size_t bytes_ = 0;
};

// Zeroed memory straight from the system, in huge pages where it gives them. Nothing is allocated after this.
class Arena {
 public:
  explicit Arena(size_t bytes);  // throws Error when the system has not that much
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

class Program {
 public:
  Program(Compiled compiled, const PersistentLayout& layout);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  const Graph& graph() const { return compiled_.graph; }
  const Compiled& compiled() const { return compiled_; }
  size_t arena_bytes() const { return transient_base_ + compiled_.plan.bytes; }

  void bind(const Arena& arena, ThreadTeam& threads);

  StepState step;  // read by the kernels of the next run

  // Runs the nodes of phases [first, last] in order. `seconds`, if given, gets each node's time added (by node index).
  void run(Phase first, Phase last, std::vector<double>* seconds = nullptr);

  // The memory of a tensor, for inputs and results.
  template <class T = float>
  T* data(TensorId id) const {
    return static_cast<T*>(addresses_[static_cast<size_t>(id)]);
  }

 private:
  Compiled compiled_;
  size_t transient_base_;
  std::vector<size_t> offsets_;  // by tensor, in the arena
  std::vector<void*> addresses_;
  std::vector<KernelCall> calls_;
};

}  // namespace llm
