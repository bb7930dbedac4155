// What `plan` knows of a machine, measured here.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "llm/base/clock.h"
#include "llm/base/error.h"
#include "llm/cli/bench.h"
#include "llm/device/ceilings.h"
#include "llm/device/ceilings_cuda.h"
#include "llm/device/communicator_threads.h"
#include "llm/device/cuda.h"
#include "llm/graph/dump.h"
#include "llm/graph/program.h"
#include "llm/model/gpt.h"
#include "llm/plan/pass_time.h"

namespace llm {
namespace {

// A node's time is linear in what these stand for; hence the numbers are found by least squares.
constexpr double kCacheMib = static_cast<double>(Ceilings::kCachedBytes) * 0x1p-20;
constexpr size_t kNumbers = 7, kOpNumbers = 3;

template <size_t N>
struct Sample {
  std::array<double, N> per{};  // seconds of the node for each unknown's unit
  double seconds = 0;
};
struct Samples {
  std::vector<Sample<kNumbers>> all;
  std::map<std::string, std::vector<Sample<kOpNumbers>>> ops;  // FLOPs, bytes and 1
};

// The unknowns: 1 / product efficiency, that times the depth, the same of attention, 1 / bandwidth of memory and of caches, seconds
// of a kernel.
Sample<kNumbers> sample_of(const NodeWork& work, double peak, bool has_cache) {
  Sample<kNumbers> s;
  s.per[0] = work.products / peak, s.per[1] = work.products_by_depth / peak;
  s.per[2] = work.others / peak, s.per[3] = work.others_by_head_size / peak;
  s.per[has_cache && work.bytes <= kCacheMib * 0x1p20 ? 5 : 4] = work.bytes, s.per[6] = 1;
  return s;
}

// Unknowns of at least 0 with the least sum of squares of relative errors, one coordinate after another.
template <size_t N>
std::array<double, N> least_squares(const std::vector<Sample<N>>& samples) {
  std::array<std::array<double, N>, N> products{};
  std::array<double, N> right{}, x{};
  for (const Sample<N>& s : samples)
    for (size_t k = 0; k < N; ++k) {
      right[k] += s.per[k] / s.seconds;
      for (size_t j = 0; j < N; ++j) products[k][j] += s.per[k] * s.per[j] / (s.seconds * s.seconds);
    }
  for (int round = 0; round < 20000; ++round)
    for (size_t k = 0; k < N; ++k) {
      double rest = right[k];
      for (size_t j = 0; j < N; ++j) rest -= j == k ? 0 : products[k][j] * x[j];
      x[k] = products[k][k] > 0 ? std::max(0.0, rest / products[k][k]) : 0;
    }
  return x;
}

ModelConfig model_of(int64_t layers, int64_t channels, int64_t heads, int64_t context, int64_t vocabulary,
                     Architecture architecture = Architecture::modern) {
  ModelConfig c;
  set_architecture(c, architecture);
  c.layers = layers, c.channels = channels, c.heads = c.kv_heads = heads, c.head_size = channels / heads;
  c.hidden = usual_hidden(channels, c.activation), c.context = context, c.vocabulary = vocabulary;
  return c;
}

struct Step {
  ModelConfig model;
  int64_t batch;
  OptimizerKind optimizer = OptimizerKind::adamw;
};

// Appends a sample for each node of a step, the median of some runs. Returns the seconds of a step beside its nodes.
double measure_step(const Step& step, Device& device, Precision precision, double peak, Samples& samples) {
  TrainingGraph t =
      build_training_graph(step.model, step.batch, step.model.context, {.kind = step.optimizer}, dtype_of(precision));
  PersistentLayout layout;
  layout.add(t.graph);
  const std::vector<TensorId> results = {t.loss, t.gradient_norm, t.guarded_norm};
  Program program(compile(std::move(t.graph), results, target_on(device, precision)), layout);
  const Arena arena(program.arena_bytes(), device);
  program.bind(arena);
  const auto count = static_cast<size_t>(step.batch * step.model.context);
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i)
    tokens[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(step.model.vocabulary));
  const std::vector<float> weights(count, 1.0f / static_cast<float>(count));
  const size_t nodes = program.graph().nodes.size();
  std::vector<std::vector<double>> seconds(nodes);
  std::vector<double> beside;
  const auto begin = Clock::now();
  for (int run = 0; run < 3 || (run < 30 && seconds_since(begin) < 1); ++run) {
    program.write(t.tokens, tokens.data());
    program.write(t.targets, tokens.data());
    program.write(t.loss_weights, weights.data());
    std::vector<double> each(nodes, 0);
    const auto start = Clock::now();
    program.run(kWholeStep, &each);
    device.wait();
    double left = seconds_since(start);
    for (size_t n = 0; n < nodes; ++n) seconds[n].push_back(each[n]), left -= each[n];
    beside.push_back(left);
  }
  for (size_t n = 0; n < nodes; ++n) {
    const Graph& g = program.graph();
    const Node& node = g.nodes[n];
    const NodeWork work = work_of(g, node);
    Sample<kNumbers> s = sample_of(work, peak, !device.cuda());
    s.seconds = median(seconds[n]);
    if (s.seconds == 0 || (s.per[0] == 0 && s.per[4] == 0 && s.per[5] == 0)) continue;
    samples.all.push_back(s);
    samples.ops[kind_of(node)].push_back({{cost_of(g, node).flops, work.bytes, 1}, s.seconds});
  }
  return median(beside);
}

// Seconds in which two ranks send each other so many bytes.
double exchange_seconds(size_t bytes) {
  std::vector<double> times;
  ThreadRanks(2).run([&](Communicator& ranks) {
    std::vector<std::byte> sent(bytes), received(bytes);
    for (int i = 0; i < 9; ++i) {
      barrier(ranks);
      const auto start = Clock::now();
      Exchange& exchange = ranks.prepare(1);
      exchange.sends.push_back({1 - ranks.rank(), sent.data(), bytes});
      exchange.receives.push_back({1 - ranks.rank(), received.data(), bytes});
      ranks.start(1);
      ranks.wait(1);
      if (ranks.rank() == 0) times.push_back(seconds_since(start));
    }
  });
  return median(times);
}

}  // namespace

