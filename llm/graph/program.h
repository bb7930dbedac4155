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

#include <memory>
#include "llm/device/cuda.h"
#include "llm/graph/kernel.h"
#include "llm/graph/passes.h"

namespace llm {

class PersistentLayout {
 public:
  // All its persistent tensors that have no place yet. Throws Error for one that has, but in another shape or type.
  void add(const Graph& graph);
  size_t offset(const std::string& name) const { return place(name).offset; }  // throws for an unknown name
  DType dtype(const std::string& name) const { return place(name).dtype; }
  bool has(const std::string& name) const { return places_.contains(name); }
  size_t bytes() const { return bytes_; }

 private:
  struct Place {
    size_t offset;
    DType dtype;
    Shape shape;
    size_t bytes;
  };
  const Place& place(const std::string& name) const;
  std::map<std::string, Place> places_;
  size_t bytes_ = 0;
};

// Zeroed memory: of the host, straight from the system and in huge pages where it gives them, or of a GPU. Nothing is
// allocated after this.
class Arena {
 public:
  explicit Arena(size_t bytes, CudaDevice* cuda = nullptr);  // throws Error when there is not that much
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  std::byte* data() const { return data_; }  // an address of the GPU where it lies there
  size_t bytes() const { return bytes_; }
  CudaDevice* cuda() const { return cuda_; }

  // To and from the host's memory.
  void write(size_t offset, const void* from, size_t bytes) const;
  void read(size_t offset, void* to, size_t bytes) const;

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  CudaDevice* cuda_;
};

// What a process runs its programs on.
struct Machine {
  ThreadTeam& threads;
  CudaDevice* cuda = nullptr;  // null: the CPU

  Target target(Precision precision) const { return {threads.size(), cuda != nullptr, precision}; }
};

class Program {
 public:
  // Its transient tensors lie from `base` of the arena on. Programs of one graph at different bases run side by side, as the
  // micro-batches of a pipeline do.
  Program(std::shared_ptr<const Compiled> compiled, const PersistentLayout& layout, size_t base);
  // Behind what is persistent.
  Program(Compiled compiled, const PersistentLayout& layout)
      : Program(std::make_shared<const Compiled>(std::move(compiled)), layout, placed_bytes(layout.bytes())) {}
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  const Graph& graph() const { return compiled_->graph; }
  const Compiled& compiled() const { return *compiled_; }
  size_t arena_bytes() const { return base_ + compiled_->plan.bytes; }

  // A graph for the GPU needs an arena there.
  void bind(const Arena& arena, ThreadTeam& threads);

  StepState step;  // read by the kernels of the next run

  // Runs the nodes of these phases in order. `seconds`, if given, gets each node's time added (by node index).
  // On the GPU this returns when the work is handed over; reading a result waits for it.
  void run(Phases phases, std::vector<double>* seconds = nullptr);

  // Inputs and results, all `bytes` of a tensor, wherever it lies.
  void write(TensorId id, const void* from) const;
  void read(TensorId id, void* to) const;

  // The address of a tensor; on the CPU inputs and results may be used in place.
  template <class T = float>
  T* data(TensorId id) const {
    return static_cast<T*>(addresses_[static_cast<size_t>(id)]);
  }

 private:
  struct Replay;  // captured CUDA graphs

  void enqueue(Phases phases);
  void time_on_cuda(Phases phases, std::vector<double>& seconds);

  std::shared_ptr<const Compiled> compiled_;
  size_t base_;
  std::vector<size_t> offsets_;  // by tensor, in the arena
  std::vector<void*> addresses_;
  std::vector<KernelCall> calls_;
  CudaDevice* cuda_ = nullptr;
  StepState* device_step_ = nullptr;
  StepState on_device_;  // what device_step_ holds after the walks so far
  std::unique_ptr<Replay> replay_;
};

}  // namespace llm
