// A compiled graph that can run: its tensors have addresses in an arena, its kernels are called in order.
//
// One arena serves all programs of a rank. Persistent tensors come first, at offsets that a PersistentLayout gives by
// name, so that the training, evaluation and generation programs share the parameters; behind them each program places
// its transient tensors in the same bytes.
#pragma once
#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "llm/device/arena.h"
#include "llm/graph/kernel.h"
#include "llm/graph/passes.h"

namespace llm {

class PersistentLayout {
 public:
  // All its persistent tensors that have no place yet. Throws Error for one that has, but in another shape or type.
  void add(const Graph& graph);
  size_t offset(const std::string& name) const { return place(name).offset; }  // throws for an unknown name
  DType dtype(const std::string& name) const { return place(name).dtype; }
  const Shape& shape(const std::string& name) const { return place(name).shape; }
  int64_t panel_rows(const std::string& name) const { return place(name).panel_rows; }
  bool has(const std::string& name) const { return places_.contains(name); }
  size_t bytes() const { return bytes_; }            // of those on the device
  size_t host_bytes() const { return host_bytes_; }  // of those in the arena's host part

 private:
  struct Place {
    size_t offset;
    DType dtype;
    Shape shape;
    int64_t panel_rows;
    size_t bytes;
  };
  const Place& place(const std::string& name) const;
  std::map<std::string, Place> places_;
  size_t bytes_ = 0, host_bytes_ = 0;
};

// When a node of a graph ran, in seconds of the steady clock.
struct NodeTime {
  size_t node;
  double begin, end;
};

class Program {
 public:
  // Its transient tensors lie from `base` of the arena on. Programs of one graph at different bases run side by side, as the
  // micro-batches of a pipeline do.
  Program(std::shared_ptr<const Compiled> compiled, const PersistentLayout& layout, size_t base);
  // Behind what is persistent.
  Program(Compiled compiled, const PersistentLayout& layout)
      : Program(std::make_shared<const Compiled>(std::move(compiled)), layout, placed_bytes(layout.bytes())) {}
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  const Graph& graph() const { return compiled_->graph; }
  const Compiled& compiled() const { return *compiled_; }
  size_t arena_bytes() const { return base_ + compiled_->plan.bytes; }

  // The arena is that of a device for which the graph was compiled. The device must outlive the program, and so must
  // `ranks`, the other ranks of a graph that talks to them.
  void bind(const Arena& arena, Communicator* ranks = nullptr);

  StepState step;  // read by the kernels of the next run

  // Hands the nodes of these phases, in order, to the device; reading a result waits for them. `seconds`, if given,
  // gets each node's time added (by node index).
  void run(Phases phases, std::vector<double>* seconds = nullptr);
  // The same, node by node; appends when each ran.
  void run_timed(Phases phases, std::vector<NodeTime>& times);
  // Makes the first run of these phases as fast as the later ones will be. What they write is not meant to be read.
  void prepare(Phases phases);

  // Inputs and results, all `bytes` of a tensor.
  void write(TensorId id, const void* from) const { arena_->write(offset(id), from, graph().tensor(id).bytes()); }
  void read(TensorId id, void* to) const { arena_->read(offset(id), to, graph().tensor(id).bytes()); }

  // The address of a tensor on the device; on the CPU inputs and results may be used in place.
  template <class T = float>
  T* data(TensorId id) const {
    return static_cast<T*>(addresses_[static_cast<size_t>(id)]);
  }

 private:
  size_t offset(TensorId id) const { return offsets_[static_cast<size_t>(id)]; }
  Device& device() const { return arena_->device(); }
  Replay& replay(Phases phases);
  void hand_over_step();
  void walk(Phases phases) const;

  std::shared_ptr<const Compiled> compiled_;
  size_t base_;
  std::vector<size_t> offsets_;  // by tensor, in the arena
  std::vector<void*> addresses_;
  std::vector<KernelCall> calls_;
  const Arena* arena_ = nullptr;
  std::unique_ptr<Arena> device_step_;  // a StepState, which the kernels of a GPU read
  StepState on_device_;                 // what it holds after the walks so far
  Phases waiting_ = {};  // of nodes that make the host wait for the device (Op::waits_for_device): not captured
  // By phases. The first micro-step overwrites parameter gradients and the later ones add to them: these are two walks.
  std::array<std::unique_ptr<Replay>, 2 * Phases::kCount> replays_;
};

}  // namespace llm
