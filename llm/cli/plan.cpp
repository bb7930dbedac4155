// The subcommand plan: from a model and a machine to the fastest layout, predicted, with the command that trains it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>

#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/threads.h"
#include "llm/cli/commands.h"
#include "llm/cli/options.h"
#include "llm/cli/plan_validation.h"
#include "llm/cli/progress.h"
#include "llm/plan/search.h"
#include "llm/train/rules.h"

namespace llm {
namespace {

constexpr size_t kShown = 5;  // plans

struct PlanFlags {
  ModelOptions model;
  std::string hardware, format = "text", validate, tokens;
  std::optional<Precision> dtype;
  std::optional<OptimizerKind> optimizer;
  Objective objective = Objective::time;
  int64_t gpus = 0, nodes = 0, step_tokens = 0, threads = 0;
  double hours = 0;
  bool why = false, rows = false;
};

std::string format(const char* how, double value) {
  char text[64];
  std::snprintf(text, sizeof text, how, value);
  return text;
}

// "10B", "300M", "2.5T", "100k" or a number.
double count_of(const std::string& text, const char* flag) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const std::string unit = end;
  const double factor = unit.empty()                 ? 1
                        : unit == "k" || unit == "K" ? 1e3
                        : unit == "M"                ? 1e6
                        : unit == "B" || unit == "G" ? 1e9
                        : unit == "T"                ? 1e12
                                                     : 0;
  if (end == text.c_str() || factor == 0 || !(value > 0) || value * factor > 1e18)
    fail_usage(flag, " ", text, " is no count of tokens; 10B, 300M or 2.5T would be one");
  return value * factor;
}

struct Planned {
  Job job;
  Hardware hardware;
  int ranks = 0, nodes = 1;
  double tokens = 0;  // of the run; 0: not said
};

Planned planned(const PlanFlags& f) {
  if (f.gpus == 0) fail_usage("--gpus is missing: how many ranks there are");
  if (f.hardware.empty()) fail_usage("--hardware is missing: a machine's name, or the file of `bench --hardware-out`");
  if (!f.tokens.empty() && f.hours > 0) fail_usage("--tokens and --hours both say how long; give one");
  Planned p;
  p.hardware = hardware_of(f.hardware);
  p.ranks = static_cast<int>(f.gpus);
  const int a_node = p.hardware.cuda ? static_cast<int>(p.hardware.ranks_a_node) : p.ranks;
  p.nodes = f.nodes ? static_cast<int>(f.nodes) : (p.ranks + a_node - 1) / a_node;
  if (p.ranks % p.nodes) fail_usage("--nodes ", p.nodes, " do not divide --gpus ", p.ranks);
  p.hardware.ranks_a_node = p.ranks / p.nodes;
  if (!p.hardware.cuda) p.hardware = shared_by(p.hardware, p.ranks / p.nodes);
  Job& job = p.job;
  job.model = f.model.resolve(0, "small");
  job.context = job.model.context;
  const Precision precision = f.dtype.value_or(p.hardware.cuda ? Precision::bf16 : Precision::fp32);
  const int threads = f.threads ? static_cast<int>(f.threads) : available_threads();
  job.target = {.threads = std::max(1, threads / (p.ranks / p.nodes)), .cuda = p.hardware.cuda, .precision = precision};
  const int64_t usual = std::max<int64_t>(p.hardware.cuda ? 1 << 19 : 1024, p.ranks * job.context);
  const int64_t step_tokens = f.step_tokens ? f.step_tokens : usual;
  job.step_samples = step_tokens / job.context;
  if (job.step_samples < 1)
    fail_usage("--global-batch-tokens ", step_tokens, " are fewer than a sequence of ", job.context);
  job.recipe.optimizer = f.optimizer.value_or(usual_optimizer(job.model, job.context, job.step_samples * job.context));
  job.recipe.zero_projections = usually_zero_projections(*job.recipe.optimizer);
  job.recipe.dtype = precision;
  complete_routers(job.recipe, job.model);
  if (!f.tokens.empty()) p.tokens = count_of(f.tokens, "--tokens");
  return p;
}

double tokens_per_second(const Planned& p, const Plan& plan) {
  return static_cast<double>(p.job.step_samples * p.job.context) / plan.time.total();
}

// FLOPs that training needs by what all ranks could make.
double mfu_of(const Planned& p, const Plan& plan) {
  return training_flops_per_token(p.job.model, p.job.context) * tokens_per_second(p, plan) /
         (p.ranks * p.hardware.peak_tflops * 1e12);
}

// Hours of the run; 0: its length is not said.
double hours_of(const Planned& p, const PlanFlags& f, const Plan& plan) {
  return p.tokens > 0 ? p.tokens / tokens_per_second(p, plan) / 3600 : f.hours;
}

std::string percent(double share) { return format("%.1f %%", 100 * share); }

// Why a plan is none of the best: it does not fit, or what makes it slower.
std::string rejection_of(const Plan& best, const Plan& p) {
  if (!p.rejection.empty()) return p.rejection;
  const double more = p.time.total() / best.time.total() - 1;
  std::string text = more >= 0 ? percent(more) + " slower" : percent(-more) + " faster";
  using Part = std::pair<const char*, double StepTime::*>;
  const Part parts[] = {{"compute", &StepTime::compute},
                        {"exchange", &StepTime::exchange},
                        {"bubble", &StepTime::bubble},
                        {"optimizer", &StepTime::optimizer}};
  const auto growth = [&](const Part& part) { return p.time.*part.second - best.time.*part.second; };
  const Part most = *std::max_element(std::begin(parts), std::end(parts),
                                      [&](const Part& a, const Part& b) { return growth(a) < growth(b); });
  if (growth(most) > 0)
    text += concat(": ", most.first, " ", percent(p.time.*most.second / p.time.total()), " of the step, here ",
                   percent(best.time.*most.second / best.time.total()));
  return text;
}

// The model as the command line said it.
std::string model_text(PlanFlags& f, const Given& given) {
  std::string text = f.model.preset.empty() ? " small" : " " + f.model.preset;
  for (const Option& option : f.model.options())
    if (option.name != "MODEL" && given.contains(option.name)) text += concat(" ", option.name, " ", text_of(option));
  return text;
}

std::string command_of(const Planned& p, PlanFlags& f, const Plan& plan, const Given& given) {
  const Layout& l = plan.layout;
  std::string text = p.nodes > 1 ? concat("mpirun -np ", p.ranks, " ") : "";
  text += concat("train_gpt train", model_text(f, given), " --data tokens/");
  text += p.hardware.cuda ? " --device cuda" : " --device cpu";
  text += concat(" --dtype ", name_of(p.job.target.precision));
  if (p.nodes == 1 && p.ranks > 1) text += concat(" --ranks ", p.ranks);
  if (l.mesh.tensor > 1) text += concat(" --tensor ", l.mesh.tensor);
  if (l.mesh.context > 1) text += concat(" --context-ranks ", l.mesh.context);
  if (l.exchange == ContextExchange::ring) text += " --context-exchange ring";
  if (l.mesh.expert > 1) text += concat(" --expert-ranks ", l.mesh.expert);
  if (l.is_pipeline()) text += concat(" --stages ", l.mesh.stage, " --pipeline ", name_of(l.pipeline));
  if (l.chunks > 1) text += concat(" --chunks ", l.chunks);
  text += concat(" --zero ", l.zero, " --batch ", l.batch, " --grad-accum ", l.grad_accum);
  text += concat(" --optimizer ", name_of(*p.job.recipe.optimizer));
  if (plan.budget) text += concat(" --memory-budget ", plan.budget >> 20, "MiB");
  if (l.offload) text += " --offload optimizer";
  const double tokens = p.tokens > 0 ? p.tokens : f.hours > 0 ? f.hours * 3600 * tokens_per_second(p, plan) : 0;
  if (tokens > 0) text += concat(" --tokens ", static_cast<int64_t>(tokens));
  return text + " --sample-every 0";
}

// `best`: of a neighbour, the plan that it is rejected beside; null: of one of the best.
Json json_of(const Planned& p, PlanFlags& f, const Plan& plan, const Given& given, const Plan* best = nullptr) {
  const Layout& l = plan.layout;
  Json j = {{"mesh",
             {{"data", l.mesh.data},
              {"stage", l.mesh.stage},
              {"context", l.mesh.context},
              {"tensor", l.mesh.tensor},
              {"expert", l.mesh.expert}}},
            {"zero", l.zero},
            {"micro_batch", l.batch},
            {"grad_accum", l.grad_accum},
            {"recomputation", name_of(l.recompute)},
            {"schedule", l.is_pipeline() ? name_of(l.pipeline) : "none"},
            {"context_exchange", l.mesh.context > 1 ? name_of(l.exchange) : "none"},
            {"offload", l.offload}};
  if (plan.time.total() > 0) {
    j["step_ms"] = {{"total", 1e3 * plan.time.total()},
                    {"compute", 1e3 * plan.time.compute},
                    {"exchange", 1e3 * plan.time.exchange},
                    {"bubble", 1e3 * plan.time.bubble},
                    {"optimizer", 1e3 * plan.time.optimizer}};
    j["memory_bytes"] = {{"total", plan.memory.device()},          {"parameters", plan.memory.parameters},
                         {"gradients", plan.memory.gradients},     {"optimizer", plan.memory.state},
                         {"activations", plan.memory.activations}, {"host", plan.memory.host}};
    j["tokens_per_second"] = tokens_per_second(p, plan);
    j["mfu"] = mfu_of(p, plan);
  }
  if (best) {
    j["rejected"] = rejection_of(*best, plan);
    return j;
  }
  if (const double hours = hours_of(p, f, plan); hours > 0) {
    j["hours"] = hours, j["tokens"] = hours * 3600 * tokens_per_second(p, plan);
    if (p.hardware.price > 0) j["price"] = hours * p.ranks * p.hardware.price;
  }
  j["command"] = command_of(p, f, plan, given);
  return j;
}

using Rows = std::vector<std::vector<std::string>>;

void print_table(const Rows& rows) {
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string blanks(widths[i] - row[i].size(), ' ');
      line += (i ? "  " : "") + (i == 0 ? row[i] + blanks : blanks + row[i]);
    }
    std::cout << line << "\n";
  }
}

