// train_gpt eval: the loss of a trained model on data, or how many multiple-choice tasks it gets right.
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <numbers>
#include <optional>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/checkpoint/loaded_model.h"
#include "llm/cli/commands.h"
#include "llm/cli/options.h"
#include "llm/cli/progress.h"
#include "llm/cli/ranks.h"
#include "llm/infer/evaluate.h"
#include "llm/infer/score_choices.h"
#include "llm/text/tokenize.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

struct EvalFlags {
  int ranks = 0;
  std::string model, data, choices, scores, split, format = "text";
  std::string delimiter = " ";
  int64_t batch = 0, context = 0, batches = 0;
  DeviceOptions device;
  WeightOptions weights;
};

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    const char* parent = std::getenv("TMPDIR");
    path_ = std::string(parent && *parent ? parent : "/tmp") + "/train_gpt-eval-XXXXXX";
    if (!::mkdtemp(path_.data()))
      fail("cannot create a directory for the text's tokens, ", path_, ": ", std::strerror(errno),
           "; TMPDIR says where");
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// What is evaluated. The stream's files stay mapped when their directory is removed.
struct EvalData {
  TokenStream stream;
  std::string split;           // "val split", for the person
  double bytes_per_token = 0;  // 0: unknown
};

// The run's settings, or the usual ones of a model that no run made (an imported one has none).
TrainOptions settings_for(const LoadedModel& model) {
  const CheckpointInfo& checkpoint = model.checkpoint();
  const bool of_run =
      checkpoint.has_trainer_state && !json_or_null(read_trainer_state(checkpoint.path).settings_json).empty();
  return of_run ? settings_of(checkpoint) : TrainOptions();
}

// The token at which documents begin that the model never looked beyond; -1: it looked across.
int32_t document_token(const LoadedModel& model) {
  if (!settings_for(model).document_mask) return -1;
  if (!model.tokenizer())
    fail(model.checkpoint().path, ": it was trained with --document-mask, but which token ends a text is not known (",
         model.no_tokenizer(), ")");
  return model.tokenizer()->end_of_text();
}

Dataset open_text(const EvalFlags& flags, const LoadedModel& model, const std::string& directory, ThreadTeam& threads) {
  if (!model.tokenizer())
    fail("--data ", flags.data, " is text, but the model has no tokenizer to read it with (", model.no_tokenizer(),
         "); give token shards");
  const TrainOptions settings = settings_for(model);
  return open_dataset({flags.data}, {directory, settings.val_fraction, model.tokenizer(), settings.text_key}, threads);
}

void check_tokenizer(const EvalFlags& flags, const LoadedModel& model, const Dataset& dataset) {
  if (!dataset.tokenizer || !model.has_tokenizer_file()) return;
  // A tokenizer of an unknown kind is another than the data's, which could be read.
  if (!model.tokenizer() || model.tokenizer()->json() != dataset.tokenizer->json())
    fail("--data ", flags.data, " was tokenized by another tokenizer than that of ", model.checkpoint().path,
         "; give the text, or tokenize it with --tokenizer ", model.checkpoint().path, "/tokenizer.json");
}

EvalData choose_split(const EvalFlags& flags, Dataset dataset) {
  std::string split = flags.split;
  // Shards that were named, none of them "val": they are what is meant.
  const bool named = flags.data.ends_with(".bin") || flags.data.find_first_of("*?[") != flags.data.npos;
  if (split.empty()) split = dataset.val.shards().empty() && named ? "all" : "val";
  EvalData data;
  data.split = split == "all" ? "all tokens" : split + " split";
  if (split == "all") {
    const auto train = static_cast<double>(dataset.train.size()), val = static_cast<double>(dataset.val.size());
    const bool known =
        (train == 0 || dataset.train_bytes_per_token > 0) && (val == 0 || dataset.val_bytes_per_token > 0);
    if (known && train + val > 0)
      data.bytes_per_token =
          (train * dataset.train_bytes_per_token + val * dataset.val_bytes_per_token) / (train + val);
    std::vector<std::string> paths;
    for (const TokenStream* stream : {&dataset.train, &dataset.val})
      for (const TokenShard& shard : stream->shards()) paths.push_back(shard.path());
    data.stream = TokenStream(paths);
  } else {
    data.bytes_per_token = split == "val" ? dataset.val_bytes_per_token : dataset.train_bytes_per_token;
    data.stream = std::move(split == "val" ? dataset.val : dataset.train);
  }
  if (data.stream.size() < 2)
    fail("--data ", flags.data, ": ", data.stream.size() == 1 ? "only one token" : "no tokens", " in the ", data.split,
         split == "val" ? "; --split all takes everything" : "");
  return data;
}

