// Times each distinct matrix product of a training step by itself, through the gemm() that the ops call, and beside it
// oneDNN's where that is built in. The sizes come from the compiled graph. A product of a matrix with itself is timed in full,
// though a step takes half of it.
//
// Both work on the same operands, taking turns round by round. Each measurement begins with one call that is not timed: so
// the operands lie in the caches as far as they fit, which they do not always in a step.
#include <chrono>
#include <cmath>
#include <iostream>
#include <map>
#include <thread>
#include <tuple>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/random.h"
#include "llm/base/threads.h"
#include "llm/cli/bench.h"
#include "llm/cli/bench_onednn.h"
#include "llm/device/ceilings.h"
#include "llm/device/gemm_cpu.h"
#include "llm/graph/op.h"
#include "llm/graph/program.h"
#include "llm/model/gpt.h"

namespace llm {
namespace {

struct Timed {
  std::string name;
  Product product;
  int64_t calls = 0, repeats = 1;                 // in a step; in a measurement
  std::vector<double> seconds = {}, onednn = {};  // of one call, by round
};

std::vector<Timed> products_of_step(const BenchFlags& flags, Device& on, const ModelConfig& config) {
  TrainingGraph t = build_training_graph(config, flags.batch, config.context, optimizer_of(flags.recipe),
                                         dtype_of(flags.device.precision()), recipe_without_data(flags.recipe, config));
  const Compiled compiled = compile(std::move(t.graph), t.results(), target_on(on, flags.device.precision()));
  std::vector<Timed> all;
  for (const Node& node : compiled.graph.nodes)
    for (const Product& p : products_of(compiled.graph, node)) {
      const std::string name = std::string(node.op->name) + " " + std::to_string(p.m) + " x " + std::to_string(p.n) +
                               " x " + std::to_string(p.k);
      auto known = std::find_if(all.begin(), all.end(), [&](const Timed& other) { return other.name == name; });
      if (known == all.end()) known = all.insert(all.end(), {.name = name, .product = p});
      known->calls += p.calls;
    }
  return all;
}

// Memory as a program has it, for the largest operands.
class Operands {
 public:
  Operands(const std::vector<Timed>& all, Device& device) : threads_(device.threads()) {
    int64_t a = 0, b = 0, c = 0, more = 0;
    for (const Timed& t : all) {
      const Product& p = t.product;
      a = std::max(a, p.m * p.k), b = std::max(b, p.k * p.n), c = std::max(c, p.m * p.n);
      more = std::max(more, gemm_workspace(p.m, p.n, p.k, threads_.size()));
    }
    const auto bytes = [](int64_t floats) { return placed_bytes(static_cast<size_t>(floats) * sizeof(float)); };
    arena_ = std::make_unique<Arena>(bytes(a) + bytes(b) + bytes(c) + bytes(more), device);
    a_ = reinterpret_cast<float*>(arena_->data());
    b_ = a_ + bytes(a) / sizeof(float);
    c_ = b_ + bytes(b) / sizeof(float);
    workspace_ = c_ + bytes(c) / sizeof(float);
    const Random random(1, stream_of("bench products"));
    threads_.for_blocks(c_ - a_, 65536, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        a_[i] = static_cast<float>(random.uniform(static_cast<uint64_t>(i))) * 2 - 1;
    });
  }

  Gemm gemm_of(const Product& p) const {
    return {.m = p.m,
            .n = p.n,
            .k = p.k,
            .a = p.a_transposed ? transposed(a_, p.m) : row_major(a_, p.k),
            .b = p.b_transposed ? transposed(b_, p.k) : row_major(b_, p.n),
            .c = c_,
            .c_stride = p.n};
  }
  void ours(const Product& p) const { gemm(threads_, gemm_of(p), workspace_); }
  void onednn(const Product& p) const { onednn_gemm(gemm_of(p), threads_.size()); }

  // What both give must be the same product: some elements of each row, to what fp32 sums of k terms may differ by.
  void check_same(const Timed& t) const {
    const Product& p = t.product;
    const int64_t step = std::max<int64_t>(1, p.n / 7);
    std::vector<float> first;
    ours(p);
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = i % step; j < p.n; j += step) first.push_back(c_[i * p.n + j]);
    onednn(p);
    size_t at = 0;
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = i % step; j < p.n; j += step)
        if (const float other = c_[i * p.n + j]; !(std::abs(first[at++] - other) <= 1e-4 * static_cast<double>(p.k)))
          fail("bench: ", t.name, ": oneDNN's product is ", other, " where ours is ", first[at - 1]);
  }

 private:
  ThreadTeam& threads_;
  std::unique_ptr<Arena> arena_;
  float *a_, *b_, *c_, *workspace_;
};