std::string mesh_text(const Layout& l) {
  return concat("data ", l.mesh.data, " x stage ", l.mesh.stage,
                l.mesh.context > 1
                    ? concat(" x context ", l.mesh.context, l.exchange == ContextExchange::ring ? " in a ring" : "")
                    : std::string(),
                " x tensor ", l.mesh.tensor, l.mesh.expert > 1 ? concat(" x expert ", l.mesh.expert) : std::string());
}

std::string schedule_text(const Layout& l) {
  return !l.is_pipeline() ? "-" : l.chunks > 1 ? concat(name_of(l.pipeline), " ", l.chunks) : name_of(l.pipeline);
}

std::string gib(size_t bytes) { return format("%.1f", static_cast<double>(bytes) * 0x1p-30); }

void print_text(const Planned& p, PlanFlags& f, const Plans& plans, const Given& given) {
  std::cout << parameter_count(p.job.model) << " parameters, " << p.job.step_samples << " sequences of "
            << p.job.context << " tokens a step, " << name_of(*p.job.recipe.optimizer) << ", "
            << name_of(p.job.target.precision) << "; " << p.ranks << " ranks on " << p.nodes
            << (p.nodes > 1 ? " nodes" : " node") << " of " << p.hardware.name << "; " << plans.tried << " layouts\n\n";
  Rows rows = {{"", "ZeRO", "batch", "recomputes", "schedule", "step ms", "compute", "exchange", "bubble", "optimizer",
                "GiB", "parameters", "gradients", "optimizer", "activations", "tokens/s", "MFU"}};
  const bool has_length = p.tokens > 0 || f.hours > 0;
  if (has_length) rows[0].insert(rows[0].end(), {p.tokens > 0 ? "hours" : "tokens", "price"});
  for (const Plan& plan : plans.best) {
    const Layout& l = plan.layout;
    const StepTime& t = plan.time;
    const RankMemory& m = plan.memory;
    const auto ms = [](double seconds) { return format(seconds < 0.1 ? "%.2f" : "%.0f", 1e3 * seconds); };
    rows.push_back({mesh_text(l), std::to_string(l.zero), concat(l.batch, " x ", l.grad_accum), name_of(l.recompute),
                    schedule_text(l), ms(t.total()), ms(t.compute), ms(t.exchange), ms(t.bubble), ms(t.optimizer),
                    gib(m.device()), gib(m.parameters), gib(m.gradients), gib(m.state), gib(m.activations),
                    format_count(tokens_per_second(p, plan)), percent(mfu_of(p, plan))});
    if (!has_length) continue;
    const double hours = hours_of(p, f, plan);
    rows.back().push_back(p.tokens > 0 ? format("%.1f", hours)
                                       : format_count(hours * 3600 * tokens_per_second(p, plan)));
    rows.back().push_back(p.hardware.price > 0 ? format("%.0f", hours * p.ranks * p.hardware.price) : "-");
  }
  print_table(rows);
  for (size_t i = 0; i < plans.best.size(); ++i)
    std::cout << "\n" << i + 1 << ". " << command_of(p, f, plans.best[i], given) << "\n";
  if (plans.neighbours.empty()) return;
  std::cout << "\nrejected beside the first:\n";
  for (const Plan& n : plans.neighbours)
    std::cout << "  " << mesh_text(n.layout) << ", " << n.layout.batch << " x " << n.layout.grad_accum
              << ", recomputes " << name_of(n.layout.recompute) << ": " << rejection_of(plans.best[0], n) << "\n";
}

