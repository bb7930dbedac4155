#include "llm/train/pipeline_schedule.h"

#include <algorithm>
#include <ostream>

#include "llm/base/error.h"

namespace llm {
namespace {

using Pass = PipelineAction::Pass;
using Actions = std::vector<PipelineAction>;

Actions gpipe(const PipelineShape& p) {
  Actions actions;
  for (const Pass pass : {Pass::forward, Pass::backward})
    for (int m = 0; m < p.micro_batches; ++m) actions.push_back({pass, 0, m});
  return actions;
}

// The k-th pass of a stage with several chunks: groups of `stages` micro-batches go through all chunks in turn.
PipelineAction nth(const PipelineShape& p, Pass pass, int k) {
  const int group = p.stages * p.chunks, chunk = k % group / p.stages;
  return {pass, pass == Pass::forward ? chunk : p.chunks - 1 - chunk, k / group * p.stages + k % p.stages};
}

// Some forward passes, until the first micro-batch comes back; then one of each; then the backward passes that are left.
Actions one_forward_one_backward(const PipelineShape& p, int stage) {
  const int all = p.micro_batches * p.chunks;
  const int ahead = p.chunks == 1 ? p.stages - 1 - stage : 2 * (p.stages - 1 - stage) + (p.chunks - 1) * p.stages;
  const int first = std::min(all, ahead);
  Actions actions;
  for (int k = 0; k < first; ++k) actions.push_back(nth(p, Pass::forward, k));
  for (int k = 0; k < all; ++k) {
    if (first + k < all) actions.push_back(nth(p, Pass::forward, first + k));
    actions.push_back(nth(p, Pass::backward, k));
  }
  return actions;
}

// What is done when, as stages wait for each other.
struct Progress {
  const PipelineShape& shape;
  double message;                         // how long one is under way
  std::vector<double> forward, backward;  // when it ends, by part of the model and micro-batch; below 0: not yet

  Progress(const PipelineShape& p, double message_time)
      : shape(p),
        message(message_time),
        forward(static_cast<size_t>(p.stages * p.chunks * p.micro_batches), -1),
        backward(forward.size(), -1) {}

