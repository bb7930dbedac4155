// train_gpt train
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <memory>
#include <tuple>

#include "llm/base/atomic_file.h"
#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/base/process.h"
#include "llm/cli/commands.h"
#include "llm/cli/options.h"
#include "llm/cli/prediction.h"
#include "llm/cli/progress.h"
#include "llm/cli/ranks.h"
#include "llm/cli/train_console.h"
#include "llm/cli/train_ranks.h"
#include "llm/device/ceilings.h"
#include "llm/device/ceilings_cuda.h"
#include "llm/device/communicator_mpi.h"
#include "llm/device/communicator_nccl.h"
#include "llm/model/huggingface.h"
#include "llm/train/rules.h"
#include "llm/train/trainer.h"

namespace llm {
namespace {

constexpr const char* kDefaultModel = "tiny";
constexpr int64_t kUnknownVocabulary = 50257;  // of shards without a tokenizer: GPT-2's, if their tokens are in it

struct Arguments {
  int ranks = 0;
  Mesh mesh;  // but for its data-parallel ranks, which are the rest
  ModelOptions model;
  DeviceOptions device;
  TrainOptions train;
  std::string log_format = "text", resume, tokenizer, hardware, plan;
  bool explain = false;
};

Options train_options(Arguments& a) {
  Options all = a.model.options();
  append(all, run_options(a.train));
  append(all, {Option("--resume{yes}", &a.resume,
                      "Go on with the run in --out from its newest checkpoint, bit for bit, or start it where there is "
                      "none yet; --resume=must: an error where there is none")
                   .among({"yes", "must"}),
               Option("--tokenizer", &a.tokenizer,
                      "What makes tokens of a text: bytes, or a path as for tokenize (that of the model's directory, "
                      "else bytes)"),
               Option("--explain", &a.explain, "Print every value of the run with its rule and source, and stop")});
  append(all, rank_options(a.ranks, a.mesh, a.train), "Ranks");
  append(all,
         {Option("--trace", &a.train.trace,
                 "Write when each op and each exchange of the second step ran, on every rank, for ui.perfetto.dev"),
          Option("--plan", &a.plan,
                 "auto: the fastest layout for the ranks there are that fits (train_gpt plan), and it is said")
              .among({"auto"}),
          Option("--hardware", &a.hardware,
                 "The description of this machine (plan --hardware, bench --hardware-out), by which the step time at "
                 "the end is "
                 "predicted (that of a machine like this one)"),
          Option("--log-format", &a.log_format, "text, or jsonl: the log's lines on standard output")
              .among({"text", "jsonl"})
              .with_default()},
         "Watching");
  append(all, a.device.options());
  return all;
}

// What --data names, for messages.
std::string joined(const std::vector<std::string>& data) {
  std::string text;
  for (const std::string& source : data) text += (text.empty() ? "" : " ") + source;
  return text;
}

bool has_text(const std::vector<std::string>& data) {
  const std::vector<DataSource> sources = parse_sources(data);
  return std::any_of(sources.begin(), sources.end(), is_text);
}

// `train --data TEXT MODEL`: a list of sources ends where the next flag begins, but what is last may be the model.
void take_model_from_data(Arguments& a) {
  std::error_code none;
  std::vector<std::string>& data = a.train.data;
  if (!a.model.preset.empty() || data.size() < 2) return;
  const bool is_preset = !std::filesystem::exists(data.back(), none) && find_preset(data.back());
  if (!is_preset && !std::filesystem::exists(data.back() + "/config.json", none)) return;
  a.model.preset = data.back();
  data.pop_back();
}

std::string default_run_directory(const std::vector<std::string>& data) {
  std::filesystem::path path(parse_sources(data).front().path);
  if (!path.has_filename()) path = path.parent_path();
  std::string stem = path.stem().string();
  for (char& c : stem)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') c = '-';
  const std::string base = "runs/" + (stem.empty() || stem == "." || stem == ".." ? "run" : stem);
  std::string name = base;
  for (int n = 2; std::filesystem::exists(name); ++n) name = base + "-" + std::to_string(n);
  return name;
}

// The config of the model that training begins with. Only the context may be a longer one. The run may have a shorter one.
ModelConfig trained_config(Arguments& a, const Given& given, const std::string& origin, int64_t data_vocabulary) {
  ModelConfig model = read_config(origin);
  for (const Option& option : a.model.options())
    if (option.name != "MODEL" && option.name != "--context" && given.contains(option.name))
      fail_usage(option.name, " belongs to the model in ", origin, " and cannot change");
  if (a.model.context) {
    if (a.model.context > model.context && model.positions == Positions::learned)
      fail_usage("--context ", a.model.context, " is more than the ", model.context, " positions that the model in ",
                 origin, " learned");
    if (a.model.context > model.context && model.rope_factor != 1 && model.rope_kind == RopeKind::dynamic)
      fail_usage("--context ", a.model.context, " is more than the ", model.context, " of the model in ", origin,
                 ", whose dynamic rotary scaling depends on the length");
    if (a.model.context > model.context)
      std::cerr << "note:  the model in " << origin << " has a context of " << model.context << "; it is stretched to "
                << a.model.context << ", and what it knows of farther positions is what this run teaches\n";
    model.context = std::max(model.context, a.model.context);
    a.train.context = a.model.context;
  }
  if (data_vocabulary > model.vocabulary)
    fail(joined(a.train.data), " was tokenized for a vocabulary of ", data_vocabulary, ", more than the ",
         model.vocabulary, " of the model in ", origin);
  return model;
}

// The config of the model in a run, of which the command line may say again what is so.
ModelConfig resumed_config(Arguments& a, const Given& given, const CheckpointInfo& checkpoint) {
  const ModelConfig model = read_config(checkpoint.path + "/config.json");
  if (a.model.names_directory()) {  // its weights were where the run began
    const int64_t context = settings_of(checkpoint).context;
    if (a.model.context && a.model.context != (context ? context : model.context))
      fail_to_change("--context", a.train.out);
    return model;
  }
  const Options rows = a.model.options();
  const bool is_described =
      std::any_of(rows.begin(), rows.end(), [&](const Option& o) { return given.contains(o.name); });
  if (is_described && a.model.resolve(model.vocabulary, kDefaultModel) != model)
    fail_usage("the model's options describe another model than that of the run in ", a.train.out,
               ", which cannot change with --resume; leave them out, or start a new run with another --out");
  return model;
}

// Whether --resume finds a run to go on with. One that has checkpoints, but no whole one, is no run that begins.
bool is_resumed(const Arguments& a) {
  if (a.resume.empty()) return false;
  if (a.train.out.empty()) fail_usage("--resume needs --out, the run to go on with");
  std::string broken;
  if (!list_checkpoints(a.train.out, &broken).empty() || !broken.empty()) return true;
  if (a.resume == "must") fail("--resume=must: ", a.train.out, " holds no run to go on with");
  if (a.train.data.empty())
    fail("--resume: ", a.train.out, " holds no run to go on with; with --data one is started there");
  return false;
}

// What makes tokens of a text: what the command line names, or what the model knows; null: bytes.
std::unique_ptr<Tokenizer> tokenizer_for_text(const Arguments& a, const std::string& known, bool is_resumed) {
  const std::string path = known.empty() ? "" : tokenizer_of_model(known);
  if (a.tokenizer.empty()) {
    if (path.empty() && !known.empty() && !is_resumed)
      fail(known, " has no tokenizer to read ", joined(a.train.data), " with; name the model's by --tokenizer PATH");
    return path.empty() ? nullptr : load_tokenizer(path);
  }
  auto tokenizer = load_tokenizer(a.tokenizer);
  if (!path.empty() && load_tokenizer(path)->json() != tokenizer->json())
    fail_usage("--tokenizer ", a.tokenizer, " is another than that of ", known, ", whose tokens would mean nothing");
  return tokenizer;
}

// Says so where most of a head is trained on nothing, but to be never right.
void say_unused_vocabulary(const ModelConfig& model, const Dataset& dataset, bool is_new, std::ostream& notes) {
  const int64_t known = dataset.tokenizer ? dataset.tokenizer->vocabulary() : model.vocabulary;
  if (!dataset.vocabulary && model.vocabulary > kUnknownVocabulary && is_new)
    notes << "note:  the data has no tokenizer; the model's vocabulary is " << model.vocabulary
          << ", as the largest token " << std::max(dataset.train.largest_token(), dataset.val.largest_token())
          << " needs it, or as it was told by --vocabulary\n";
  if (known >= model.vocabulary - model.vocabulary / 16) return;
  notes << "note:  the model's vocabulary is " << model.vocabulary << ", but the text's tokenizer has " << known
        << " tokens, and no other is ever drawn; --tokenizer PATH reads the text by another"
        << (is_new ? concat(", --vocabulary ", known, " makes the model smaller") : std::string()) << "\n";
}

// Tokens of another tokenizer mean nothing to a trained model.
void check_tokenizer(const std::vector<std::string>& data, const Dataset& dataset, const std::string& origin) {
  const std::string tokenizer = tokenizer_of_model(origin);
  if (!dataset.tokenizer || tokenizer.empty()) return;
  if (load_tokenizer(tokenizer)->json() != dataset.tokenizer->json())
    fail(joined(data), " was tokenized by another tokenizer than that of ", origin,
         "; give the text, or tokenize it with ", "--tokenizer ", origin);
}

struct DataSize {
  int64_t vocabulary = 0, train_tokens = 0, val_tokens = 0;
};

DataSize size_of(const Dataset& dataset) {
  const int64_t known = dataset.vocabulary
                            ? dataset.vocabulary
                            : std::max<int64_t>({kUnknownVocabulary, dataset.train.largest_token() + int64_t{1},
                                                 dataset.val.largest_token() + int64_t{1}});
  return {known, dataset.train.size(), dataset.val.size()};
}

// Without making anything: a text is as many tokens as its file has bytes.
DataSize size_for_explanation(const TrainOptions& o, const std::string& tokenizer, ThreadTeam& threads) {
  const auto vocabulary = [&] { return load_tokenizer(tokenizer.empty() ? "bytes" : tokenizer)->vocabulary(); };
  if (o.data.empty()) return {vocabulary(), 0, 2};  // some data, of which a part is held out
  if (!has_text(o.data)) return size_of(open_dataset(o.data, {}, threads));
  double size = 0;
  for (const DataSource& source : parse_sources(o.data))
    if (is_text(source))
      for (const std::string& file : texts_of(source)) size += static_cast<double>(std::filesystem::file_size(file));
  const auto val = static_cast<int64_t>(size * o.val_fraction);
  return {vocabulary(), static_cast<int64_t>(size) - val, val};
}

void explain(Arguments& a, const Given& given, const std::string& origin) {
  OpenedMachine opened(a.device);
  const DataSize data = size_for_explanation(a.train, a.tokenizer, opened.threads());
  const ModelConfig m = !origin.empty() ? trained_config(a, given, origin, data.vocabulary)
                                        : a.model.resolve(data.vocabulary, kDefaultModel);
  a.train.data_tokens = data.train_tokens;
  std::vector<Rule> rules = apply_rules(a.train, m, data.val_tokens, !origin.empty());
  const Rule dimensions[] = {
      {"layers", std::to_string(m.layers), a.model.depth ? "given by --depth" : "the preset's, where not given"},
      {"channels", std::to_string(m.channels),
       a.model.depth ? "128 (layers / 4)^(5/3): through the presets tiny and GPT-2" : "the preset's, where not given"},
      {"heads", concat(m.heads, " of ", m.head_size), "of 32 channels, of 64 from 384 on, of 128 from 2048 on"},
      {"hidden", std::to_string(m.hidden), "4 x channels, 8/3 x for the gated swiglu (Shazeer 2020)"},
      {"context", std::to_string(m.context),
       a.model.depth ? "64 (layers / 4)^2.5, to a power of two, at most 2048" : "the preset's, where not given"},
      {"parts",
       concat(name_of(m.norm), ", ", name_of(m.positions), ", ", name_of(m.activation), m.qk_norm ? ", qk-norm" : "",
              m.bias ? ", biases" : "", m.tied_head ? ", tied head" : ""),
       "--architecture and its switches"},
      {"parameters", format_count(static_cast<double>(parameter_count(m))), "what follows"},
      {"active", format_count(static_cast<double>(active_parameter_count(m))),
       "of them those that one token passes; fewer with --experts"}};
  rules.insert(rules.begin(), std::begin(dimensions), std::end(dimensions));
  size_t name = 0, value = 0;
  for (const Rule& r : rules) name = std::max(name, r.name.size()), value = std::max(value, r.value.size());
  for (const Rule& r : rules)
    std::cout << r.name << std::string(name + 2 - r.name.size(), ' ') << r.value
              << std::string(value + 2 - r.value.size(), ' ') << r.reason << "\n";
}

// Says what a run is about to do, and what it has found; rank 0's words are heard.
struct Voice {
  explicit Voice(bool speaks)
      : notes(speaks ? std::cerr.rdbuf() : nullptr), results(speaks ? std::cout.rdbuf() : nullptr) {}
  std::ostream notes, results;
};

// A rank's part of a run, ready to begin.
struct Run {
  std::unique_ptr<OpenedMachine> machine;
  // Null where the ranks are CPUs. Messages of a pipeline have two of their own.
  std::unique_ptr<Communicator> gpus, forward, backward;
  std::unique_ptr<Trainer> trainer;
  std::string checkpoint;  // to go on from; empty: none
  std::string origin;      // the model whose weights it begins with; empty: none
  size_t data_bytes = 0;
};

// Null where there is nothing to train.
std::unique_ptr<Run> prepare(Arguments& a, const Given& given, const RankPlace& place, Voice& voice) {
  TrainOptions& o = a.train;
  // A trained model goes on from its weights.
  const bool from_directory = a.model.names_directory();
  const bool resumes = is_resumed(a);
  auto run = std::make_unique<Run>();
  const std::string origin = run->origin =
      from_directory && !resumes ? find_checkpoint(a.model.preset, Which::best).path : "";
  CheckpointInfo checkpoint;
  ModelConfig resumed_model;
  if (resumes) {
    checkpoint = find_checkpoint(o.out, Which::newest);
    run->checkpoint = checkpoint.path;
    if (!checkpoint.skipped.empty()) voice.notes << checkpoint.skipped << "\n";
    resumed_model = resumed_config(a, given, checkpoint);
    const TrainOptions settings = settings_of(checkpoint);
    if (given.contains("--dtype") && a.device.dtype != settings.dtype) fail_to_change("--dtype", o.out);
    const std::string trace = o.trace;
    const auto [pipeline, chunks, exchange] = std::tuple{o.pipeline, o.chunks, o.context_exchange};
    o = resumed_settings(settings, o, given);
    a.device.dtype = o.dtype;
    if (o.steps < checkpoint.step)
      fail_usage("the run in ", o.out, " has made ", checkpoint.step, " steps, more than ", o.steps);
    if (o.steps == checkpoint.step) {
      voice.results << "trained already: the run in " << o.out << " has made " << checkpoint.step << " of " << o.steps
                    << " steps; a larger --steps or --tokens goes on\n";
      return nullptr;
    }
    o.trace = trace, o.pipeline = pipeline, o.chunks = chunks, o.context_exchange = exchange;
  } else {
    if (o.data.empty()) fail_usage("--data is missing: give a text file or a directory of token shards");
    if (o.steps && o.tokens) fail_usage("--steps and --tokens both say how long; give one");
    if (std::filesystem::exists(o.out + "/checkpoints") && !list_checkpoints(o.out).empty())
      fail_usage(o.out, " already holds a run: go on with it by --resume, or choose another --out");
  }
  o.dtype = a.device.precision();
  run->machine = std::make_unique<OpenedMachine>(a.device, place.local, place.locals);
  ThreadTeam& threads = run->machine->threads();
  make_directories(o.out);

  Dataset dataset = [&] {
    const bool is_text = has_text(o.data);
    if (!is_text && !a.tokenizer.empty())
      fail_usage("--tokenizer ", a.tokenizer, " is for texts, and ", joined(o.data), " holds tokens");
    const auto tokenizer = is_text ? tokenizer_for_text(a, resumes ? checkpoint.path : origin, resumes) : nullptr;
    Progress bar("tokenize");  // cleared away at the end: the result is the run itself
    return open_dataset(o.data, {o.out + "/tokens", o.val_fraction, tokenizer.get(), o.text_key}, threads,
                        [&](int64_t done, int64_t total) { bar.update(done, total); });
  }();
  if (!origin.empty()) check_tokenizer(o.data, dataset, origin);
  const auto [vocabulary, train_tokens, val_tokens] = size_of(dataset);
  if (resumes && o.data_tokens != train_tokens)
    fail("the data of ", o.out, " had ", o.data_tokens, " training tokens but ", joined(o.data), " has ", train_tokens,
         ": it is not the same data");
  const uint64_t checksum = dataset.checksum();
  if (resumes && o.data_checksum && o.data_checksum != checksum)
    fail("the data of ", o.out, " had as many training tokens as ", joined(o.data),
         ", but others: it is not the same data");
  o.data_tokens = train_tokens, o.data_checksum = checksum;

  const ModelConfig model = resumes           ? resumed_model
                            : !origin.empty() ? trained_config(a, given, origin, dataset.vocabulary)
                                              : a.model.resolve(vocabulary, kDefaultModel);
  o.mesh = mesh_of(a.mesh, place.count());
  if (a.plan == "auto" && resumes)
    fail_usage("--plan auto is for new runs; --tensor, --stages and --zero say how ranks share one that goes on");
  if (a.plan == "auto")
    plan_steps(o, given, model, val_tokens, !origin.empty(), run->machine->device(), a.hardware, place.count(),
               voice.notes);
  share_steps(o, resumes, o.context ? o.context : model.context, voice.notes);
  const std::vector<Rule> rules = apply_rules(o, model, val_tokens, !origin.empty());
  if (train_tokens < o.context + 1)
    fail(joined(o.data), " has only ", train_tokens, " training tokens, fewer than the context of ", o.context,
         " and one more; lower --context");
  check_mesh(o.mesh, model, o.batch, o.context);
  if (o.mesh.stage > 1 && o.zero == 3)
    fail_usage("--zero 3 divides parameters, of which the stages of a pipeline have their own; --zero 2 would do");
  if (o.pipeline == PipelineKind::interleaved && o.chunks == 1) o.chunks = 2;
  if (o.mesh.stage > 1)
    make_schedule({o.pipeline, o.mesh.stage, static_cast<int>(o.grad_accum), static_cast<int>(o.chunks)});
  o.settings_json = settings_json(o, model);
  if (!resumes) say_unused_vocabulary(model, dataset, origin.empty(), voice.notes);
  run->trainer = std::make_unique<Trainer>(model, o, std::move(dataset), run->machine->device(), place.ranks);
  print_plan(model, o, resumes ? std::vector<Rule>{} : rules, *run->trainer, place.count(), voice.notes);
  run->data_bytes = static_cast<size_t>(train_tokens + val_tokens) * (model.vocabulary > 65536 ? 4 : 2);
  return run;
}

void load(Run& run, const TrainOptions& o, const RankPlace& place, Voice& voice) {
  run.trainer->allocate(run.gpus ? run.gpus.get() : place.ranks, run.forward.get(), run.backward.get());
  if (!run.checkpoint.empty()) {
    run.trainer->load(run.checkpoint);
    voice.notes << "resuming " << o.out << " after step " << run.trainer->state().step << "\n";
  } else {
    run.origin.empty() ? run.trainer->initialise() : run.trainer->initialise_from(run.origin);
  }
  if (place.is_first()) write_file_atomically(o.out + "/config.json", o.settings_json);
}

// On each rank of the run.
void train_on(Arguments a, const Given& given, const RankPlace& place) {
  TrainOptions& o = a.train;
  Voice voice(place.is_first());
  if (o.out.empty() && a.resume.empty() && !o.data.empty() && place.is_first()) o.out = default_run_directory(o.data);
  if (place.ranks) o.out = all_gather(*place.ranks, o.out).front();
  std::unique_ptr<Run> run;
  in_turn(place, [&] { run = prepare(a, given, place, voice); });
  if (!run) return;
  check_alike(place, o.settings_json + o.mesh.text());

  // What this process holds already stays; the arenas come on top, unless they are the GPUs', and the token files are
  // mapped.
  Device& device = run->machine->device();
  const int64_t mine = static_cast<int64_t>(run->trainer->arena_bytes());
  const int64_t on_host = static_cast<int64_t>(run->trainer->host_bytes()) + (device.cuda() ? 0 : mine);
  const int64_t arenas = place.locals > 1 ? sum_over_ranks(place, on_host) : on_host;
  const size_t predicted = process_memory("VmRSS:") + static_cast<size_t>(arenas) + run->data_bytes;
  if (o.offload != Offload::none && !device.cuda())
    voice.notes << "note:  on a CPU all memory is the host's: --offload " << name_of(o.offload)
                << " saves none, and takes time\n";
  if (device.cuda())
    voice.results << "device memory: " << (mine + (1 << 19)) / (1 << 20) << " MiB on "
                  << device.cuda()->properties().name << "\n";
  voice.results << "predicted memory: " << (predicted + (1 << 19)) / (1 << 20) << " MiB\n" << std::flush;
  if (place.ranks && device.cuda()) {
    run->gpus = open_nccl_ranks(*device.cuda(), *place.ranks);
    if (o.mesh.stage > 1)
      run->forward = open_nccl_ranks(*device.cuda(), *place.ranks, true),
      run->backward = open_nccl_ranks(*device.cuda(), *place.ranks, true);
  }
  in_turn(place, [&] { load(*run, o, place, voice); });

  const double peak_gflops = device.cuda()
                                 ? measure_cuda_peak_gflops(*device.cuda(), dtype_of(run->machine->precision()))
                                 : measure_peak_gflops(run->machine->threads());
  const double all_peaks = static_cast<double>(sum_over_ranks(place, std::llround(peak_gflops)));
  Console console(o.steps, run->trainer->state().best_val_loss, a.log_format == "jsonl");
  TrainingObserver nobody;
  const Trainer::Outcome outcome = run->trainer->run(
      place.ranks ? all_peaks : peak_gflops, place.is_first() ? static_cast<TrainingObserver&>(console) : nobody);
  if (outcome.stopped) {
    voice.results << "stopped: train_gpt train --resume --out " << o.out << " goes on\n";
  } else {
    if (outcome.val_loss > 0) voice.results << "validation loss: " << outcome.val_loss << " nats/token";
    if (outcome.val_bits_per_byte > 0) voice.results << ", " << outcome.val_bits_per_byte << " bits/byte";
    if (outcome.val_tokens < outcome.held_out_tokens)
      voice.results << ", on a sample of " << outcome.val_tokens << " of the " << outcome.held_out_tokens
                    << " held-out tokens (eval RUN --data takes all)";
    if (outcome.val_loss > 0) voice.results << "\n";
    voice.results << "trained in " << format_seconds(outcome.seconds) << " at "
                  << format_count(outcome.tokens_per_second) << " tokens/s: " << o.out << "\n";
  }
  if (place.is_first() && outcome.step_ms > 0) {
    const double step_ms = predicted_step_ms(run->trainer->model(), o, device, peak_gflops, a.hardware, place.locals);
    char line[128];
    std::snprintf(line, sizeof line, "step time: %.4g ms predicted, %.4g ms measured (median)\n", step_ms,
                  outcome.step_ms);
    voice.results << line << "arena: " << run->trainer->arena_bytes() << " bytes planned, "
                  << run->trainer->allocated_bytes() << " bytes allocated\n";
  }
  voice.results << "peak memory: " << (process_memory("VmHWM:") + (1 << 19)) / (1 << 20) << " MiB\n" << std::flush;
}

void train(Arguments& a, const Given& given) {
  a.device.check();
  take_model_from_data(a);
  const TrainOptions& o = a.train;
  if (!a.model.names_directory())
    a.model.resolve(1, kDefaultModel);  // what is wrong with its flags is said before any work
  if (a.explain) {
    if (is_resumed(a)) fail_usage("--explain is for new runs; RUN/config.json holds the values of one that is resumed");
    if (o.steps && o.tokens) fail_usage("--steps and --tokens both say how long; give one");
    return explain(a, given, a.model.names_directory() ? find_checkpoint(a.model.preset, Which::best).path : "");
  }
  int ranks = a.ranks;
  if (a.device.on_cuda()) {
    const int gpus = count_cuda_devices();
    if (ranks > gpus)
      fail_usage("--ranks ", ranks, ", but there are ", gpus, " GPUs; --device cpu trains on CPU threads");
    if (!ranks && processes_of_launcher() == 0) ranks = std::max(gpus, a.mesh.ranks());
    if (std::max(ranks, processes_of_launcher()) > 1 && !nccl_is_built_in())
      fail_usage(
          "several GPUs need NCCL, without which this binary was built (`make NCCL=1`); --ranks 1 trains on one");
  }
  if (!ranks && processes_of_launcher() == 0) ranks = a.mesh.ranks();
  run_on_ranks(ranks, [&](const RankPlace& place) { train_on(a, given, place); });
}

}  // namespace

Command train_command() {
  const auto arguments = std::make_shared<Arguments>();
  return {"train", "Train a GPT on text or token shards", train_options(*arguments),
          "What is not given follows from the model's size and the data; the first lines of a run say how.\n\n"
          "Examples:\n"
          "  train_gpt train --data shakespeare.txt                      a small GPT, its defaults by rule\n"
          "  train_gpt train tiny --data shakespeare.txt --steps 2000    a preset, and how long\n"
          "  train_gpt train --data tokens/ --depth 12                   the size by one dial\n"
          "  train_gpt train --depth 12 --explain                        every value, its rule and its source\n"
          "  train_gpt train --data tokens/ --layers 8 --channels 512    dimensions of your own\n"
          "  train_gpt train gpt2 --data a.jsonl.zst b/ --tokenizer gpt2/    several texts, by GPT-2's tokenizer\n"
          "  train_gpt train --data 0.7:web/ 0.3:books/                  a mixture of token shards\n"
          "  train_gpt train --resume --out runs/shakespeare             go on with an interrupted run",
          [arguments](const Given& given) { train(*arguments, given); }};
}

}  // namespace llm
