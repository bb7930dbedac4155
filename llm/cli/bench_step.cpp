// Times every op of a training step and holds it against what this machine would need at the least.
#include <algorithm>
#include <iostream>
#include <map>
#include <memory>

#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/cli/bench.h"
#include "llm/device/ceilings.h"
#include "llm/device/ceilings_cuda.h"
#include "llm/graph/dump.h"
#include "llm/graph/program.h"
#include "llm/model/gpt.h"

namespace llm {
namespace {

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

class StepBench {
 public:
  StepBench(const BenchFlags& flags, Device& on, const ModelConfig& config)
      : flags_(flags), on_(on), config_(config), step_(flags, on, config) {
    std::cerr << "bench: " << format_bytes(step_.persistent_bytes() + step_.transient_bytes()) << " of memory, "
              << (on.cuda() ? on.cuda()->properties().name : concat(on.threads().size(), " threads")) << ", "
              << name_of(flags.device.precision()) << "\n";
    if (flags.only.empty()) return;
    op_named(flags.only);  // throws for an unknown one
    part_ = step_.only(flags.only);
    if (part_->graph().nodes.empty())
      fail_usage("--only ", flags.only, ": a training step of this model has no such op");
  }

  void run() {
    step_.run(step_.whole(), 0);  // It also fills the arena for the program of one op.
    Program& program = part_ ? *part_ : step_.whole();
    const Graph& g = program.graph();
    prepare_rows(g);
    CeilingMeter meter(on_.threads());
    const int64_t rounds = on_.cuda() ? 1 : std::min(flags_.steps, kCeilingRounds);
    for (int64_t step = 0, round = 0; step < flags_.steps; ++step) {
      if (step * rounds >= round * flags_.steps) {
        if (on_.cuda())
          machine_ = measure_cuda_ceilings(*on_.cuda(), dtype_of(flags_.device.precision()));
        else
          meter.round();
        step_.run(program, 1);  // brings back into the caches what a step finds there
        ++round;
      }
      std::vector<double> seconds(g.nodes.size(), 0);
      double wall = step_.run(program, step + 2, &seconds);
      // On a GPU the nodes are timed one by one, the step as the captured whole that training launches.
      if (on_.cuda()) wall = step_.run(program, step + 2);
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
    if (!on_.cuda()) machine_ = meter.medians();
    add_floors(program.compiled());
    const auto slower = [](const Row& a, const Row& b) { return a.time() > b.time(); };
    std::stable_sort(ops_.begin(), ops_.end(), slower);
    std::stable_sort(nodes_.begin(), nodes_.end(), slower);
  }

  Json result() const {
    const auto list = [](const std::vector<Row>& rows) {
      Json array = Json::array();
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
    const double wall = median(walls_), tokens = static_cast<double>(flags_.batch * config_.context);
    double floor = 0;
    for (const Row& row : ops_) floor += row.floor;
    Json step = {{"ms", wall * 1e3}, {"ops_ms", median(sums_) * 1e3}, {"floor_ms", floor * 1e3}};
    if (!part_) {
      step["tokens_per_second"] = tokens / wall;
      step["mfu"] = training_flops_per_token(config_, config_.context) * tokens / wall / (machine_.gflops * 1e9);
    }
    return {{"model", flags_.model_name()},
            {"parameters", parameter_count(config_)},
            {"optimizer", name_of(*flags_.recipe.optimizer)},
            {"batch", flags_.batch},
            {"context", config_.context},
            {"device", on_.cuda() ? on_.cuda()->properties().name : "cpu"},
            {"dtype", name_of(flags_.device.precision())},
            {"threads", on_.threads().size()},
            {"steps", flags_.steps},
            {"only", flags_.only},
            {"memory_bytes", {{"persistent", step_.persistent_bytes()}, {"transient", step_.transient_bytes()}}},
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
  // The ceilings are measured so often, between the steps.
  static constexpr int64_t kCeilingRounds = 5;

  void prepare_rows(const Graph& g) {
    std::map<std::string, size_t> op_index, node_index;
    for (const Node& node : g.nodes) {
      const auto add = [&](const std::string& name, std::map<std::string, size_t>& index, std::vector<Row>& rows) {
        const auto [found, fresh] = index.try_emplace(name, rows.size());
        if (fresh) rows.emplace_back().name = name;
        Row& row = rows[found->second];
        const Cost cost = cost_of(g, node);
        row.calls += 1;
        row.flops += cost.flops;
        row.bytes += cost.bytes_read + cost.bytes_written;
        return found->second;
      };
      op_row_.push_back(add(node.op->name, op_index, ops_));
      node_row_.push_back(add(describe(node) + " " + shapes_of(g, node), node_index, nodes_));
    }
  }

  void add_floors(const Compiled& c) {
    for (size_t i = 0; i < c.graph.nodes.size(); ++i) {
      const Floor floor = floor_of(c, c.graph.nodes[i], machine_);
      for (Row* row : {&ops_[op_row_[i]], &nodes_[node_row_[i]]}) {
        row->floor += floor.seconds;
        row->bounds[floor.bound] += floor.seconds;
      }
    }
  }

  const BenchFlags& flags_;
  Device& on_;
  ModelConfig config_;
  BenchedStep step_;
  std::unique_ptr<Program> part_;  // only the nodes of --only
  Ceilings machine_;
  std::vector<Row> ops_, nodes_;
  std::vector<size_t> op_row_, node_row_;  // by node
  std::vector<double> walls_, sums_;       // by step
};

}  // namespace

Json bench_step(const BenchFlags& flags, Device& on, const ModelConfig& config) {
  StepBench bench(flags, on, config);
  bench.run();
  return bench.result();
}

}  // namespace llm
