// What the tests of ops run: each example of the op table, and chains of ops that the fusion pass joins. Each becomes
// two graphs, the forward pass alone and with its backward pass, for a precision and a device, with made-up inputs.
#pragma once
#include <functional>
#include <set>
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
// Attention within documents; `length` is the approximate length of a document in tokens.
Subject document_subject(int64_t batch, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_size,
                         int64_t length);

struct BuildOptions {
  int threads = 1;
  int only = -1;  // only this one of the outputs that can have a gradient gets one; -1: all
  DType dtype = DType::fp32;
  bool cuda = false;
  bool fuse = true;   // runs the fusion pass on subjects that are for it
  bool casts = true;  // makes `whole` ready to run: casts around the CPU's fp32 kernels, and workspaces
};

// A subject's two graphs, in which tensors have the same ids. inputs[i] is the tensor of the subject's input i (kNone:
// absent).
struct Built {
  Graph forward, whole;
  std::vector<TensorId> inputs, outputs;                 // outputs: tensors that no node reads
  std::vector<std::pair<TensorId, TensorId>> seeds;      // (output, its given gradient)
  std::vector<std::pair<TensorId, TensorId>> gradients;  // (input, its gradient)
};
Built build(const Subject& subject, const BuildOptions& options = {});

// Whether a tensor is what a norm or softmax stores for its backward pass alone: no gradient flows into it.
bool is_statistic(const std::string& name);

// Made-up numbers, which are the same for every build, but for their rounding: `precision` is that of the run that they
// are for.
std::vector<double> values_of(const Subject& subject, size_t input, DType precision = DType::fp32);
std::vector<double> seed_of(const Built& b, TensorId output, DType precision = DType::fp32);
void fill(Sandbox& sandbox, const Subject& subject, const Built& b, DType precision = DType::fp32);

// The values of all tensors of the forward pass, by the reference in double.
std::vector<Array> evaluate(const Subject& subject, const Built& b, const StepState& step,
                            DType precision = DType::fp32);

// Ops that have no example, since they take several ranks: test_ranks.cpp and test_mesh.cpp test them.
inline const std::set<std::string> kOpsOfSeveralRanks = {
    "reduce_scatter_start", "piece_gather_start",    "rows_gather_start", "rows_scatter_start",
    "ring_shift_start",     "expert_exchange_start", "ring_attention"};

}  // namespace llm::reference
