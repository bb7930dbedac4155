// The subcommand graph: everything that is known of a run before it starts. It builds and compiles the graph of a model
// but allocates none of its memory.
#include <filesystem>
#include <iostream>
#include <memory>

#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/base/rounding.h"
#include "llm/base/threads.h"
#include "llm/cli/commands.h"
#include "llm/cli/options.h"
#include "llm/cli/progress.h"
#include "llm/graph/dump.h"
#include "llm/infer/engine.h"
#include "llm/model/gpt.h"
#include "llm/model/huggingface.h"
#include "llm/model/shard.h"
#include "llm/train/options.h"
#include "llm/train/recompute_alike.h"

namespace llm {
namespace {

constexpr char kModel[] = "MODEL|RUN";

struct GraphFlags {
  ModelOptions model;
  TrainOptions recipe;
  DeviceOptions device;  // only named: nothing of it is opened, so it need not be there
  std::string format = "text";
  int64_t ranks = 1, zero = 0, tensor = 1, context_ranks = 1, expert = 1, stages = 1, micro_batches = 0;
  int64_t batch = 0;           // 0: by rule
  uint64_t memory_budget = 0;  // 0: none
  bool no_fusion = false, all = false, ops = false, parameters = false, evaluation = false, generation = false;
};

// A run or a checkpoint is a directory that exists; a preset is a name. A path that is not there is told as such.
bool names_directory(const std::string& model) {
  if (model.empty()) return false;
  if (std::filesystem::is_directory(model)) return true;
  if (model.find('/') != model.npos) fail_usage("there is no directory ", model);
  return false;
}

ModelConfig config_for(GraphFlags& flags, const Given& given) {
  if (!names_directory(flags.model.preset)) return flags.model.resolve(0, "small");
  const ModelOptions& m = flags.model;
  for (const Option& option : flags.model.options(kModel))
    if (option.name != kModel && option.name != "--context" && given.contains(option.name))
      fail_usage(m.preset, " says what the model is; of the model's flags only --context goes with it, not ",
                 option.name);
  ModelConfig config = read_config(find_checkpoint(m.preset).path);
  if (!m.context) return config;
  if (m.context > config.context && config.positions == Positions::learned)
    fail_usage("--context ", m.context, " is more than the ", config.context, " positions that this model learned");
  config.context = m.context;
  return config;
}

// A run's step is the one that it was trained with. A Hugging Face directory has none.
void take_recipe_of_run(GraphFlags& flags, const Given& given) {
  const CheckpointInfo checkpoint = find_checkpoint(flags.model.preset);
  if (!checkpoint.has_trainer_state) return;
  for (const Option& option : recipe_options(flags.recipe))
    if (const std::string flag = option.name.substr(0, option.name.find(',')); given.contains(flag))
      fail_usage(flag, " belongs to the run in ", flags.model.preset, ", whose step is shown");
  flags.recipe = settings_of(checkpoint);
  if (!given.contains("--dtype")) flags.device.dtype = flags.recipe.dtype;
}

std::string padded(std::string text, size_t width) {
  text.resize(std::max(text.size(), width), ' ');
  return text;
}

void print_ops() {
  size_t width = 0;
  for (const Op& op : op_table()) width = std::max(width, std::string_view(op.name).size());
  for (const Op& op : op_table()) std::cout << padded(op.name, width) << "  " << op.summary << "\n";
}

std::string init_text(const Parameter& p) {
  if (p.init == Parameter::Init::zeros) return "0";
  if (p.init == Parameter::Init::ones) return "1";
  char text[32];
  std::snprintf(text, sizeof text, "std %.4g", p.init_std);
  return text;
}

// What the run's values are multiplied by for a parameter, as short as it can be said.
std::string multiplier_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

void print_parameters(const ModelConfig& config, const TrainOptions& recipe) {
  const OptimizerKind kind = *recipe.optimizer;
  std::vector<std::vector<std::string>> rows = {{"parameter", "shape", "count", "init", "group", "optimizer", "lr x",
                                                 "decay x", "epsilon x", "forward x", "shard axis",
                                                 "Hugging Face name (shape)"}};
  for (const Parameter& p : parameter_table(config, parametrization_of(recipe))) {
    std::string files;
    for (const FilePart& part : p.file_parts)
      files +=
          (files.empty() ? "" : ", ") + part.name + " " + part.shape.text() + (part.transposed ? " transposed" : "");
    const bool muon = takes_muon(p, kind);
    const double rate = muon ? p.muon_rate : p.adamw_rate;
    rows.push_back({p.name, p.shape.text(), std::to_string(p.shape.elements()), init_text(p), name_of(p.group),
                    muon ? "muon" : "adamw", multiplier_text(rate), p.decay ? multiplier_text(1 / rate) : "0",
                    muon ? "-" : multiplier_text(p.epsilon), multiplier_text(p.forward),
                    p.shard_axis < 0 ? "-" : std::to_string(p.shard_axis), files});
  }
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows)
    for (size_t i = 0; i + 1 < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i + 1 < row.size(); ++i) std::cout << padded(row[i], widths[i]) << "  ";
    std::cout << row.back() << "\n";
  }
  const int64_t count = parameter_count(config), active = active_parameter_count(config);
  std::cout << count << " parameters (" << format_count(static_cast<double>(count)) << ") in " << rows.size() - 1
            << " tensors" << (config.experts ? concat(", ", active, " of them active") : std::string())
            << "; --parametrization " << name_of(recipe.parametrization)
            << "; the forward pass's factor is folded into init, lr, decay and epsilon\n";
}