void print_validation(const PlanFlags& f) {
  const Validation v = validate(f.validate, f.hardware);
  Json rows = Json::array();
  Rows table = {{"line", "measured ms", "predicted ms", "error", "measured GiB", "predicted GiB", "layout"}};
  int64_t measured = 0, failed = 0, refused = 0, wrongly = 0, unknown = 0;
  const auto known = [](const char* how, double value) { return value > 0 ? format(how, value) : std::string("-"); };
  for (const ValidatedRow& row : v.rows) {
    measured += row.predicted_ms > 0 ? 1 : 0, failed += row.failed ? 1 : 0;
    unknown += !row.failed && row.predicted_ms == 0 ? 1 : 0;
    refused += row.failed && !row.fits ? 1 : 0, wrongly += !row.failed && !row.fits ? 1 : 0;
    Json j = {{"line", row.line}, {"layout", row.layout}};
    if (!row.failed) j["measured_ms"] = row.measured_ms;
    if (row.predicted_ms > 0) j["predicted_ms"] = row.predicted_ms;
    if (row.measured_gib > 0) j["measured_gib"] = row.measured_gib;
    if (row.predicted_gib > 0) j["predicted_gib"] = row.predicted_gib;
    rows.push_back(j);
    table.push_back({std::to_string(row.line), known("%.1f", row.measured_ms), known("%.1f", row.predicted_ms),
                     row.predicted_ms > 0 ? format("%+.1f %%", 100 * row.error()) : "-",
                     known("%.1f", row.measured_gib), known("%.1f", row.predicted_gib), row.layout});
  }
  const bool has_memory = v.memory_correlation != 0;
  if (f.format == "json") {
    Json result = {{"rows", measured},
                   {"mean_error", v.mean_error},
                   {"median_error", v.median_error},
                   {"rank_correlation", v.rank_correlation},
                   {"regret", v.regret}};
    if (unknown) result["not_predicted"] = unknown;
    if (has_memory)
      result.update({{"memory_correlation", v.memory_correlation},
                     {"failed", failed},
                     {"failed_predicted_not_to_fit", refused},
                     {"measured_predicted_not_to_fit", wrongly}});
    if (f.rows) result["each"] = rows;
    std::cout << result.dump(1) << "\n";
    return;
  }
  if (f.rows) print_table(table), std::cout << "\n";
  std::cout << measured << " rows: error " << format("%.1f %%", 100 * v.mean_error) << " on average, median "
            << format("%.1f %%", 100 * v.median_error) << "; rank correlation " << format("%.3f", v.rank_correlation)
            << "; the layout that is predicted to be the fastest takes " << format("%.1f %%", 100 * v.regret)
            << " longer than the fastest\n";
  if (unknown) std::cout << unknown << " rows are layouts that train does not have\n";
  if (has_memory)
    std::cout << "memory: rank correlation " << format("%.3f", v.memory_correlation) << "; of " << failed
              << " rows that failed " << refused << " are predicted not to fit, of those that ran " << wrongly << "\n";
}

