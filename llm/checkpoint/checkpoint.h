// Checkpoints: RUN/checkpoints/STEP/ (STEP in plain decimal) is a Hugging Face directory plus the trainer's state.
//
//   model.safetensors, config.json, tokenizer.json, generation_config.json,   what transformers opens as it is
//   tokenizer_config.json
//   optimizer.state                         optimizer state, F32, bit for bit; of safetensors' format, but other programs
//                                           take all files of that suffix for weights
//   trainer.json                            step, counters, settings, the tensor files' sizes; written last
//
// The directory is made under a temporary name, synced and renamed, so earlier checkpoints stay whole whatever happens
// (a kill, a full disk). Which checkpoint is the newest or the best is read from the checkpoints themselves: there is
// no pointer that could be stale.
#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "llm/device/communicator.h"
#include "llm/model/config.h"
#include "llm/model/huggingface.h"
#include "llm/model/optimizer.h"
#include "llm/model/parameters.h"

namespace llm {

struct TrainerState {
  int64_t step = 0;     // optimizer steps done
  int64_t samples = 0;  // sequences taken from the loader
  int64_t tokens = 0;
  int64_t rounded_step = -1;  // the last step that changed the weights, whose rounding bf16 weights carry; -1: none
  double seconds = 0;         // spent training
  double val_loss = std::numeric_limits<double>::quiet_NaN();       // nats a token, at this step; NaN: not measured
  double best_val_loss = std::numeric_limits<double>::quiet_NaN();  // of the run so far; NaN: none
  std::string settings_json = "{}";  // the training options: any JSON; kept, but for its white space
};

// What a checkpoint is made of. Each callback is called once for each index, in order; its pointers must stay valid
// until the next call, so that the memory of a device can pass through one staging buffer. With several ranks either all
// of them write what they have themselves, and the callbacks for pieces are called, or the first one writes everything,
// and the others' callbacks for whole tensors are called as well, though what they return is not used.
struct CheckpointContent {
  TrainerState state;
  ModelConfig config;
  std::vector<Parameter> table;
  std::function<const float*(size_t index)> parameter;
  std::vector<StateTensor> optimizer;
  std::function<const float*(size_t index)> optimizer_tensor;
  std::function<std::vector<TensorPiece>(size_t index)> parameter_pieces, optimizer_pieces;
  std::string tokenizer_json;  // empty: none
  EndTokens end_tokens = {};
  std::vector<std::pair<std::string, std::string>> extra_files;  // name, content
};

struct CheckpointInfo {
  std::string path;                                            // the directory that holds config.json and the weights
  int64_t step = -1;                                           // -1: a plain Hugging Face directory
  double val_loss = std::numeric_limits<double>::quiet_NaN();  // NaN: not measured
  bool has_trainer_state = false;
  std::string skipped;  // for people: newer (or better) checkpoints that are damaged, and how; empty: none
};

// Removes the leftovers of killed processes, writes RUN/checkpoints/STEP/ in place of an earlier one of the same step,
// and removes all whole checkpoints but the newest `keep_last` and the one with the lowest validation loss (0: keeps
// all). Returns the path of the new one. Throws Error when it was not saved; earlier ones are then as they were.
// `ranks`, null where there is one: all of them call it, and all write where all see the first one's files.
std::string save_checkpoint(const std::string& run, const CheckpointContent& content, int keep_last = 0,
                            Communicator* ranks = nullptr);

// The whole checkpoints of a run by ascending step; none for a run without any. `skipped`, if given, gets one line that
// says what is wrong with the others; empty: nothing.
std::vector<CheckpointInfo> list_checkpoints(const std::string& run, std::string* skipped = nullptr);

enum class Which { newest, best };  // best: the lowest validation loss; the newest where none was measured
// `path`: a run, one of its checkpoints, a Hugging Face directory, or a GGUF file. Throws Error that says what is there instead.
CheckpointInfo find_checkpoint(const std::string& path, Which which = Which::newest);

// The parts of a checkpoint at CheckpointInfo::path; config and parameters are read by huggingface.h's read_config()
// and load_parameters(). Both functions throw Error where there is no such state, load_optimizer() also where it is
// that of another optimizer or model.
TrainerState read_trainer_state(const std::string& checkpoint);
// `destination(i)` returns room for tensor i, as that of load_parameters() does. All names and shapes are checked
// first.
void load_optimizer(const std::string& checkpoint, const std::vector<StateTensor>& tensors,
                    const std::function<float*(size_t index)>& destination);

}  // namespace llm