Compiled compile_for(const GraphFlags& flags, const ModelConfig& config, std::string* title) {
  const Target target{flags.device.threads ? flags.device.threads : available_threads(), flags.device.on_cuda(),
                      flags.device.precision()};
  const DType dtype = dtype_of(target.precision);
  CompileOptions options;
  options.fuse = !flags.no_fusion;
  options.memory_budget = flags.memory_budget;
  const int64_t tokens = config.context, sequences = flags.batch;
  const std::string batch = std::to_string(sequences), context = std::to_string(tokens);
  if (flags.generation) {
    *title =
        "generation of one token for " + batch + " sequences, with keys and values of " + context + " positions each";
    const int64_t blocks = sequences * ceil_div(tokens, kBlockTokens);
    PagedGraph g = build_paged_graph(config, sequences, {blocks, kBlockTokens, sequences}, dtype, true);
    return compile(std::move(g.graph), g.results(), target, options);
  }
  if (flags.evaluation) {
    *title = "evaluation of " + batch + " x " + context + " tokens";
    EvaluationGraph g =
        build_evaluation_graph(config, sequences, tokens, dtype, recipe_without_data(flags.recipe, config).end_of_text);
    return compile(std::move(g.graph), g.results(), target, options);
  }
  *title = "a training step of " + batch + " x " + context + " tokens";
  DataParallel parallel;
  parallel.mesh.tensor = static_cast<int>(flags.tensor), parallel.mesh.expert = static_cast<int>(flags.expert);
  parallel.mesh.context = static_cast<int>(flags.context_ranks);
  parallel.context_exchange = flags.recipe.context_exchange;
  const int each = parallel.mesh.ranks();
  if (flags.ranks % each) fail_usage("a mesh of ", parallel.mesh.text(), " does not divide --ranks ", flags.ranks);
  parallel.mesh.data = static_cast<int>(flags.ranks / each);
  check_mesh(parallel.mesh, config, sequences, tokens);
  parallel.ranks = parallel.mesh.data, parallel.zero = static_cast<int>(flags.zero);
  parallel.virtual_ranks = std::max<int64_t>(parallel.ranks, flags.recipe.virtual_ranks);
  if (flags.ranks > 1) *title += concat(" on rank 0 of ", flags.ranks, ", ZeRO ", flags.zero);
  if (flags.tensor > 1) *title += concat(", ", flags.tensor, " of which share matrices");
  if (flags.expert > 1) *title += concat(", ", flags.expert, " of which share experts");
  if (flags.context_ranks > 1)
    *title += concat(", ", flags.context_ranks, " of which share sequences",
                     flags.recipe.context_exchange == ContextExchange::ring ? " in a ring" : "");
  const auto build = [&](auto builder, const DataParallel& of) {
    return builder(config, sequences, tokens, optimizer_of(flags.recipe), dtype,
                   recipe_without_data(flags.recipe, config), of);
  };
  recompute_alike(options, parallel, target, build);
  TrainingGraph g = build(build_training_graph, parallel);
  return compile(std::move(g.graph), g.results(), target, options);
}

void print_graph(GraphFlags& flags, const Given& given) {
  if (flags.ops) return print_ops();
  if (flags.stages > 1) {
    PipelineShape shape{flags.recipe.pipeline, static_cast<int>(flags.stages), static_cast<int>(flags.micro_batches),
                        static_cast<int>(flags.recipe.chunks)};
    if (shape.micro_batches == 0) shape.micro_batches = 2 * shape.stages;
    if (shape.kind == PipelineKind::interleaved && shape.chunks == 1) shape.chunks = 2;
    return print_schedule(std::cout, shape);
  }
  const ModelConfig config = config_for(flags, given);
  if (names_directory(flags.model.preset)) take_recipe_of_run(flags, given);
  complete_recipe(flags.recipe, flags.batch, config);
  if (flags.parameters) return print_parameters(config, flags.recipe);
  std::string title;
  const Compiled compiled = compile_for(flags, config, &title);
  if (flags.format == "json") return dump_json(std::cout, compiled);
  if (flags.format == "dot") return dump_dot(std::cout, compiled, {.all = flags.all});
  std::cout << "model       " << (flags.model.preset.empty() ? "small" : flags.model.preset) << ": "
            << format_count(static_cast<double>(parameter_count(config))) << " parameters, " << config.layers
            << " layers, " << config.channels << " channels, " << config.heads << " heads, vocabulary "
            << config.vocabulary << "\nrun         " << title << ", in " << name_of(compiled.target.precision) << " on "
            << (compiled.target.cuda ? std::string("a GPU") : concat(compiled.target.threads, " CPU threads")) << "\n";
  dump_text(std::cout, compiled, {.all = flags.all, .width = terminal_columns()});
}

}  // namespace