EvalData open_data(const EvalFlags& flags, const LoadedModel& model, ThreadTeam& threads) {
  std::optional<TemporaryDirectory> temporary;
  const bool text = is_text({0, flags.data});
  if (text) temporary.emplace();
  Dataset dataset = text ? open_text(flags, model, temporary->path(), threads) : open_dataset(flags.data, "", threads);
  check_tokenizer(flags, model, dataset);
  EvalData data = choose_split(flags, std::move(dataset));
  // With --batches, too little is read for it to be worth a look at everything first: the evaluator looks as it goes.
  if (flags.batches == 0)
    if (const int32_t largest = data.stream.largest_token(); largest >= model.config().vocabulary)
      fail("--data ", flags.data, " holds token ", largest, " but the model's vocabulary is ",
           model.config().vocabulary, ": the data was tokenized for another model");
  return data;
}

std::string result_text(const EvalFlags& flags, const Evaluator::Result& result, const EvalData& data) {
  const double bits = data.bytes_per_token > 0 ? result.loss / std::numbers::ln2 / data.bytes_per_token : 0;
  if (flags.format == "json") {
    Json j;
    j["loss"] = result.loss;
    if (bits > 0) j["bits_per_byte"] = bits;
    j["perplexity"] = std::exp(result.loss);
    j["tokens"] = result.tokens;
    return j.dump() + "\n";
  }
  char line[200], bits_text[40] = "";
  if (bits > 0) std::snprintf(bits_text, sizeof bits_text, ", %.4f bits/byte", bits);
  std::snprintf(line, sizeof line, "loss %.4f nats/token%s, perplexity %.2f, over %lld tokens (%s)\n", result.loss,
                bits_text, std::exp(result.loss), static_cast<long long>(result.tokens), data.split.c_str());
  return line;
}

void write_result(const std::string& text, const LoadedModel& model) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    fail("cannot write standard output: ", std::strerror(errno));
  std::fprintf(stderr, "model: %s\n", model.description().c_str());
}

std::vector<TokenizedChoice> read_tasks(const EvalFlags& flags, const LoadedModel& model, int64_t context) {
  if (!model.tokenizer())
    fail("--choices ", flags.choices, " is text, but the model has no tokenizer to read it with (",
         model.no_tokenizer(), ")");
  if (model.tokenizer()->vocabulary() > model.config().vocabulary)
    fail(model.checkpoint().path, ": its tokenizer has ", model.tokenizer()->vocabulary(), " tokens, the model only ",
         model.config().vocabulary);
  std::vector<TokenizedChoice> tasks;
  for (const Choice& choice : read_choices(flags.choices))
    tasks.push_back(tokenize_choice(choice, *model.tokenizer(), context,
                                    concat(flags.choices, ": task ", tasks.size() + 1), flags.delimiter));
  return tasks;
}

std::string choices_text(const EvalFlags& flags, const ChoiceScorer::Result& result) {
  const auto share = [&](int64_t right) { return static_cast<double>(right) / static_cast<double>(result.tasks); };
  if (flags.format == "json") {
    const Json j = {{"accuracy", share(result.right)},
                    {"accuracy_per_token", share(result.right_per_token)},
                    {"accuracy_per_character", share(result.right_per_character)},
                    {"accuracy_per_byte", share(result.right_per_byte)},
                    {"tasks", result.tasks}};
    return j.dump() + "\n";
  }
  char line[200];
  std::snprintf(
      line, sizeof line,
      "accuracy %.4f by likelihood per token, %.4f per character, %.4f per byte, %.4f in total, over %lld tasks\n",
      share(result.right_per_token), share(result.right_per_character), share(result.right_per_byte),
      share(result.right), static_cast<long long>(result.tasks));
  return line;
}

