// The one table of a model's parameters: name, shape, initial value, decay, learning-rate group, shard axis, and where
// each lies in a Hugging Face checkpoint. Builder, optimizer, initialisation, checkpoints and sharding all read it.
#pragma once
#include <string>
#include <vector>

#include "llm/base/shape.h"
#include "llm/base/threads.h"
#include "llm/model/config.h"

namespace llm {

enum class LearningRateGroup { embedding, matrix, vector, head };
const char* name_of(LearningRateGroup group);

// One tensor of a Hugging Face file: rows [first_row, first_row + rows) of a parameter. `transposed`: the file holds the
// transpose, (in, out) as GPT-2's Conv1D does. Vectors have one "row" per element.
struct FilePart {
  std::string name;
  int64_t first_row = 0, rows = 0;
  bool transposed = false;
  Shape shape;  // as the file has it
};

struct Parameter {
  std::string name;  // "layers.0.qkv.weight"
  Shape shape;       // linear layers: (out, in)
  enum class Init { zeros, ones, normal } init = Init::zeros;
  double init_std = 0;
  bool decay = false;     // matrices only
  bool residual = false;  // its product is added to the residual stream
  LearningRateGroup group = LearningRateGroup::vector;
  int shard_axis = -1;  // the axis tensor parallelism splits; -1: replicated
  int layer = -1;       // the block it belongs to
  std::vector<FilePart> file_parts = {};
  std::vector<int64_t> joined = {};  // the rows of each matrix, where several are one parameter
};

std::vector<Parameter> parameter_table(const ModelConfig& config);
int64_t parameter_count(const ModelConfig& config);

// Which Hugging Face model_type the switches are: "gpt2", "llama", "qwen3", or "train_gpt" for a mix of its own.
std::string model_type_of(const ModelConfig& config);

// Fills `data` (elements of the parameter) with its initial values: each a pure function of (seed, name, element).
void initialise(ThreadTeam& threads, const Parameter& parameter, uint64_t seed, float* data);

}  // namespace llm
