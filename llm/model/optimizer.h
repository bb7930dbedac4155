// The optimizer's part of the training graph: the state of each parameter, and the nodes that step the parameters.
//
// AdamW (Loshchilov and Hutter 2019) steps all parameters or, beside Muon (Jordan et al. 2024), those that are not
// matrices of the blocks: embeddings, head, vectors. Muon steps a matrix along the orthogonal matrix nearest to its
// momentum. Five steps x = a x + (b A + c A A) x with A = x x^T, which move all singular values towards 1, find that
// matrix; they are made of the nodes of linear layers (x x^T is `linear` of x by x), so both devices and the cost model
// know them already. The five (a, b, c) are the Polar Express's (Amsel et al. 2025, arXiv 2505.16932), the best ones
// when all that is known of the singular values is that they lie in (0, 1). Query, key, value, gate and up projections
// are matrices of their own.
#pragma once
#include <string>
#include <vector>

#include "llm/base/rank_group.h"
#include "llm/graph/graph.h"
#include "llm/model/parameters.h"
#include "llm/ops/step_guard.h"

namespace llm {

enum class OptimizerKind { adamw, muon };
template <>
inline constexpr std::array kNames<OptimizerKind> = {"adamw", "muon"};

// Whether Muon steps the parameter; AdamW steps all others.
bool takes_muon(const Parameter& parameter, OptimizerKind kind);

// FLOPs of a step's products that make Muon's updates orthogonal: of a matrix, or of all that the model has.
double muon_flops(const Parameter& matrix);
double muon_flops(const ModelConfig& config);

struct OptimizerOptions {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0.1;
  double grad_clip = 1.0;  // 0: none
  OptimizerKind kind = OptimizerKind::adamw;
  double momentum = 0.95;  // of Muon
  // A step whose loss or gradient norm lies more than this many standard deviations above its running mean is skipped
  // (llm/ops/step_guard.h); 0: only a step whose norm is not finite is.
  double guard_deviations = 0;
  // Moments, momenta and masters lie in the host's memory and are copied to the device for their step and back, some at a
  // time, beside the steps of others.
  bool offload = false;
};

// The state tensor of step_guard's statistics, (kGuardStatistics), in a training graph with a guard.
inline constexpr char kGuardState[] = "step_guard.statistics";

// The fp32 master of a bf16 parameter: a state tensor of the training graph.
inline std::string master_of(const std::string& parameter) { return parameter + ".master"; }

// A tensor of optimizer state: "layers.0.qkv.weight.first_moment". All are fp32.
struct StateTensor {
  std::string name;
  Shape shape;
};
// All optimizer state but masters and the guard's, in the parameters' order: what a checkpoint holds beside the
// parameters.
std::vector<StateTensor> optimizer_state(const std::vector<Parameter>& table, OptimizerKind kind);

// What is stepped of a parameter: all of it or, where several ranks share the work, this rank's piece, a view (kNone:
// this rank has none). A matrix that Muon steps is not cut.
struct Stepped {
  TensorId parameter = kNone, gradient = kNone;
  Shape shape;
  int64_t first = 0;  // the number of the piece's first element
};
// Appends the nodes that step parameters; `stepped` is in the table's order. `norm` (1) is that of all gradients, `loss`
// (1) is for the guard. Returns the guarded norm (1), which is not finite when the step is skipped; without a guard it
// is `norm`. `tensor`: the ranks that have the other slices of the parameters that are cut.
TensorId add_optimizer(Graph& graph, const std::vector<Parameter>& table, const std::vector<Stepped>& stepped,
                       TensorId norm, TensorId loss, const OptimizerOptions& options, const RankGroup& tensor = {});

}  // namespace llm