// One JSON list a task: its endings' log-likelihoods, with all digits of a float.
std::string scores_text(const ChoiceScorer& scorer, int64_t tasks) {
  std::string text;
  for (int64_t task = 0; task < tasks; ++task)
    text += Json(scorer.log_likelihoods(static_cast<size_t>(task))).dump() + "\n";
  return text;
}

// "eval: [####....] 12 of 100 tasks, accuracy 0.300, 0:05 left"
std::string choices_progress(const ChoiceScorer::Result& so_far, int64_t total, double seconds) {
  constexpr int64_t width = 24;
  const int64_t filled = so_far.tasks * width / total;
  const double done = static_cast<double>(so_far.tasks);
  std::string line =
      concat("eval: [", std::string(static_cast<size_t>(filled), '#'),
             std::string(static_cast<size_t>(width - filled), '.'), "] ", so_far.tasks, " of ", total, " tasks");
  if (so_far.tasks == 0) return line;
  char accuracy[32];
  std::snprintf(accuracy, sizeof accuracy, ", accuracy %.3f", static_cast<double>(so_far.right_per_token) / done);
  return line + accuracy + ", " + format_seconds(seconds / done * (static_cast<double>(total) - done)) + " left";
}

void evaluate_choices(const EvalFlags& flags) {
  OpenedMachine opened(flags.device);
  Target target = opened.target();
  target.weights = flags.weights.type_held(flags.device);
  LoadedModel model(flags.model, dtype_of(opened.precision()), target.weights);
  const int64_t context = flags.context ? flags.context : model.config().context;
  if (context > model.config().context)
    fail_usage("--context ", context, " is longer than the model's of ", model.config().context);
  ChoiceScorer scorer(model.config(), read_tasks(flags, model, context), flags.batch, model.layout(), target);
  scorer.bind(model.load(scorer.arena_bytes(), opened.device(),
                         target.weights ? std::nullopt : flags.weights.type(flags.device)));
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  const auto begin = std::chrono::steady_clock::now();
  ProgressLine progress;
  const ChoiceScorer::Result result = scorer.run([&](const ChoiceScorer::Result& so_far, int64_t total) {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (terminal) progress.show(choices_progress(so_far, total, seconds.count()));
  });
  progress.clear();
  if (!flags.scores.empty()) write_file_atomically(flags.scores, scores_text(scorer, result.tasks));
  write_result(choices_text(flags, result), model);
}

// On each rank. The ranks share the batches, so they all have the whole result, of which rank 0 speaks.
void evaluate_text(const EvalFlags& flags, const RankPlace& place) {
  std::unique_ptr<OpenedMachine> opened;
  std::unique_ptr<LoadedModel> model;
  std::unique_ptr<Evaluator> evaluator;
  EvalData data;
  in_turn(place, [&] {
    opened = std::make_unique<OpenedMachine>(flags.device, place.local, place.locals);
    Target target = opened->target();
    target.weights = flags.weights.type_held(flags.device);
    model = std::make_unique<LoadedModel>(flags.model, dtype_of(opened->precision()), target.weights);
    const int64_t trained = settings_for(*model).context;
    const int64_t context = flags.context ? flags.context : trained ? trained : model->config().context;
    if (context > model->config().context)
      fail_usage("--context ", context, " is longer than the model's of ", model->config().context);
    data = open_data(flags, *model, opened->threads());
    // About 4096 tokens fill the threads; more would only take memory. Logits of packed weights exist for all at a time.
    const int64_t most = target.weights ? 1024 : 4096;
    const int64_t batch = flags.batch ? flags.batch : std::clamp<int64_t>(most / context, 1, 64);
    evaluator =
        std::make_unique<Evaluator>(model->config(), batch, context, model->layout(), target, document_token(*model));
    evaluator->bind(model->load(evaluator->arena_bytes(), opened->device(),
                                target.weights ? std::nullopt : flags.weights.type(flags.device)));
  });
  const bool terminal = place.is_first() && ::isatty(STDERR_FILENO) == 1;
  ProgressLine progress;
  const Evaluator::Result result = evaluator->run(
      data.stream, flags.batches,
      [&](int64_t done, int64_t total) {
        if (terminal) progress.show(concat("eval: batch ", done, " of ", total));
      },
      place.ranks);
  if (!place.is_first()) return;
  progress.clear();
  if (!std::isfinite(result.loss))
    fail(model->checkpoint().path, ": the loss is ", result.loss,
         ": its weights are damaged, or its training diverged");
  write_result(result_text(flags, result, data), *model);
}

