// The subcommand bench: how long each op of a training step takes, and how long this machine would need at the least.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "llm/base/atomic_file.h"
#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/base/random.h"
#include "llm/cli/commands.h"
#include "llm/cli/options.h"
#include "llm/device/ceilings.h"
#include "llm/device/ceilings_cuda.h"
#include "llm/graph/dump.h"
#include "llm/graph/program.h"
#include "llm/graph/staging.h"
#include "llm/model/gpt.h"
#include "llm/train/log.h"
#include "llm/train/rules.h"

namespace llm {
namespace {

using nlohmann::ordered_json;

struct BenchFlags {
  ModelOptions model;
  TrainOptions recipe;
  DeviceOptions device;
  std::string format = "text", save, compare, only;
  int64_t batch = 0, steps = 10;
  bool nodes = false;
};

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// The least seconds a node can take on this machine, and which ceiling says so.
struct Floor {
  double seconds = 0;
  const char* bound = "";
};

// Whether some output lies where an input lay: such an op does not bring the line that it writes into the cache twice.
bool writes_in_place(const Compiled& c, const Node& node) {
  for (TensorId out : node.outputs) {
    if (out == kNone) continue;
    if (c.graph.tensor(out).alias != kNone) return true;
    const size_t place = c.plan.offsets[static_cast<size_t>(out)];
    for (TensorId in : node.inputs)
      if (in != kNone && place != MemoryPlan::kNowhere && c.plan.offsets[static_cast<size_t>(in)] == place) return true;
  }
  return false;
}

// What the bandwidth is held against: reading, copying or updating, whichever is most like the node; of a working set
// in the cache where the node's tensors may still lie there.
Floor floor_of(const Compiled& c, const Node& node, const Ceilings& machine) {
  const Cost cost = cost_of(c.graph, node);
  const double bytes = cost.bytes_read + cost.bytes_written;
  const bool cached = bytes <= static_cast<double>(Ceilings::kCachedBytes);
  const bool reads = cost.bytes_written < 0.1 * cost.bytes_read, in_place = writes_in_place(c, node);
  const double bandwidth = reads      ? (cached ? machine.cached_read_gbs : machine.read_gbs)
                           : in_place ? (cached ? machine.cached_update_gbs : machine.update_gbs)
                                      : (cached ? machine.cached_copy_gbs : machine.copy_gbs);
  const double compute = cost.flops / machine.gflops * 1e-9, memory = bytes / bandwidth * 1e-9;
  if (compute >= memory) return {compute, "flops"};
  return {memory, cached ? "cache" : "memory"};
}

// One line of the result: all nodes of a kind, or of a kind and shape. Per step.
struct Row {
  std::string name;
  int64_t calls = 0;
  double flops = 0, bytes = 0, floor = 0;
  std::map<std::string, double> bounds;  // seconds of the floor by what binds
  std::vector<double> seconds;           // by step
  double time() const { return median(seconds); }
  std::string bound() const {
    const auto less = [](auto& a, auto& b) { return a.second < b.second; };
    return std::max_element(bounds.begin(), bounds.end(), less)->first;
  }
};

std::string shapes_of(const Graph& g, const Node& node) {
  std::string text;
  for (TensorId id : node.inputs) {
    if (id == kNone) continue;
    // The norm of all gradients has hundreds of inputs.
    if (text.size() > 60) return text + " ..";
    text += (text.empty() ? "" : " ") + g.shape(id).text();
  }
  const TensorId out = first_output(node);
  return text + (out == kNone ? "" : " -> " + g.shape(out).text());
}

class Bench {
 public:
  Bench(const BenchFlags& flags, const Machine& on, const ModelConfig& config)
      : flags_(flags), on_(on), config_(config) {
    batch_ = flags.batch;
    TrainingGraph t = build_training_graph(config, batch_, config.context, optimizer_of(flags.recipe), on.target(),
                                           recipe_of(flags.recipe, static_cast<int32_t>(config.vocabulary - 1)));
    tokens_ = t.tokens, targets_ = t.targets, loss_weights_ = t.loss_weights;
    Compiled compiled = compile(std::move(t.graph), t.results(), {});
    layout_.add(compiled.graph);
    const size_t needed = compiled.persistent_bytes + compiled.plan.bytes;
    std::cerr << "bench: " << format_bytes(needed) << " of memory, "
              << (on.cuda ? on.cuda->properties().name : concat(on.threads.size(), " threads")) << ", "
              << name_of(on.dtype) << "\n";
    if (!flags.only.empty()) {
      // The same places in memory, but no other node.
      Compiled part = compiled;
      std::erase_if(part.graph.nodes, [&](const Node& node) { return node.op->name != flags.only; });
      op_named(flags.only);  // throws for an unknown one
      if (part.graph.nodes.empty()) fail_usage("--only ", flags.only, ": a training step of this model has no such op");
      part_ = std::make_unique<Program>(std::move(part), layout_);
    }
    whole_ = std::make_unique<Program>(std::move(compiled), layout_);
    arena_ = std::make_unique<Arena>(whole_->arena_bytes(), on.cuda);
    whole_->bind(*arena_, on.threads);
    if (part_) part_->bind(*arena_, on.threads);
  }

