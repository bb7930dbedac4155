#include "llm/checkpoint/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/model/gguf_model.h"
#include "llm/model/huggingface.h"
#include "llm/model/safetensors.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

constexpr char kWeights[] = "model.safetensors", kOptimizer[] = "optimizer.state", kTrainer[] = "trainer.json";
constexpr char kOlderOptimizer[] = "optimizer.safetensors";  // its name in checkpoints of earlier versions

std::string checkpoints_of(const std::string& run) { return run + "/checkpoints"; }

// JSON has no NaN: null stands for it.
Json number_or_null(double x) { return std::isfinite(x) ? Json(x) : Json(); }

double number_or_nan(const Json& x) { return x.is_null() ? std::numeric_limits<double>::quiet_NaN() : x.get<double>(); }

std::string trainer_json(const TrainerState& state, const std::string& directory) {
  Json files = Json::object();
  for (const char* name : {kWeights, kOptimizer})
    if (fs::exists(directory + "/" + name)) files[name] = fs::file_size(directory + "/" + name);
  const Json j = {{"step", state.step},
                  {"samples", state.samples},
                  {"rounded_step", state.rounded_step},
                  {"tokens", state.tokens},
                  {"seconds", state.seconds},
                  {"val_loss", number_or_null(state.val_loss)},
                  {"best_val_loss", number_or_null(state.best_val_loss)},
                  {"settings", parse_json(state.settings_json, "the settings")},
                  {"files", files}};
  return json_text(j);
}

struct Trainer {
  TrainerState state;
  std::vector<std::pair<std::string, uintmax_t>> files;  // name, bytes
};

Trainer read_trainer(const std::string& directory) {
  const std::string path = directory + "/" + kTrainer;
  const Json j = read_json(path);
  try {
    Trainer t;
    t.state.step = j.at("step").get<int64_t>();
    t.state.samples = j.at("samples").get<int64_t>();
    t.state.rounded_step = j.contains("rounded_step") ? j["rounded_step"].get<int64_t>() : -1;
    t.state.tokens = j.at("tokens").get<int64_t>();
    t.state.seconds = j.at("seconds").get<double>();
    t.state.val_loss = number_or_nan(j.at("val_loss"));
    t.state.best_val_loss = number_or_nan(j.at("best_val_loss"));
    t.state.settings_json = j.at("settings").dump();
    for (auto& [name, bytes] : j.at("files").items()) t.files.emplace_back(name, bytes.get<uintmax_t>());
    if (t.state.step < 0) fail("step ", t.state.step);
    return t;
  } catch (const Error& e) {
    fail(path, ": not a checkpoint's: ", e.what());
  }
}

// Throws Error unless all files of the checkpoint are there and as long as they were when written.
CheckpointInfo inspect(const std::string& directory) {
  const Trainer trainer = read_trainer(directory);
  std::error_code error;
  for (auto& [name, bytes] : trainer.files) {
    const uintmax_t size = fs::file_size(directory + "/" + name, error);
    if (error) fail(directory, "/", name, ": ", error.message());
    if (size != bytes) fail(directory, "/", name, ": ", size, " bytes of the ", bytes, " that were written");
  }
  for (const char* name : {kWeights, "config.json"})
    if (!fs::exists(directory + "/" + name, error)) fail(directory, ": ", name, " is missing");
  return {.path = directory,
          .step = trainer.state.step,
          .val_loss = trainer.state.val_loss,
          .has_trainer_state = true,
          .skipped = ""};
}

struct Broken {
  int64_t step;
  std::string reason;
};

struct Listed {
  std::vector<CheckpointInfo> whole;  // both by ascending step
  std::vector<Broken> broken;
};

Listed list(const std::string& run) {
  Listed listed;
  const std::string parent = checkpoints_of(run);
  std::error_code error;
  if (!fs::exists(parent, error) && !error) return listed;
  for (fs::directory_iterator entry(parent, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.size() > 18 || !std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; }))
      continue;
    const int64_t step = std::stoll(name);
    try {
      CheckpointInfo info = inspect(parent + "/" + name);
      if (info.step != step) fail(info.path, ": its ", kTrainer, " says step ", info.step);
      listed.whole.push_back(std::move(info));
    } catch (const Error& e) {
      // A trainer may have removed the checkpoint a moment ago.
      if (std::error_code gone; fs::exists(parent + "/" + name, gone)) listed.broken.push_back({step, e.what()});
    }
  }
  if (error) fail("cannot read ", parent, ": ", error.message());
  const auto by_step = [](const auto& a, const auto& b) { return a.step < b.step; };
  std::sort(listed.whole.begin(), listed.whole.end(), by_step);
  std::sort(listed.broken.begin(), listed.broken.end(), by_step);
  return listed;
}