void evaluate(const EvalFlags& flags) {
  flags.device.check();
  flags.weights.type(flags.device);
  if (flags.data.empty() == flags.choices.empty())
    fail_usage("eval needs --data, or --choices for multiple-choice tasks");
  if (!flags.choices.empty() && (!flags.split.empty() || flags.batches > 0))
    fail_usage(flags.batches > 0 ? "--batches" : "--split", " goes with --data: of --choices all tasks are scored");
  if (flags.choices.empty() && (!flags.scores.empty() || flags.delimiter != " "))
    fail_usage(flags.scores.empty() ? "--delimiter" : "--scores", " goes with --choices");
  if (!flags.choices.empty() && flags.ranks > 1) fail_usage("--ranks goes with --data: --choices are scored on one");
  if (!flags.choices.empty()) return evaluate_choices(flags);
  run_on_ranks(flags.ranks, [&](const RankPlace& place) { evaluate_text(flags, place); });
}

}  // namespace

Command eval_command() {
  const auto flags = std::make_shared<EvalFlags>();
  EvalFlags& f = *flags;
  Options options = {
      trained_model(f.model),
      Option("--data", &f.data, "a text file, a directory of token shards, one shard, or a quoted glob of shards"),
      Option("--choices", &f.choices,
             "instead of --data: multiple-choice tasks, one JSON object a line, as HellaSwag's: "
             "{\"ctx\": text, \"endings\": [text, ...], \"label\": the right one's number}"),
      Option("--delimiter", &f.delimiter, "with --choices: what joins a context and an ending (one blank)"),
      Option("--scores", &f.scores,
             "with --choices: also write each ending's log-likelihood in nats, one JSON list a task, to this file"),
      Option("--split", &f.split,
             "val: what was held out, of a text file the same last part as in training; train; or all (val, or all of "
             "named shards that have no val)")
          .among({"val", "train", "all"}),
      Option("--ranks", &f.ranks, "share the batches among so many ranks of this host, as train does").between(1, 256),
      Option("--batch", &f.batch, "windows at a time (about 4096 tokens)").between(1, 65536),
      Option("--context", &f.context, "tokens a window (the run's context, or the model's)").between(1, 1 << 24),
      Option("--batches", &f.batches, "only so many batches, evenly spaced; 0: all").at_least(0).with_default(),
      Option("--format", &f.format, "text or json").among({"text", "json"}).with_default()};
  append(options, f.device.options());
  append(options, f.weights.options(), "Machine");
  return {
      "eval", "Measure the loss of a trained model on data", options,
      "Every token of the split but the first is predicted once, in windows without overlap. A text file is read with "
      "the\n"
      "run's own tokenizer. The result goes to standard output; as json it is {\"loss\", \"bits_per_byte\", "
      "\"perplexity\",\n"
      "\"tokens\"}, without bits_per_byte where the text's length is not known.\n"
      "With --choices the likeliest ending is the model's answer: by the likelihood per token (as llm.c counts "
      "HellaSwag),\n"
      "per character (lm-evaluation-harness's acc_norm), per byte (its acc_bytes) and in total (its acc); as json\n"
      "{\"accuracy\", \"accuracy_per_token\", \"accuracy_per_character\", \"accuracy_per_byte\", \"tasks\"}.\n\n"
      "Examples:\n"
      "  train_gpt eval runs/shakespeare --data shakespeare.txt\n"
      "  train_gpt eval runs/shakespeare/checkpoints/500 --data other.txt --split all --format json\n"
      "  train_gpt eval runs/gpt2 --choices hellaswag_val.jsonl",
      [flags](const Given&) { evaluate(*flags); }};
}

}  // namespace llm