  void run() {
    machine_ = on_.cuda ? measure_cuda_ceilings(*on_.cuda, on_.dtype) : measure_ceilings(on_.threads);
    initialise_parameters();
    // Warm-up: fresh memory is brought in page by page. It also fills the arena for the program of one op.
    fill_inputs(0);
    run_once(*whole_, 0, nullptr);
    Program& program = part_ ? *part_ : *whole_;
    const Graph& g = program.graph();
    prepare_rows(program.compiled());
    fill_inputs(1);
    run_once(program, 1, nullptr);
    for (int64_t step = 0; step < flags_.steps; ++step) {
      fill_inputs(step + 2);
      std::vector<double> seconds(g.nodes.size(), 0);
      double wall = run_once(program, step + 2, &seconds);
      // On a GPU the nodes are timed one by one, the step as the captured whole that training launches.
      if (on_.cuda) {
        fill_inputs(step + 2);
        wall = run_once(program, step + 2, nullptr);
      }
      double sum = 0;
      for (Row& row : ops_) row.seconds.push_back(0);
      for (Row& row : nodes_) row.seconds.push_back(0);
      for (size_t i = 0; i < seconds.size(); ++i) {
        ops_[op_row_[i]].seconds.back() += seconds[i];
        nodes_[node_row_[i]].seconds.back() += seconds[i];
        sum += seconds[i];
      }
      walls_.push_back(wall);
      sums_.push_back(sum);
    }
    const auto slower = [](const Row& a, const Row& b) { return a.time() > b.time(); };
    std::stable_sort(ops_.begin(), ops_.end(), slower);
    std::stable_sort(nodes_.begin(), nodes_.end(), slower);
  }

  ordered_json result() const {
    const auto list = [](const std::vector<Row>& rows) {
      ordered_json array = ordered_json::array();
      for (const Row& r : rows)
        array.push_back({{"name", r.name},
                         {"calls", r.calls},
                         {"ms", r.time() * 1e3},
                         {"gflops", r.time() > 0 ? r.flops / r.time() * 1e-9 : 0},
                         {"gbs", r.time() > 0 ? r.bytes / r.time() * 1e-9 : 0},
                         {"floor_ms", r.floor * 1e3},
                         {"bound", r.bound()}});
      return array;
    };
    const double wall = median(walls_), tokens = static_cast<double>(batch_ * config_.context);
    double floor = 0;
    for (const Row& row : ops_) floor += row.floor;
    ordered_json step = {{"ms", wall * 1e3}, {"ops_ms", median(sums_) * 1e3}, {"floor_ms", floor * 1e3}};
    if (!part_) {
      step["tokens_per_second"] = tokens / wall;
      step["mfu"] = training_flops_per_token(config_, config_.context) * tokens / wall / (machine_.gflops * 1e9);
    }
    return {{"model", flags_.model.preset.empty() ? "small" : flags_.model.preset},
            {"parameters", parameter_count(config_)},
            {"batch", batch_},
            {"context", config_.context},
            {"device", on_.cuda ? on_.cuda->properties().name : "cpu"},
            {"dtype", name_of(on_.dtype)},
            {"threads", on_.threads.size()},
            {"steps", flags_.steps},
            {"only", flags_.only},
            {"ceilings",
             {{"gflops", machine_.gflops},
              {"read_gbs", machine_.read_gbs},
              {"copy_gbs", machine_.copy_gbs},
              {"update_gbs", machine_.update_gbs},
              {"cached_read_gbs", machine_.cached_read_gbs},
              {"cached_copy_gbs", machine_.cached_copy_gbs},
              {"cached_update_gbs", machine_.cached_update_gbs}}},
            {"step", step},
            {"ops", list(ops_)},
            {"nodes", list(nodes_)}};
  }