// The index of the checkpoint with the lowest validation loss (the later of two equal ones); of the newest when no loss
// was measured.
size_t best_of(const std::vector<CheckpointInfo>& checkpoints) {
  size_t best = checkpoints.size() - 1;
  for (size_t i = checkpoints.size(); i-- > 0;) {
    const double loss = checkpoints[i].val_loss;
    if (loss < checkpoints[best].val_loss || (std::isnan(checkpoints[best].val_loss) && !std::isnan(loss))) best = i;
  }
  return best;
}

void prune(const std::string& run, int keep_last) {
  const std::vector<CheckpointInfo> checkpoints = list(run).whole;
  if (keep_last <= 0 || checkpoints.size() <= static_cast<size_t>(keep_last)) return;
  const size_t best = best_of(checkpoints), first_kept = checkpoints.size() - static_cast<size_t>(keep_last);
  for (size_t i = 0; i < first_kept; ++i)
    if (i != best) remove_directory(checkpoints_of(run), fs::path(checkpoints[i].path).filename().string());
}

// The files of weights and of optimizer state.
void write_tensors(const std::string& directory, const CheckpointContent& content, Communicator* ranks) {
  std::vector<FloatTensor> state;
  for (const StateTensor& t : content.optimizer) {
    state.push_back({.name = t.name, .shape = {}});
    for (int i = 0; i < t.shape.rank(); ++i) state.back().shape.push_back(t.shape[i]);
  }
  const std::string weights = directory + "/" + kWeights, optimizer = directory + "/" + kOptimizer;
  const bool is_first = !ranks || ranks->rank() == 0;
  if (ranks && content.parameter_pieces && !any(*ranks, !fs::exists(directory))) {
    save_parameters_together(weights, content.table, is_first, content.parameter_pieces);
    if (!state.empty()) write_safetensors_together(optimizer, state, is_first, content.optimizer_pieces);
    barrier(*ranks);
    return;
  }
  if (is_first) {
    save_parameters(weights, content.table, content.parameter);
    if (!state.empty()) write_safetensors(optimizer, state, content.optimizer_tensor);
    return;
  }
  for (size_t i = 0; i < content.table.size(); ++i) content.parameter(i);
  for (size_t i = 0; i < content.optimizer.size(); ++i) content.optimizer_tensor(i);
}

std::string joined(const std::vector<Broken>& broken, int64_t after) {
  std::string text;
  for (const Broken& b : broken)
    if (b.step > after) text += (text.empty() ? "" : "; ") + b.reason;
  return text;
}

}  // namespace

std::string save_checkpoint(const std::string& run, const CheckpointContent& content, int keep_last,
                            Communicator* ranks) {
  const std::string parent = checkpoints_of(run), name = std::to_string(content.state.step);
  const std::string path = parent + "/" + name;
  const bool is_first = !ranks || ranks->rank() == 0;
  try {
    std::optional<AtomicDirectory> made;
    if (is_first) {
      make_directories(parent);
      remove_abandoned(parent);
      made.emplace(parent, name);
    }
    const std::string directory = ranks ? all_gather(*ranks, is_first ? made->path() : "").front() : made->path();
    write_tensors(directory, content, ranks);
    if (!is_first) return path;
    const auto put = [&](const std::string& file, const std::string& text) {
      write_file_atomically(directory + "/" + file, text);
    };
    put("config.json", config_json(content.config, content.end_tokens));
    if (!content.tokenizer_json.empty()) {
      put("tokenizer.json", content.tokenizer_json);
      put("tokenizer_config.json", tokenizer_config_json(content.config, content.end_tokens, content.tokenizer_json));
    }
    if (!content.end_tokens.eos.empty()) put("generation_config.json", generation_config_json(content.end_tokens));
    for (auto& [file, text] : content.extra_files) put(file, text);
    put(kTrainer, trainer_json(content.state, directory));
    made->commit();
  } catch (const std::exception& e) {
    fail("checkpoint ", path, " was not saved (earlier ones are as they were): ", e.what());
  }
  prune(run, keep_last);
  return path;
}