// How many of the ranks train a token for the least money: the fewer, the less they wait for each other.
int64_t cheapest_ranks(PlanFlags f) {
  int64_t cheapest = f.gpus;
  double least = 0;
  for (f.nodes = 0; f.gpus >= 1; f.gpus /= 2) {
    try {
      const Planned p = planned(f);
      const double cost = search(p.job, p.hardware, p.ranks, Objective::time, 1, false).best[0].time.total() * p.ranks;
      if (least == 0 || cost < least) least = cost, cheapest = f.gpus;
    } catch (const UsageError&) {
      if (f.gpus == 1 && least == 0) throw;  // nor do fewer do
    }
  }
  return cheapest;
}

void plan(PlanFlags& f, const Given& given) {
  if (!f.validate.empty()) return print_validation(f);
  if (f.objective == Objective::cost && f.gpus > 0) {
    if (!f.step_tokens) f.step_tokens = static_cast<int64_t>(planned(f).job.step_samples * planned(f).job.context);
    f.gpus = cheapest_ranks(f), f.nodes = 0;
  }
  const Planned p = planned(f);
  const Plans plans = search(p.job, p.hardware, p.ranks, f.objective, kShown, f.why);
  if (f.format == "text") return print_text(p, f, plans, given);
  Json all = Json::array(), rejected = Json::array();
  for (const Plan& one : plans.best) all.push_back(json_of(p, f, one, given));
  for (const Plan& one : plans.neighbours) rejected.push_back(json_of(p, f, one, given, &plans.best[0]));
  Json result = {{"hardware", p.hardware.name}, {"ranks", p.ranks}, {"nodes", p.nodes}, {"plans", all}};
  if (f.why) result["rejected"] = rejected;
  std::cout << result.dump(1) << "\n";
}

}  // namespace