template <class Work>
double seconds_of(int64_t repeats, Work&& work) {
  work();
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < repeats; ++i) work();
  const std::chrono::duration<double> all = std::chrono::steady_clock::now() - start;
  return all.count() / static_cast<double>(repeats);
}

// A thread that was asleep may wake on the core of the one that woke it, and stays there until the system spreads them.
template <class Work>
void warm_up(Work&& work) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
  while (std::chrono::steady_clock::now() < end) work();
}

Json result_of(const BenchFlags& flags, Device& on, const ModelConfig& config, double peak,
               const std::vector<Timed>& all) {
  Json products = Json::array();
  double log_gflops = 0, log_ratio = 0, seconds = 0, onednn = 0, flops = 0;
  for (const Timed& t : all) {
    const double mine = median(t.seconds), gflops = t.product.flops() / mine * 1e-9,
                 calls = static_cast<double>(t.calls);
    const Product& p = t.product;
    Json row = {{"name", t.name},   {"m", p.m},         {"n", p.n},         {"k", p.k},
                {"calls", t.calls}, {"ms", mine * 1e3}, {"gflops", gflops}, {"of_peak", gflops / peak}};
    if (onednn_gemm) {
      const double theirs = median(t.onednn);
      row["onednn_ms"] = theirs * 1e3;
      row["ratio"] = theirs / mine;
      log_ratio += std::log(theirs / mine);
      onednn += calls * theirs;
    }
    log_gflops += std::log(gflops);
    seconds += calls * mine;
    flops += calls * t.product.flops();
    products.push_back(row);
  }
  const auto count = static_cast<double>(all.size());
  const double mean = std::exp(log_gflops / count);
  Json means = {{"gflops", mean}, {"of_peak", mean / peak}};
  Json total = {{"ms", seconds * 1e3}, {"gflops", flops / seconds * 1e-9}};
  if (onednn_gemm) {
    means["ratio"] = std::exp(log_ratio / count);
    total["onednn_ms"] = onednn * 1e3;
    total["ratio"] = onednn / seconds;
  }
  return {{"model", flags.model_name()},    {"batch", flags.batch},     {"context", config.context},
          {"threads", on.threads().size()}, {"steps", flags.steps},     {"ceilings", {{"gflops", peak}}},
          {"products", products},           {"geometric_means", means}, {"total", total}};
}

}  // namespace

Json bench_products(const BenchFlags& flags, Device& on, const ModelConfig& config) {
  if (on.cuda()) fail_usage("--products times the CPU's matrix product; leave out --device cuda");
  std::vector<Timed> all = products_of_step(flags, on, config);
  const Operands operands(all, on);
  std::cerr << "bench: " << all.size() << " products, " << on.threads().size() << " threads"
            << (onednn_gemm ? ", beside oneDNN" : "") << "\n";
  std::vector<double> peaks;
  for (Timed& t : all) {
    if (onednn_gemm) operands.check_same(t);
    const double once = seconds_of(1, [&] { operands.ours(t.product); });
    t.repeats = std::clamp<int64_t>(static_cast<int64_t>(5e-3 / once), 1, 1000);
  }
  const auto time_ours = [&](Timed& t) { return seconds_of(t.repeats, [&] { operands.ours(t.product); }); };
  const auto time_onednn = [&](Timed& t) { return seconds_of(t.repeats, [&] { operands.onednn(t.product); }); };
  for (int64_t round = 0; round < flags.steps; ++round) {
    for (Timed& t : all) t.seconds.push_back(time_ours(t));
    peaks.push_back(measure_held_gflops(on.threads()));
    if (!onednn_gemm) continue;
    warm_up([&] { time_onednn(all.front()); });
    for (Timed& t : all) t.onednn.push_back(time_onednn(t));
    // OpenMP's threads wait for more work by spinning, for some milliseconds, and would take our cores.
    if (on.threads().size() > 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    warm_up([&] { time_ours(all.front()); });
  }
  return result_of(flags, on, config, median(peaks), all);
}

}  // namespace llm