Hardware measure_hardware(Device& device, Precision precision, const Hardware& otherwise) {
  Hardware h = otherwise;
  const CudaDevice* const cuda = device.cuda();
  h.cuda = cuda != nullptr, h.sources = {"measured by train_gpt bench --hardware-out"};
  h.name = cuda ? cuda->properties().name : concat("CPU of ", device.threads().size(), " threads");
  const double gflops =
      cuda ? measure_cuda_peak_gflops(*device.cuda(), dtype_of(precision)) : measure_peak_gflops(device.threads());
  h.peak_tflops = gflops * 1e-3;
  Samples samples;
  std::vector<Step> steps = {{model_of(4, 128, 4, 64, 256), 16, OptimizerKind::muon},
                             {model_of(2, 128, 4, 256, 4096), 4},
                             {model_of(1, 384, 6, 256, 256), 4, OptimizerKind::muon},
                             {model_of(2, 384, 6, 64, 8192), 8},
                             {model_of(1, 768, 12, 256, 16384), 2},
                             {model_of(2, 768, 12, 512, 1024), 1},
                             {model_of(2, 256, 4, 128, 512, Architecture::gpt2), 8},
                             {model_of(1, 768, 12, 64, 8192, Architecture::gpt2), 4}};
  if (cuda)
    steps = {{model_of(2, 768, 12, 1024, 32768), 4},
             {model_of(2, 2048, 16, 2048, 32768), 2},
             {model_of(2, 4096, 32, 2048, 4096), 4}};
  std::vector<double> beside;
  for (const Step& step : steps) beside.push_back(measure_step(step, device, precision, gflops * 1e9, samples));
  const std::array<double, kNumbers> x = least_squares(samples.all);
  const auto inverse = [](double value) { return value > 0 ? 1 / value : std::numeric_limits<double>::max(); };
  h.product_efficiency = inverse(x[0]), h.product_depth = x[0] > 0 ? x[1] / x[0] : 0;
  h.attention_efficiency = inverse(x[2]), h.attention_depth = x[2] > 0 ? x[3] / x[2] : 0;
  h.bandwidth_gbs = inverse(x[4]) * 1e-9, h.kernel_us = x[6] * 1e6;
  h.cached_gbs = cuda ? 0 : inverse(x[5]) * 1e-9, h.cache_mib = cuda ? 0 : kCacheMib;
  h.launch_us = 0, h.logit_ps = h.shared_logit_ps = 0, h.micro_step_ms = 0, h.beside_messages_us = 0;
  h.stall_nodes = h.stall_divided_nodes = h.stall_tensor_nodes = h.stall_ms = 0;
  h.step_ms = std::max(0.0, median(beside) * 1e3);
  h.ops.clear();
  for (const auto& [op, of] : samples.ops) {
    const std::array<double, kOpNumbers> y = least_squares(of);
    h.ops[op] = {y[0] * 1e12, y[1] * 1e12, y[2] * 1e6};
  }
  if (cuda) h.memory_gib = static_cast<double>(cuda->properties().memory_bytes) * 0x1p-30;
  if (cuda) return h;
  const double few = exchange_seconds(64), many = exchange_seconds(size_t{32} << 20);
  h.inside_latency_us = few / 2 * 1e6;
  h.inside_gbs = static_cast<double>(size_t{32} << 20) / std::max(1e-9, many - few) * 1e-9;
  h.memory_gib =
      static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE)) * 0x1p-30;
  return h;
}

}  // namespace llm