 private:
  void initialise_parameters() {
    Staging staging(*arena_, layout_);
    for (const Parameter& p : parameter_table(config_, parametrization_of(flags_.recipe))) {
      initialise(on_.threads, p, 1, staging.room(p.name, p.shape.elements()));
      if (on_.dtype == DType::bf16) initialise(on_.threads, p, 1, staging.room(master_of(p.name), p.shape.elements()));
    }
    staging.flush();
  }

  // Before each step: inputs are places in the arena, too, that other tensors take over after their last use.
  void fill_inputs(int64_t step) {
    const Random random(static_cast<uint64_t>(step), stream_of("bench"));
    const int64_t count = batch_ * config_.context;
    const auto token = [&](int64_t i) {
      return static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) * static_cast<double>(config_.vocabulary));
    };
    std::vector<int32_t> tokens(static_cast<size_t>(count) + 1);
    for (int64_t i = 0; i <= count; ++i) tokens[static_cast<size_t>(i)] = token(i);
    whole_->write(tokens_, tokens.data());
    whole_->write(targets_, tokens.data() + 1);
    const std::vector<float> weights(static_cast<size_t>(count), 1.0f / static_cast<float>(count));
    whole_->write(loss_weights_, weights.data());
  }

  double run_once(Program& program, int64_t step, std::vector<double>* seconds) const {
    program.step = {.learning_rate = 1e-4f, .step = step};
    const auto start = std::chrono::steady_clock::now();
    program.run(Phase::forward, Phase::optimizer, seconds);
    if (on_.cuda) on_.cuda->wait();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  void prepare_rows(const Compiled& c) {
    std::map<std::string, size_t> op_index, node_index;
    for (const Node& node : c.graph.nodes) {
      const auto add = [&](const std::string& name, std::map<std::string, size_t>& index, std::vector<Row>& rows) {
        const auto [found, fresh] = index.try_emplace(name, rows.size());
        if (fresh) rows.emplace_back().name = name;
        Row& row = rows[found->second];
        const Cost cost = cost_of(c.graph, node);
        const Floor floor = floor_of(c, node, machine_);
        row.calls += 1;
        row.flops += cost.flops;
        row.bytes += cost.bytes_read + cost.bytes_written;
        row.floor += floor.seconds;
        row.bounds[floor.bound] += floor.seconds;
        return found->second;
      };
      op_row_.push_back(add(node.op->name, op_index, ops_));
      node_row_.push_back(add(describe(node) + " " + shapes_of(c.graph, node), node_index, nodes_));
    }
  }

  const BenchFlags& flags_;
  Machine on_;
  ModelConfig config_;
  int64_t batch_ = 0;
  TensorId tokens_ = kNone, targets_ = kNone, loss_weights_ = kNone;
  PersistentLayout layout_;
  std::unique_ptr<Program> whole_, part_;  // part_: only the nodes of --only
  std::unique_ptr<Arena> arena_;
  Ceilings machine_;
  std::vector<Row> ops_, nodes_;
  std::vector<size_t> op_row_, node_row_;  // by node
  std::vector<double> walls_, sums_;       // by step
};

ordered_json read_earlier(const std::string& path) {
  try {
    ordered_json earlier = ordered_json::parse(read_file(path));
    for (const char* list : {"ops", "nodes"})
      for (const ordered_json& row : earlier.at(list)) row.at("name").get<std::string>(), row.at("ms").get<double>();
    earlier.at("step").at("ms").get<double>();
    return earlier;
  } catch (const ordered_json::exception&) {
    fail(path, " is not the JSON of an earlier `bench --save`");
  }
}

// How many times as fast as earlier; blank where there is nothing to compare.
std::string ratio_text(double earlier, double now) {
  return earlier > 0 && now > 0 ? format("%.2fx", earlier / now) : "-";
}

void print_rows(const ordered_json& result, const ordered_json& earlier, const char* list) {
  std::map<std::string, double> before;
  if (!earlier.is_null())
    for (const ordered_json& row : earlier[list]) before[row["name"]] = row["ms"];
  size_t width = 2;
  for (const ordered_json& row : result[list])
    width = std::max(width, row["name"].get_ref<const std::string&>().size());
  const double total = result["step"]["ops_ms"];
  std::cout << "op" << std::string(width - 2, ' ')
            << "  calls        ms  % step  GFLOP/s    GB/s  floor ms  bound   of ceiling"
            << (earlier.is_null() ? "" : "  earlier ms  speed-up") << "\n";
  for (const ordered_json& row : result[list]) {
    const std::string name = row["name"], bound = row["bound"];
    const double ms = row["ms"], floor = row["floor_ms"];
    std::cout << name << std::string(width - name.size(), ' ')
              << format("  %5d  %8.3f  %5.1f%%  %7.1f  %6.1f  %8.3f  %-6s  %9.0f%%", row["calls"].get<int>(), ms,
                        100 * ms / total, row["gflops"].get<double>(), row["gbs"].get<double>(), floor, bound.c_str(),
                        ms > 0 ? 100 * floor / ms : 0.0);
    if (!earlier.is_null())
      std::cout << (before.contains(name) ? format("  %10.3f", before[name]) : "           -")
                << format("  %8s", ratio_text(before.contains(name) ? before[name] : 0, ms).c_str());
    std::cout << "\n";
  }
}

void print_text(const ordered_json& r, const ordered_json& earlier, bool nodes) {
  const auto& c = r["ceilings"];
  const auto value = [](const ordered_json& object, const char* key) { return object[key].get<double>(); };
  std::cout << "machine   " << format("%.0f GFLOP/s %s; ", value(c, "gflops"), r["dtype"].get<std::string>().c_str())
            << format("memory: read %.1f, copy %.1f, update %.1f GB/s; ", value(c, "read_gbs"), value(c, "copy_gbs"),
                      value(c, "update_gbs"))
            << format("cache (%zu MiB): %.1f, %.1f, %.1f GB/s; %d threads\n", Ceilings::kCachedBytes >> 20,
                      value(c, "cached_read_gbs"), value(c, "cached_copy_gbs"), value(c, "cached_update_gbs"),
                      r["threads"].get<int>())
            << "model     " << r["model"].get<std::string>() << ": " << format_count(value(r, "parameters"))
            << " parameters, "
            << format("%d x %d tokens a step; medians of %d steps\n\n", r["batch"].get<int>(), r["context"].get<int>(),
                      r["steps"].get<int>());
  print_rows(r, earlier, nodes ? "nodes" : "ops");
  const auto& step = r["step"];
  const double wall = value(step, "ms"), ops = value(step, "ops_ms"), floor = value(step, "floor_ms");
  std::cout << format("\nstep      %.2f ms: ops %.2f, between ops %.2f; floor %.2f (%.0f%%)\n", wall, ops, wall - ops,
                      floor, 100 * floor / wall);
  if (step.contains("mfu"))
    std::cout << format("          %.0f tokens/s, MFU %.1f%%\n", value(step, "tokens_per_second"),
                        100 * value(step, "mfu"));
  if (!earlier.is_null())
    std::cout << format("earlier   %.2f ms a step: ", value(earlier["step"], "ms"))
              << ratio_text(value(earlier["step"], "ms"), wall) << "\n";
}

// One table, for reports.
void print_markdown(const ordered_json& r, bool nodes) {
  const auto value = [](const ordered_json& object, const char* key) { return object[key].get<double>(); };
  const auto &c = r["ceilings"], &step = r["step"];
  std::cout << "| " << r["device"].get<std::string>() << ", " << r["dtype"].get<std::string>() << ", "
            << r["model"].get<std::string>()
            << format(", %d x %d tokens", r["batch"].get<int>(), r["context"].get<int>())
            << " | calls | ms | % of step | TFLOP/s | GB/s | floor ms | bound | of the ceiling |\n"
            << "|---|---:|---:|---:|---:|---:|---:|---|---:|\n";
  for (const ordered_json& row : r[nodes ? "nodes" : "ops"]) {
    const double ms = row["ms"], floor = row["floor_ms"];
    std::cout << "| " << row["name"].get<std::string>()
              << format(" | %d | %.3f | %.1f | %.1f | %.0f | %.3f | %s | %.0f %% |\n", row["calls"].get<int>(), ms,
                        100 * ms / value(step, "ops_ms"), value(row, "gflops") * 1e-3, value(row, "gbs"), floor,
                        row["bound"].get<std::string>().c_str(), ms > 0 ? 100 * floor / ms : 0.0);
  }
  std::cout << format("| the whole step | | %.3f | | | | %.3f | | %.0f %% |\n", value(step, "ms"),
                      value(step, "floor_ms"), 100 * value(step, "floor_ms") / value(step, "ms"))
            << format("\nCeilings measured: %.1f TFLOP/s, read %.0f, copy %.0f, update %.0f GB/s.",
                      value(c, "gflops") * 1e-3, value(c, "read_gbs"), value(c, "copy_gbs"), value(c, "update_gbs"));
  if (step.contains("mfu"))
    std::cout << format(" %.0f tokens/s, MFU %.1f %%.", value(step, "tokens_per_second"), 100 * value(step, "mfu"));
  std::cout << "\n";
}

void bench(BenchFlags& flags) {
  flags.device.check();
  check_recipe(flags.recipe);
  if (flags.format != "text" && flags.format != "json" && flags.format != "markdown")
    fail_usage("unknown --format ", flags.format, "; known: text, json, markdown");
  // Read first: a wrong file should not cost a measurement.
  const ordered_json earlier = flags.compare.empty() ? ordered_json() : read_earlier(flags.compare);
  OpenedMachine opened(flags.device);
  const ModelConfig model = flags.model.resolve(0, "small");
  if (!flags.batch) flags.batch = std::max<int64_t>(1, 1024 / model.context);
  if (flags.recipe.optimizer.empty()) flags.recipe.optimizer = usual_optimizer(model, flags.batch * model.context);
  Bench bench(flags, opened.machine(), model);
  bench.run();
  const ordered_json result = bench.result();
  for (const char* key : {"model", "parameters", "batch", "context", "device", "dtype", "threads", "only"})
    if (!earlier.is_null() && earlier.value(key, ordered_json()) != result[key])
      std::cerr << "bench: " << flags.compare << " was measured with another " << key << ": "
                << earlier.value(key, ordered_json()).dump() << ", now " << result[key].dump() << "\n";
  if (!flags.save.empty()) write_file_atomically(flags.save, result.dump(1) + "\n");
  if (flags.format == "json") {
    std::cout << result.dump(1) << "\n";
  } else if (flags.format == "markdown") {
    print_markdown(result, flags.nodes);
  } else {
    print_text(result, earlier, flags.nodes);
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  const auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Time every op of a training step against this machine's ceilings");
  flags->model.add_to(*command);
  add_recipe(*command, flags->recipe);
  command->add_option("--batch", flags->batch, "sequences in a step (about 1024 tokens)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20).description(""));
  command->add_option("--steps", flags->steps, "steps to take the medians of, after a warm-up")
      ->check(CLI::Range(int64_t{1}, int64_t{100000}).description(""))
      ->capture_default_str();
  command->add_flag("--nodes", flags->nodes, "a line for each shape, not only for each op");
  command->add_option("--only", flags->only, "time the nodes of this op alone (`train_gpt graph --ops` lists them)");
  command->add_option("--format", flags->format, "text, json or markdown")->capture_default_str();
  command->add_option("--save", flags->save, "write the result to this file, as JSON");
  command->add_option("--compare", flags->compare, "a file from an earlier --save: print how much faster it is now");
  flags->device.add_to(*command);
  command->footer(
      "The floor of an op is the longer of FLOPs / peak and bytes / bandwidth, with the ceilings measured just before: "
      "of\n"
      "main memory, or of a cache's worth of it for an op whose tensors together are that small. Smaller ones still "
      "can\n"
      "be faster. MFU counts the FLOPs that training needs, not what is recomputed.\n\n"
      "Examples:\n"
      "  train_gpt bench --save before.json\n"
      "  train_gpt bench --compare before.json\n"
      "  train_gpt bench gpt2-124M --batch 1 --only attention_backward --nodes");
  command->callback([flags] { bench(*flags); });
}

}  // namespace llm
