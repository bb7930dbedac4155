// What a kernel is given: the addresses of its node's tensors, the node itself, and the threads or stream to run on.
#pragma once
#include "llm/base/threads.h"
#include "llm/graph/graph.h"

namespace llm {

// Values that change from run to run of the same program. On the GPU they lie in a small device struct, so that a
// captured CUDA graph need not change.
struct StepState {
  float learning_rate = 0;  // of this step, before a parameter's own multiplier
  int64_t step = 0;         // optimizer steps done before this one
  int64_t micro_step = 0;   // 0: parameter gradients are overwritten; later: added to
  int64_t position = 0;     // inference: tokens that are already in the key-value cache
};

struct KernelCall {
  const Graph& graph;
  const Node& node;
  ThreadTeam& threads;
  const StepState& step;
  void* const* addresses;  // by TensorId

  bool has_input(size_t i) const { return node.input(i) != kNone; }
  bool has_output(size_t i) const { return node.output(i) != kNone; }
  const Shape& in_shape(size_t i) const { return graph.shape(node.inputs[i]); }
  const Shape& out_shape(size_t i) const { return graph.shape(node.outputs[i]); }
  // Null when the optional tensor is absent.
  const float* in(size_t i) const {
    return has_input(i) ? static_cast<const float*>(address(node.inputs[i])) : nullptr;
  }
  const int32_t* in_int(size_t i) const { return static_cast<const int32_t*>(address(node.inputs[i])); }
  float* out(size_t i) const { return has_output(i) ? static_cast<float*>(address(node.outputs[i])) : nullptr; }
  float* workspace() const { return node.workspace == kNone ? nullptr : static_cast<float*>(address(node.workspace)); }

  // Whether output i, a parameter's gradient, must be added to instead of overwritten: from the second micro-step on,
  // and where another node of this graph has written it before.
  bool accumulates(size_t i) const {
    const TensorId id = node.output(i);
    if (id == kNone || graph.tensor(id).role != Role::gradient) return false;
    return step.micro_step > 0 || graph.tensor(id).alias != kNone;
  }

 private:
  void* address(TensorId id) const { return addresses[id]; }
};

}  // namespace llm
