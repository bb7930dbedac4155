// The one table of a model's parameters: name, shape, initial value, decay, learning-rate group and multipliers, shard
// axis, and where each parameter lies in a Hugging Face checkpoint. Graph builder, optimizer, initialisation,
// checkpoints and sharding all read this table.
#pragma once
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "llm/base/shape.h"
#include "llm/base/threads.h"
#include "llm/graph/graph.h"
#include "llm/model/config.h"

namespace llm {

// router: the matrix that gives experts their scores; balance: the bias of these, which has no gradient but a load.
enum class LearningRateGroup { embedding, matrix, vector, head, router, balance };
const char* name_of(LearningRateGroup group);

// One tensor of a Hugging Face file, which holds rows [first_row, first_row + rows) of a parameter. `transposed`: the
// file holds the transpose, (in, out), as GPT-2's Conv1D does. Each element of a vector is a row.
struct FilePart {
  std::string name;
  int64_t first_row = 0, rows = 0;
  bool transposed = false;
  Shape shape;  // as the file has it
};

// How a run begins, and how its steps depend on the model's shape.
struct Parametrization {
  // Chooses initial values, learning rates, weight decay and epsilon such that activations, and their changes by a
  // step, have the same size at every width and depth; then the same learning rate is the best at all of them. This is
  // muP in width (Yang et al. 2022, "Tensor Programs V", table 8) and CompleteP in depth (Dey et al. 2025, arXiv
  // 2505.01618, table 1 with alpha = 1: each branch is worth 1 / layers). The units are those of a base model, whose
  // square matrices have multipliers of 1. A factor in the forward pass is folded into initial values, rates and
  // epsilon, which gives the same training (Yang et al. 2022, lemma J.1) and leaves the weights those of an ordinary
  // model. false: all multipliers are 1.
  bool complete_p = false;
  bool zero_projections = false;  // the projections into the residual stream begin at zero, and so does an untied head
};
inline constexpr int64_t kBaseChannels = 128, kBaseLayers = 4;
// The learning rates of embedding, positions and head in units of the matrices' rate, at the base model, as measured
// (llm/train/README.md). A learned position gets a gradient from every sequence, a token's embedding only where the
// token occurs.
inline constexpr double kEmbeddingRate = 10, kPositionRate = 4, kHeadRate = 3;

struct Parameter {
  std::string name;  // "layers.0.qkv.weight"
  Shape shape;       // linear layers: (out, in)
  enum class Init { zeros, ones, normal } init = Init::zeros;
  double init_std = 0;
  bool decay = false;     // matrices only
  bool residual = false;  // a projection into the residual stream
  // The multipliers of the learning rate, with AdamW and with Muon, and of epsilon; `forward` is the factor of the
  // forward pass that is folded into them. AdamW's elements move by the learning rate whatever the gradient, so a
  // product of n inputs changes n times as much: its rate falls as 1 / n. Muon's step is orthogonal with elements of a
  // fixed size, so its spectral norm is proportional to sqrt(max(rows, columns)); the multiplier makes that sqrt(rows /
  // columns), which changes outputs as much as inputs are large, at any shape (Bernstein and Newhouse 2024, arXiv
  // 2409.20325; Large et al. 2024): it falls as 1 / sqrt(n). Weight decay is divided by the rate's multiplier, so that
  // its time-scale in steps is the same for all (Dey et al. 2025, table 1).
  double adamw_rate = 1, muon_rate = 1, epsilon = 1, forward = 1;
  LearningRateGroup group = LearningRateGroup::vector;
  int shard_axis = -1;  // the axis tensor parallelism splits; -1: replicated
  int layer = -1;       // the block it belongs to
  int64_t experts = 0;  // how many experts' matrices, of as many rows each, lie here one behind another; 0: it is none
  std::vector<FilePart> file_parts = {};
  std::vector<int64_t> joined = {};  // the rows of each matrix, where several are one parameter
  // Into how many slices of rows each of those can be cut, its heads; more ranks have some of them in common. Empty: any.
  std::vector<int64_t> heads = {};
  // Among how many tensor-parallel ranks it is cut, or expert-parallel ranks where it has experts; `shape`, `joined` and
  // `experts` are then a slice's (shard.h).
  int slices = 1;

  // How many different slices of matrix number `part` of those `among` so many ranks have.
  int64_t different_slices(size_t part, int64_t among) const {
    return heads.empty() ? among : std::min(among, heads[part]);
  }
  // Whether some of the ranks have a slice of a matrix in common.
  bool shares_rows() const {
    return std::any_of(heads.begin(), heads.end(), [&](int64_t n) { return n < slices; });
  }
};

std::vector<Parameter> parameter_table(const ModelConfig& config, const Parametrization& parametrization = {});
int64_t parameter_count(const ModelConfig& config);
// Of those, how many have a part in one token: of the experts' matrices only those of experts_per_token experts.
int64_t active_parameter_count(const ModelConfig& config);
int64_t active_elements(const ModelConfig& config, const Parameter& parameter);

// The type in which a program for inference holds a parameter: `weights`, if given, for the matrices of products and the
// token embedding, `dtype` for the rest.
bool is_matrix_of_weights(const Parameter& parameter);
DType type_of(const Parameter& parameter, DType dtype, std::optional<DType> weights);

// Adds a tensor for each parameter, of the type that type_of() says; with `weights` the matrices are packed panels. The head's tensor has spare rows: a GPU's products are fast only at sizes that are
// multiples of 8 elements, and vocabularies are not.
void add_parameters(Graph& graph, const ModelConfig& config, DType dtype, std::optional<DType> weights = {});
// The name of the parameter that is the matrix of the head.
const char* head_weight(const ModelConfig& config);

// The Hugging Face model_type that has these switches: "gpt2", "llama", "qwen2", "qwen3", "mixtral", "qwen3_moe", "phi"
// or "phi3", or else "train_gpt", the project's own.
std::string model_type_of(const ModelConfig& config);
// The same for a model that is exported: "gemma", "gemma2" or "gemma3_text" as well.
std::string exported_type_of(const ModelConfig& config);
// Gemma's number by whose root scores are divided in place of the head size's, as the magnitude of queries and keys says it.
int64_t query_scalar(const ModelConfig& config);

// Fills `data`, one float for each element of the parameter, with its initial values; each is a pure function of (seed,
// name, element).
void initialise(ThreadTeam& threads, const Parameter& parameter, uint64_t seed, float* data);

}  // namespace llm
