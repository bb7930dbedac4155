// What a kernel is given: the addresses of its node's tensors, the node itself, and the threads or stream to run on.
#pragma once
#include "llm/base/bf16.h"
#include "llm/base/threads.h"
#include "llm/graph/graph.h"

namespace llm {

class Communicator;
class CudaDevice;

// Values that change from run to run of the same program. A GPU keeps a copy of them in its memory, so that a captured
// CUDA graph need not change with them.
struct StepState {
  float learning_rate = 0;   // of this step, before a parameter's own multiplier
  int64_t step = 0;          // number of optimizer steps before this one
  int64_t micro_step = 0;    // 0: parameter gradients are overwritten; above 0: they are added to
  int64_t first_sample = 0;  // number of the first row of this micro-step's batch among all samples of the run
  uint64_t seed = 0;         // of the run: stochastic rounding and dropout depend on it

  friend bool operator==(const StepState&, const StepState&) = default;
};

struct KernelCall {
  const Graph& graph;
  const Node& node;
  ThreadTeam& threads;
  const StepState& step;
  void* const* addresses;  // by TensorId
  // For CUDA kernels: the device, on whose stream they run, and its copy of the step. A launch may be captured and
  // replayed in later steps, so a CUDA kernel reads `device_step`; the host code that launches it may use `step` only
  // through accumulates().
  CudaDevice* cuda = nullptr;
  StepState* device_step = nullptr;
  Communicator* ranks = nullptr;  // null where the run has one rank

  bool has_input(size_t i) const { return node.input(i) != kNone; }
  bool has_output(size_t i) const { return node.output(i) != kNone; }
  const Shape& in_shape(size_t i) const { return graph.shape(node.inputs[i]); }
  const Shape& out_shape(size_t i) const { return graph.shape(node.outputs[i]); }
  // Elements from one row to the next. Only for ops with `cpu_takes_strides` may that be more than the row's own
  // elements.
  int64_t in_stride(size_t i) const { return graph.tensor(node.inputs[i]).stride(); }
  int64_t out_stride(size_t i) const { return graph.tensor(node.outputs[i]).stride(); }
  int64_t in_panel_rows(size_t i) const { return graph.tensor(node.inputs[i]).panel_rows; }
  DType in_dtype(size_t i) const { return graph.tensor(node.inputs[i]).dtype; }
  DType out_dtype(size_t i) const { return graph.tensor(node.outputs[i]).dtype; }
  // The address of a tensor; null when the optional tensor is absent. CPU kernels of ops without `cpu_takes_bf16` see
  // fp32 where the graph has bf16: the pass cast_for_cpu puts casts around the node.
  template <class T = float>
  const T* in(size_t i) const {
    return has_input(i) ? static_cast<const T*>(address(node.inputs[i])) : nullptr;
  }
  const int32_t* in_int(size_t i) const { return in<int32_t>(i); }
  template <class T = float>
  T* out(size_t i) const {
    return has_output(i) ? static_cast<T*>(address(node.outputs[i])) : nullptr;
  }
  template <class T = float>
  T* workspace() const {
    return node.workspace == kNone ? nullptr : static_cast<T*>(address(node.workspace));
  }

  // Whether the kernel must add to output i, an accumulator, instead of overwriting it: from the second micro-step on,
  // and where an earlier node of this graph has written the same memory.
  bool accumulates(size_t i) const {
    const TensorId id = node.output(i);
    if (id == kNone || graph.tensor(id).role != Role::accumulator) return false;
    return step.micro_step > 0 || graph.tensor(id).alias != kNone;
  }

 private:
  void* address(TensorId id) const { return addresses[id]; }
};

}  // namespace llm
