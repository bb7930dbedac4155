// What a kernel is given: the addresses of its node's tensors, the node itself, and the threads or stream to run on.
#pragma once
#include "llm/base/bf16.h"
#include "llm/base/threads.h"
#include "llm/graph/graph.h"

namespace llm {

class CudaDevice;

// Values that change from run to run of the same program. On the GPU they lie in a small device struct, so that a
// captured CUDA graph need not change.
struct StepState {
  float learning_rate = 0;   // of this step, before a parameter's own multiplier
  int64_t step = 0;          // optimizer steps done before this one
  int64_t micro_step = 0;    // 0: parameter gradients are overwritten; later: added to
  int64_t first_sample = 0;  // of the run, in the micro-step at hand: the sample that its first row is
  int64_t position = 0;      // inference: tokens that are already in the key-value cache
  uint64_t seed = 0;         // of the run: stochastic rounding, dropout and sampling depend on it
  double temperature = 1;    // sampling: as in llm/ops/sampling.h
  double top_p = 1;
  int64_t top_k = 0;
  int64_t token_index = 0;  // sampling: the number of the token to be drawn

  friend bool operator==(const StepState&, const StepState&) = default;
};

struct KernelCall {
  const Graph& graph;
  const Node& node;
  ThreadTeam& threads;
  const StepState& step;
  void* const* addresses;  // by TensorId
  // For the CUDA kernels: the device, whose stream they run on, and the step in its memory. A launch may be captured and
  // replayed, so a kernel takes learning rate, step and position from there; of `step` only `accumulates` may be asked. Ops
  // that say `moves_step` change it.
  CudaDevice* cuda = nullptr;
  StepState* device_step = nullptr;

  bool has_input(size_t i) const { return node.input(i) != kNone; }
  bool has_output(size_t i) const { return node.output(i) != kNone; }
  const Shape& in_shape(size_t i) const { return graph.shape(node.inputs[i]); }
  const Shape& out_shape(size_t i) const { return graph.shape(node.outputs[i]); }
  // Elements from row to row: more than a row has only for ops that say `cpu_takes_strides`.
  int64_t in_stride(size_t i) const { return graph.tensor(node.inputs[i]).stride(); }
  int64_t out_stride(size_t i) const { return graph.tensor(node.outputs[i]).stride(); }
  DType in_dtype(size_t i) const { return graph.tensor(node.inputs[i]).dtype; }
  DType out_dtype(size_t i) const { return graph.tensor(node.outputs[i]).dtype; }
  // Null when the optional tensor is absent. The CPU's kernels know fp32 alone: llm/graph/cast.cpp stands between.
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

  // Whether output i, an accumulator, must be added to instead of overwritten: from the second micro-step on, and where
  // another node of this graph has written it before.
  bool accumulates(size_t i) const {
    const TensorId id = node.output(i);
    if (id == kNone || graph.tensor(id).role != Role::accumulator) return false;
    return step.micro_step > 0 || graph.tensor(id).alias != kNone;
  }

 private:
  void* address(TensorId id) const { return addresses[id]; }
};

}  // namespace llm