  size_t at(int part, int micro) const { return static_cast<size_t>(part * shape.micro_batches + micro); }
  // When what a pass needs is there; below 0: it is not yet known.
  double ready(int stage, const PipelineAction& a) const {
    const int part = a.chunk * shape.stages + stage, parts = shape.stages * shape.chunks;
    if (a.pass == Pass::forward) return part == 0 ? 0 : arrives(forward[at(part - 1, a.micro)]);
    if (a.pass == Pass::weights) return backward[at(part, a.micro)];
    return part == parts - 1 ? forward[at(part, a.micro)] : arrives(backward[at(part + 1, a.micro)]);
  }
  double arrives(double sent) const { return sent < 0 ? sent : sent + message; }
  void end(int stage, const PipelineAction& a, double time) {
    const int part = a.chunk * shape.stages + stage;
    if (a.pass == Pass::forward) forward[at(part, a.micro)] = time;
    if (a.pass == Pass::backward) backward[at(part, a.micro)] = time;
  }
};

// As 1f1b, but stage s makes the passes for weights s micro-batches later than those towards the inputs: so what the
// stages in front of it wait for comes earlier, and it keeps no more micro-batches than the first stage does anyway.
Actions zero_bubble(const PipelineShape& p, int stage) {
  const int M = p.micro_batches, first = std::min(M, p.stages - stage), late = std::min(M, stage);
  Actions actions;
  for (int m = 0; m < first; ++m) actions.push_back({Pass::forward, 0, m});
  for (int m = 0; m < M; ++m) {
    actions.push_back({Pass::backward, 0, m});
    if (m >= late) actions.push_back({Pass::weights, 0, m - late});
    if (first + m < M) actions.push_back({Pass::forward, 0, first + m});
  }
  for (int m = M - late; m < M; ++m) actions.push_back({Pass::weights, 0, m});
  return actions;
}

}  // namespace

PipelineSchedule make_schedule(const PipelineShape& p) {
  if (p.chunks > 1 && p.kind != PipelineKind::interleaved)
    fail_usage("several chunks a stage go with the interleaved schedule");
  if (p.kind == PipelineKind::interleaved && p.chunks > 1 && p.micro_batches % p.stages)
    fail_usage("the interleaved schedule takes ", p.stages, " micro-batches at a time, and ", p.micro_batches,
               " are no multiple of that");
  PipelineSchedule schedule;
  for (int stage = 0; stage < p.stages; ++stage)
    schedule.push_back(p.kind == PipelineKind::gpipe         ? gpipe(p)
                       : p.kind == PipelineKind::zero_bubble ? zero_bubble(p, stage)
                                                             : one_forward_one_backward(p, stage));
  return schedule;
}

PipelineTimeline simulate(const PipelineShape& p, const PipelineSchedule& schedule, const PassTimes& times) {
  return simulate(p, schedule, std::vector<PassTimes>(schedule.size(), times), 0);
}

PipelineTimeline simulate(const PipelineShape& p, const PipelineSchedule& schedule, const std::vector<PassTimes>& times,
                          double message) {
  const bool splits = p.kind == PipelineKind::zero_bubble;
  const auto time_of = [&](size_t stage, Pass pass) {
    const PassTimes& own = times[stage];
    return pass == Pass::forward   ? own.forward
           : pass == Pass::weights ? own.weights
                                   : own.backward + (splits ? 0 : own.weights);
  };
  PipelineTimeline t;
  t.begins.resize(schedule.size());
  t.in_flight.resize(schedule.size());
  Progress progress(p, message);
  std::vector<double> free(schedule.size(), 0);
  double work = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t s = 0; s < schedule.size(); ++s)
      while (t.begins[s].size() < schedule[s].size()) {
        const PipelineAction& a = schedule[s][t.begins[s].size()];
        const double ready = progress.ready(static_cast<int>(s), a);
        if (ready < 0) break;
        const double begin = std::max(free[s], ready);
        t.begins[s].push_back(begin);
        const double time = time_of(s, a.pass);
        free[s] = begin + time;
        progress.end(static_cast<int>(s), a, free[s]);
        work += time;
        moved = true;
      }
  }
  for (size_t s = 0; s < schedule.size(); ++s) {
    if (t.begins[s].size() < schedule[s].size())
      fail("the ", name_of(p.kind), " schedule stands still: stage ", static_cast<int64_t>(s), " waits for ever");
    int kept = 0;
    for (const PipelineAction& a : schedule[s]) {
      kept += a.pass == Pass::forward ? 1 : 0;
      t.in_flight[s] = std::max(t.in_flight[s], kept);
      kept -= a.pass == (splits ? Pass::weights : Pass::backward) ? 1 : 0;
    }
  }
  t.length = *std::max_element(free.begin(), free.end());
  t.bubble = 1 - work / (t.length * p.stages);
  return t;
}

double bubble_by_formula(const PipelineShape& p) {
  const double S = p.stages, M = p.micro_batches;
  const double waiting = p.kind == PipelineKind::zero_bubble   ? (S - 1) / 3
                         : p.kind == PipelineKind::interleaved ? (S - 1) / p.chunks
                                                               : S - 1;
  return waiting / (M + waiting);
}

void print_schedule(std::ostream& out, const PipelineShape& p) {
  const PipelineSchedule schedule = make_schedule(p);
  const PipelineTimeline t = simulate(p, schedule);
  const bool splits = p.kind == PipelineKind::zero_bubble;
  const size_t width = std::to_string(p.micro_batches - 1).size() + (p.chunks > 1 ? 1 : 0) + 1;
  for (size_t s = 0; s < schedule.size(); ++s) {
    // A column is a pass of one unit of time; a backward pass of both halves takes two.
    std::vector<std::string> cells(static_cast<size_t>(t.length + 0.5));
    for (size_t i = 0; i < schedule[s].size(); ++i) {
      const PipelineAction& a = schedule[s][i];
      const char* mark = a.pass == Pass::forward ? "" : a.pass == Pass::backward ? "-" : "w";
      const std::string text =
          concat(mark, a.micro, p.chunks > 1 ? std::string(1, static_cast<char>('a' + a.chunk)) : "");
      const auto at = static_cast<size_t>(t.begins[s][i] + 0.5);
      cells[at] = text;
      if (a.pass == Pass::backward && !splits) cells[at + 1] = text;
    }
    out << "stage " << s << "  ";
    for (const std::string& cell : cells)
      out << " " << std::string(width - std::min(width, cell.size()), ' ')
          << (cell.empty() ? "." : cell).substr(0, width);
    out << "   keeps " << t.in_flight[s] << "\n";
  }
  out << "bubble " << static_cast<int>(1000 * t.bubble + 0.5) / 10.0 << " % (formula "
      << static_cast<int>(1000 * bubble_by_formula(p) + 0.5) / 10.0
      << " %), where forward, backward and weights' passes take equal times\n";
}

}  // namespace llm
