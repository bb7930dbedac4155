// How a training step divides among many threads, on a machine that need not have them. Each op runs on one thread, but cut
// into the items that a team of so many would get; each item is timed, and the items are dealt out as the team takes them.
// What many threads cannot make faster is then counted: the work outside the team's calls, threads that wait for the last
// item of a call, and the waking of the team. What is not in it: caches and a memory bandwidth that many cores share.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/cli/bench.h"
#include "llm/device/cpu.h"
#include "llm/graph/op.h"
#include "llm/model/gpt.h"

namespace llm {
namespace {

// Seconds of an op, or of all.
struct Share {
  double work = 0;    // in items, all threads' together
  double alone = 0;   // outside the team's calls
  double uneven = 0;  // waiting for the last item of a call
  double calls = 0;

  double waking(double wake, int threads) const { return calls * wake * (threads - 1); }
  double step(double wake, int threads) const { return work / threads + alone + uneven + waking(wake, threads); }
  Share& operator+=(const Share& s) {
    work += s.work, alone += s.alone, uneven += s.uneven, calls += s.calls;
    return *this;
  }
};

using Shares = std::map<std::string, Share>;  // by op

Share median_of(const std::vector<Share>& all) {
  const auto one = [&](double Share::*member) {
    std::vector<double> values;
    for (const Share& s : all) values.push_back(s.*member);
    return median(values);
  };
  return {one(&Share::work), one(&Share::alone), one(&Share::uneven), one(&Share::calls)};
}

// Each op of the step, as `threads` threads would have it.
Shares rehearse(const BenchFlags& flags, const ModelConfig& config, int threads) {
  Rehearsal rehearsal;
  ThreadTeam team(threads, rehearsal);
  CpuDevice device(team);
  BenchedStep step(flags, device, config);
  step.run(step.whole(), 0);
  std::map<std::string, std::unique_ptr<Program>> ops;
  for (const Node& node : step.whole().graph().nodes)
    if (!ops.contains(node.op->name)) ops[node.op->name] = step.only(node.op->name);
  Shares shares;
  for (auto& [name, program] : ops) {
    std::vector<Share> times;
    for (int64_t i = 0; i <= flags.steps; ++i) {
      rehearsal = {};
      const double seconds = step.run(*program, i + 1);
      if (i == 0) continue;  // warm-up
      times.push_back({rehearsal.busy, seconds - rehearsal.busy,
                       std::max(0.0, rehearsal.longest - rehearsal.busy / threads),
                       static_cast<double>(rehearsal.calls)});
    }
    shares[name] = median_of(times);
  }
  return shares;
}

// Seconds of a step on a real team, and of a call of it that has nothing to do.
std::pair<double, double> measure(const BenchFlags& flags, const ModelConfig& config, int threads) {
  ThreadTeam team(threads);
  CpuDevice device(team);
  BenchedStep step(flags, device, config);
  std::vector<double> steps, calls;
  for (int64_t i = 0; i <= flags.steps; ++i)
    if (const double seconds = step.run(step.whole(), i); i > 0) steps.push_back(seconds);
  constexpr int kCalls = 1000;
  for (int round = 0; round < 11; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) team.for_items(threads, [](int64_t, int) {});
    calls.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kCalls);
  }
  return {median(steps), median(calls)};
}

Json row_of(const Share& share, double one, double wake, int threads) {
  const double seconds = share.step(wake, threads);
  return {{"ms", seconds * 1e3},
          {"efficiency", one / seconds / threads},
          {"alone_ms", share.alone * 1e3},
          {"uneven_ms", share.uneven * 1e3},
          {"waking_ms", share.waking(wake, threads) * 1e3}};
}

Share sum_of(const Shares& shares) {
  Share all;
  for (const auto& [name, share] : shares) all += share;
  return all;
}

}  // namespace

Json bench_scaling(const BenchFlags& flags, Device& on, const ModelConfig& config) {
  if (on.cuda()) fail_usage("--scaling counts what the CPU's threads cannot share; leave out --device cuda");
  const int here = on.threads().size();
  std::vector<int> teams = {1};
  while (teams.back() < flags.scaling) teams.push_back(std::min(2 * teams.back(), flags.scaling));
  // Every further thread adds as much to a call: the line that all of them write wanders from one to the next.
  double wake = 0;
  std::map<int, double> measured;
  for (const int threads : teams) {
    if (threads > here) break;
    const auto [step, call] = measure(flags, config, threads);
    measured[threads] = step;
    if (threads > 1) wake = call / (threads - 1);
  }
  Shares first, shares;
  Json::List rows, ops;
  for (const int threads : teams) {
    std::cerr << "bench: a step in the parts of " << threads << " thread" << (threads > 1 ? "s" : "") << "\n";
    shares = rehearse(flags, config, threads);
    if (threads == 1) first = shares;
    const Share all = sum_of(shares);
    const double one = sum_of(first).step(wake, 1);
    Json row = row_of(all, one, wake, threads);
    row["threads"] = threads;
    row["speed_up"] = one / all.step(wake, threads);
    row["work_ms"] = all.work / threads * 1e3;
    row["calls"] = all.calls;
    if (measured.contains(threads)) row["measured_ms"] = measured[threads] * 1e3;
    rows.push_back(row);
  }
  for (const auto& [name, share] : shares) {
    const double one = first[name].step(wake, 1);
    Json row = row_of(share, one, wake, teams.back());
    row["name"] = name;
    row["one_ms"] = one * 1e3;
    ops.push_back(row);
  }
  std::stable_sort(ops.begin(), ops.end(),
                   [](const Json& a, const Json& b) { return a["ms"].get<double>() > b["ms"].get<double>(); });
  return {{"model", flags.model_name()},
          {"parameters", parameter_count(config)},
          {"batch", flags.batch},
          {"context", config.context},
          {"steps", flags.steps},
          {"threads", here},
          {"wake_us_a_thread", wake * 1e6},
          {"scaling", rows},
          {"ops", ops}};
}

}  // namespace llm