std::vector<CheckpointInfo> list_checkpoints(const std::string& run, std::string* skipped) {
  Listed listed = list(run);
  if (skipped) *skipped = joined(listed.broken, -1);
  return std::move(listed.whole);
}

CheckpointInfo find_checkpoint(const std::string& path, Which which) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) fail(path, ": ", error ? error.message() : "no such directory");
  if (const std::string gguf = gguf_of_model(path); !gguf.empty()) return {.path = gguf, .skipped = ""};
  if (!fs::is_directory(status))
    fail(path,
         ": not a directory, nor a GGUF file; a run, a checkpoint, a Hugging Face directory or a GGUF file is "
         "needed");

  if (fs::is_directory(checkpoints_of(path), error)) {
    Listed listed = list(path);
    if (listed.whole.empty()) {
      const std::string reasons = joined(listed.broken, -1);
      fail(path, ": no whole checkpoint in this run", reasons.empty() ? "" : ": ", reasons);
    }
    CheckpointInfo info = listed.whole[which == Which::best ? best_of(listed.whole) : listed.whole.size() - 1];
    info.skipped = joined(listed.broken, which == Which::best ? -1 : info.step);
    return info;
  }
  if (fs::exists(path + "/" + kTrainer, error)) return inspect(path);
  const bool weights =
      fs::exists(path + "/" + kWeights, error) || fs::exists(path + "/" + kWeights + ".index.json", error);
  const bool config = fs::exists(path + "/config.json", error);
  if (error) fail("cannot read ", path, ": ", error.message());
  for (const char* pickled : {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"})
    if (!weights && fs::exists(path + "/" + pickled, error))
      fail(path, ": ", pickled, " holds pickled Python objects, which are not read; save the weights as ", kWeights,
           ": python3 -c 'from transformers import AutoModelForCausalLM as M; M.from_pretrained(\"", path,
           "\").save_pretrained(\"", path, "-safetensors\")'");
  if (!(weights && config) && fs::exists(path + "/adapter_config.json", error))
    fail(path,
         ": an adapter (LoRA) alone, which is no model; merge it into its base: python3 -c 'from peft import "
         "AutoPeftModelForCausalLM as M; M.from_pretrained(\"",
         path, "\").merge_and_unload().save_pretrained(\"", path, "-merged\")'");
  if (!weights || !config)
    fail(path, ": no model here: neither checkpoints/ nor config.json with ", kWeights,
         config || weights ? ", only " : "",
         config    ? "config.json"
         : weights ? "the weights"
                   : "");
  return {.path = path, .skipped = ""};
}

TrainerState read_trainer_state(const std::string& checkpoint) { return read_trainer(checkpoint).state; }

void load_optimizer(const std::string& checkpoint, const std::vector<StateTensor>& tensors,
                    const std::function<float*(size_t index)>& destination) {
  const std::string older = checkpoint + "/" + kOlderOptimizer;
  const SafetensorsFile file(fs::exists(older) ? older : checkpoint + "/" + kOptimizer);
  const std::string wrong = file.path() + ": not the state of this optimizer and model: ";
  std::set<std::string> names;
  for (const StateTensor& t : tensors) {
    names.insert(t.name);
    const SafetensorsEntry* entry = file.find(t.name);
    if (!entry) fail(wrong, t.name, " is missing");
    bool same = entry->dtype == "F32" && entry->shape.size() == static_cast<size_t>(t.shape.rank());
    for (int i = 0; same && i < t.shape.rank(); ++i) same = entry->shape[static_cast<size_t>(i)] == t.shape[i];
    if (!same) fail(wrong, t.name, " is not F32 of shape ", t.shape.text());
  }
  for (auto& [name, entry] : file.tensors())
    if (!names.contains(name)) fail(wrong, shown(name), " is in the file, too");
  for (size_t i = 0; i < tensors.size(); ++i)
    read_floats(file.tensor(tensors[i].name), 0, {destination(i), static_cast<size_t>(tensors[i].shape.elements())});
}

}  // namespace llm