Command graph_command() {
  const auto flags = std::make_shared<GraphFlags>();
  GraphFlags& f = *flags;
  Options options = f.model.options(kModel);
  append(options, recipe_options(f.recipe));
  append(
      options,
      {Option("--batch", &f.batch, "sequences in a step (about 1024 tokens)").between(1, 1 << 20),
       Option("--ranks", &f.ranks, "train on so many ranks; the graph is that of rank 0")
           .between(1, 256)
           .with_default(),
       Option("--tensor", &f.tensor, "of these, so many share each matrix").between(1, 256).with_default(),
       Option("--expert-ranks", &f.expert, "of these, so many share each layer's experts")
           .between(1, 256)
           .with_default(),
       Option("--context-ranks", &f.context_ranks, "of these, so many share the tokens of each sequence")
           .between(1, 256)
           .with_default(),
       Option("--context-exchange", &f.recipe.context_exchange, "how these get each other's keys: gather or ring")
           .with_default(),
       Option("--stages", &f.stages, "print the schedule of a pipeline of so many stages instead")
           .between(1, 256)
           .with_default(),
       Option("--pipeline", &f.recipe.pipeline, "which: gpipe, 1f1b, interleaved or zero-bubble").with_default(),
       Option("--micro-batches", &f.micro_batches, "of a step in a pipeline (twice its stages)").between(1, 4096),
       Option("--chunks", &f.recipe.chunks, "parts of the model that each of its stages has").between(1, 64),
       Option("--zero", &f.zero, "what they divide: 0 to 3, as train has it").between(0, 3).with_default(),
       Option("--offload", &f.recipe.offload, "optimizer: its state lies in the host's memory; none").with_default(),
       Option("--virtual-ranks", &f.recipe.virtual_ranks, "shares of a step (as many as ranks)").between(1, 256),
       Option("--memory-budget", MemorySize{&f.memory_budget}, "recompute as much as needed to fit, e.g. 20GiB"),
       Option("--device", &f.device.device,
              "what it is for: cpu, cuda (which need not be there), or auto: what this machine has")
           .with_default(),
       Option("--dtype", &f.device.dtype, "fp32, bf16 or fp8 (a run's own; else bf16 for a GPU, fp32 for the CPU)"),
       Option("--threads", &f.device.threads, "of the CPU it is for: some workspaces are per thread; 0: this one's")
           .between(0, 1024)
           .with_default(),
       Option("--format", &f.format, "text, dot (for Graphviz) or json").among({"text", "dot", "json"}).with_default(),
       Option("--no-fusion", &f.no_fusion, "leave the fusion pass out"),
       Option("--all", &f.all, "show every layer, also those that are like the one before"),
       Option("--evaluation", &f.evaluation, "the graph of an evaluation, not of a training step"),
       Option("--generation", &f.generation, "the graph that generates one token").not_with("--evaluation"),
       Option("--parameters", &f.parameters, "print the table of parameters instead"),
       Option("--ops", &f.ops, "print the table of ops instead").not_with("--parameters")});
  return {
      "graph", "Print a model's graph: ops, shapes, FLOPs, bytes, lifetimes, memory", options,
      "\"lives\" gives the first and the last node during which a tensor is needed; \"at MiB\" its place in the arena "
      "of\n"
      "transient tensors. The bytes are those that a run allocates.\n\n"
      "Examples:\n"
      "  train_gpt graph gpt2-124M --batch 8 --memory-budget 6GiB     what is recomputed so that it fits\n"
      "  train_gpt graph gpt2-124M --batch 32 --device cuda --dtype fp8     what a GPU will need\n"
      "  train_gpt graph --stages 4 --pipeline zero-bubble            which pass each stage makes when\n"
      "  train_gpt graph small --format dot | dot -Tsvg > small.svg\n"
      "  train_gpt graph runs/first --parameters",
      [flags](const Given& given) { print_graph(*flags, given); }};
}

}  // namespace llm