Command plan_command() {
  const auto flags = std::make_shared<PlanFlags>();
  PlanFlags& f = *flags;
  Options options = f.model.options();
  append(
      options,
      {Option("--gpus", &f.gpus, "ranks: GPUs, or with --hardware of a CPU teams of its threads").between(1, 1 << 16),
       Option("--nodes", &f.nodes, "hosts that these are on (as few as hold them)").between(1, 1 << 16),
       Option("--hardware", &f.hardware, "a machine's name, or the file that describes one"),
       Option("--tokens", &f.tokens, "length of the run, e.g. 10B: hours and price are printed"),
       Option("--hours", &f.hours, "length of the run: its tokens and the price are printed").between(0, 1e6),
       Option("--global-batch-tokens", &f.step_tokens, "tokens of a step (half a million, or a sequence a rank)")
           .at_least(1),
       Option("--objective", &f.objective,
              "what is to be the least: time, memory, or cost, for which some of the GPUs may be left out")
           .with_default(),
       Option("--optimizer", &f.optimizer, "muon or adamw (as train's rule has it)"),
       Option("--dtype", &f.dtype, "fp32, bf16 or fp8 (bf16; of a CPU fp32)"),
       Option("--threads", &f.threads, "of a CPU (this one's)").between(0, 1024),
       Option("--why", &f.why, "print why the neighbours of the best plan are none"),
       Option("--validate", &f.validate, "a table of measured step times (CSV): predict its rows instead"),
       Option("--rows", &f.rows, "with --validate: each row"),
       Option("--format", &f.format, "text or json").among({"text", "json"}).with_default()});
  std::string names;
  for (const std::string& name : hardware_names()) names += (names.empty() ? "" : ", ") + name;
  return {
      "plan", "Find the fastest layout of a model on a machine, before there is one", options,
      "Machines: " + names +
          ".\nTime is summed over the nodes of each layout's graph; memory is what train allocates, to the byte.\n\n"
          "Examples:\n"
          "  train_gpt plan llama-3.1-8B --gpus 16 --nodes 2 --hardware h100-sxm --tokens 10B\n"
          "  train_gpt plan gpt2-1.5B --gpus 8 --hardware a100-40 --why\n"
          "  train_gpt plan --validate layouts.csv --format json",
      [flags](const Given& given) { plan(*flags, given); }};
}

}  // namespace llm
