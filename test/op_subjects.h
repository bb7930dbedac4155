// What the tests of the ops run: each example of the table, and chains of ops that the fusion pass joins. Each as a graph of
// its forward pass and one with its backward pass too, for a precision and a device, with made-up inputs.
#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "test/reference.h"

namespace llm::reference {

struct Subject {
  std::string name;
  std::vector<Example::Input> inputs;
  std::function<void(Graph&, const std::vector<TensorId>&)> build;
  bool fused = false;
  bool forward_only = false;
};
Subject subject_of(const Op& op, const Example& example, size_t number);
std::vector<Subject> fused_subjects();
// Attention that does not look into earlier documents: `length` is about what a document has.
Subject document_subject(int64_t batch, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_size,
                         int64_t length);

struct BuildOptions {
  int threads = 1;
  int only = -1;  // of the outputs that can have a gradient, only this one gets one
  DType dtype = DType::fp32;
  bool cuda = false;
  bool fuse = true;   // a subject that is to be fused
  bool casts = true;  // around the CPU's fp32 kernels, of `whole`, and workspaces: so that it can run
};

// A subject's graphs; tensors have the same ids in both, inputs[i] is the subject's input i (kNone: absent).
struct Built {
  Graph forward, whole;
  std::vector<TensorId> inputs, outputs;                 // outputs: those that nothing reads
  std::vector<std::pair<TensorId, TensorId>> seeds;      // (output, its given gradient)
  std::vector<std::pair<TensorId, TensorId>> gradients;  // (input, its gradient)
};
Built build(const Subject& subject, const BuildOptions& options = {});

// What norms and softmaxes give for their backward pass alone: no gradient flows into it.
bool is_statistic(const std::string& name);

// Made-up numbers, the same for every build but for their rounding: `precision` is that of the run they are for.
std::vector<double> values_of(const Subject& subject, size_t input, DType precision = DType::fp32);
std::vector<double> seed_of(const Built& b, TensorId output, DType precision = DType::fp32);
void fill(Sandbox& sandbox, const Subject& subject, const Built& b, DType precision = DType::fp32);

// The forward pass by the reference in double.
std::vector<Array> evaluate(const Subject& subject, const Built& b, const StepState& step,
                            DType precision = DType::fp32);

}  // namespace llm::reference
