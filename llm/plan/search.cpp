#include "llm/plan/search.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/model/gpt.h"
#include "llm/model/shard.h"
#include "llm/model/stages.h"
#include "llm/ops/ordered_sum.h"

namespace llm {
namespace {

constexpr int64_t kMostSequences = 64;  // of a micro-step

std::vector<int> divisors_of(int number) {
  std::vector<int> all;
  for (int d = 1; d <= number; ++d)
    if (number % d == 0) all.push_back(d);
  return all;
}

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %%", 100 * share);
  return text;
}

class Search {
 public:
  Search(const Job& job, const Hardware& hardware, int ranks, Objective objective)
      : job_(job),
        hardware_(hardware),
        ranks_(ranks),
        objective_(objective),
        timer_(job, hardware),
        room_(static_cast<size_t>((hardware.memory_gib - hardware.reserved_gib) * 0x1p30)) {}

  Plans run(size_t most, bool with_neighbours) {
    Plans plans;
    std::vector<Plan> all = candidates();
    plans.tried = static_cast<int64_t>(all.size());
    std::stable_sort(all.begin(), all.end(),
                     [](const Plan& a, const Plan& b) { return a.time.total() < b.time.total(); });
    std::string least_reason;
    double least = std::numeric_limits<double>::infinity();
    for (Plan& plan : all) {
      if (plans.best.size() >= most && objective_ != Objective::memory) break;
      if (is_known(plan.layout)) continue;
      const double needed = check(plan);
      if (plan.rejection.empty())
        plans.best.push_back(plan);
      else if (needed < least)
        least = needed, least_reason = plan.rejection;
    }
    if (plans.best.empty())
      fail_usage(first_reason_.empty() || !least_reason.empty()
                     ? concat("no layout of ", ranks_, " ranks fits: the least one ", least_reason)
                     : concat("no layout of ", ranks_, " ranks is possible: ", first_reason_));
    if (objective_ == Objective::memory) {
      std::stable_sort(plans.best.begin(), plans.best.end(),
                       [](const Plan& a, const Plan& b) { return a.memory.device() < b.memory.device(); });
      plans.best.resize(std::min(plans.best.size(), most));
    }
    if (with_neighbours) plans.neighbours = neighbours(plans.best[0]);
    return plans;
  }

 private:
  // Why `train` would refuse the layout; empty: it would not.
  std::string refusal(const Layout& l) const {
    try {
      check_mesh(l.mesh, job_.model, l.batch, job_.context);
      if (l.is_pipeline()) {
        cut_layers(job_.model, job_.context, l.mesh.stage * l.chunks);
        make_schedule({l.pipeline, l.mesh.stage, static_cast<int>(l.grad_accum), l.chunks});
      }
    } catch (const UsageError& e) {
      return e.what();
    }
    if (l.mesh.data > kMostSums) return concat("at most ", kMostSums, " ranks share the samples of a step");
    if (job_.step_samples % (l.mesh.data * l.batch))
      return concat(l.mesh.data, " data-parallel ranks with micro-steps of ", l.batch, " do not divide a step of ",
                    job_.step_samples, " sequences");
    if (l.zero == 3 && l.is_pipeline()) return "the stages of a pipeline have parameters of their own: ZeRO 2 would do";
    return "";
  }

  void add(std::vector<Plan>& plans, Layout layout) {
    layout.grad_accum = job_.step_samples / (layout.mesh.data * layout.batch);
    if (const std::string reason = refusal(layout); !reason.empty()) {
      if (first_reason_.empty()) first_reason_ = reason;
      return;
    }
    for (const Recompute level :
         {Recompute::none, Recompute::activations, Recompute::norms, Recompute::attention, Recompute::block}) {
      layout.recompute = level;
      plans.push_back({.layout = layout, .time = timer_.time(layout), .memory = {}, .rejection = {}});
    }
  }

  std::vector<Plan> candidates() {
    std::vector<Plan> plans;
    for (const int tensor : divisors_of(ranks_)) {
      if (tensor > job_.model.kv_heads) break;
      for (const int stages : divisors_of(ranks_ / tensor)) {
        if (stages > job_.model.layers) break;
        Layout l;
        l.mesh = {.data = ranks_ / tensor / stages, .stage = stages, .tensor = tensor};
        for (l.batch = 1; l.batch <= kMostSequences && l.batch * l.mesh.data <= job_.step_samples; l.batch *= 2)
          for (const int zero : {1, 2, 3}) {
            // Gradients are sent before a second micro-step would make others; one rank has nothing to divide.
            const bool at_once = l.batch * l.mesh.data == job_.step_samples;
            if ((l.mesh.data == 1 && zero > 1) || (zero == 2 && !at_once)) continue;
            l.zero = zero;
            l.pipeline = PipelineKind::one_forward_one_backward, l.chunks = 1;
            add(plans, l);
            if (!l.is_pipeline()) continue;
            l.pipeline = PipelineKind::zero_bubble;
            add(plans, l);
            l.pipeline = PipelineKind::interleaved, l.chunks = 2;
            add(plans, l);
          }
      }
    }
    return plans;
  }

  // Whether a layout that needs no more is known not to fit, or one that is as fast is known to fit.
  bool is_known(const Layout& l) const {
    const auto alike = [&](const Layout& o) {
      return o.mesh == l.mesh && o.zero == l.zero && o.pipeline == l.pipeline && o.chunks == l.chunks;
    };
    return std::any_of(too_large_.begin(), too_large_.end(),
                       [&](const Layout& o) { return alike(o) && o.batch <= l.batch && o.recompute >= l.recompute; }) ||
           std::any_of(fit_.begin(), fit_.end(),
                       [&](const Layout& o) { return alike(o) && o.batch == l.batch && o.recompute <= l.recompute; });
  }

  // Sets the memory, and the rejection where it does not fit. Returns GiB.
  double check(Plan& plan) {
    const Layout& l = plan.layout;
    const int stages = l.mesh.stage;
    for (const int stage : {0, stages - 1}) {
      if (stage > 0 || stages == 1) plan.memory = larger(plan.memory, memory_of(job_, l, stage));
      if (stage == 0 && stages > 1) plan.memory = memory_of(job_, l, stage);
      if (stages == 1) break;
    }
    const double gib = static_cast<double>(plan.memory.device()) * 0x1p-30;
    if (plan.memory.device() <= room_) {
      fit_.push_back(l);
      if (l.recompute != Recompute::none) plan.budget = room_;
      return gib;
    }
    too_large_.push_back(l);
    plan.rejection = concat("needs ", format_bytes(plan.memory.device()), " of ", format_bytes(room_));
    return gib;
  }

  static RankMemory larger(const RankMemory& a, const RankMemory& b) { return a.device() < b.device() ? b : a; }

  std::vector<Plan> neighbours(const Plan& best) {
    std::vector<Plan> all;
    const auto add_neighbour = [&](auto&& change) {
      Plan p;
      p.layout = best.layout;
      change(p.layout);
      const Mesh& m = p.layout.mesh;
      if (m.tensor < 1 || m.stage < 1 || p.layout.batch < 1 || m.ranks() != ranks_) return;
      if (!p.layout.is_pipeline()) p.layout.pipeline = PipelineKind::one_forward_one_backward, p.layout.chunks = 1;
      p.layout.grad_accum = std::max<int64_t>(1, job_.step_samples / (m.data * p.layout.batch));
      p.rejection = refusal(p.layout);
      if (p.rejection.empty()) {
        p.time = timer_.time(p.layout);
        check(p);
        if (p.rejection.empty()) p.rejection = why_slower(best, p);
      }
      all.push_back(p);
    };
    const auto resize = [](int& value, int& other, bool up) {
      if (up && other % 2 == 0)
        value *= 2, other /= 2;
      else if (!up && value % 2 == 0)
        value /= 2, other *= 2;
      else
        value = 0;
    };
    for (const bool up : {true, false}) {
      add_neighbour([&](Layout& l) { resize(l.mesh.tensor, l.mesh.data, up); });
      add_neighbour([&](Layout& l) { resize(l.mesh.stage, l.mesh.data, up); });
      add_neighbour([&](Layout& l) { l.batch = up ? l.batch * 2 : l.batch % 2 == 0 ? l.batch / 2 : 0; });
      add_neighbour([&](Layout& l) {
        const int level = static_cast<int>(l.recompute) + (up ? 1 : -1);
        l.recompute = static_cast<Recompute>(std::clamp(level, 0, 4));
        if (level < 0 || level > 4) l.batch = 0;
      });
    }
    return all;
  }

  std::string why_slower(const Plan& best, const Plan& p) const {
    const double more = p.time.total() / best.time.total() - 1;
    std::string text = more >= 0 ? percent(more) + " slower" : percent(-more) + " faster";
    struct Share {
      const char* name;
      double StepTime::*part;
    };
    const Share* most = nullptr;
    static constexpr Share kShares[] = {{"compute", &StepTime::compute},
                                        {"exchange", &StepTime::exchange},
                                        {"bubble", &StepTime::bubble},
                                        {"optimizer", &StepTime::optimizer}};
    double growth = 0;
    for (const Share& s : kShares)
      if (const double g = p.time.*s.part - best.time.*s.part; g > growth) growth = g, most = &s;
    if (most)
      text += concat(": ", most->name, " ", percent(p.time.*most->part / p.time.total()), " of the step, here ",
                     percent(best.time.*most->part / best.time.total()));
    return text;
  }

  const Job& job_;
  const Hardware& hardware_;
  int ranks_;
  Objective objective_;
  StepTimer timer_;
  size_t room_;
  std::string first_reason_;
  std::vector<Layout> too_large_, fit_;
};

}  // namespace

Plans search(const Job& job, const Hardware& hardware, int ranks, Objective objective, size_t most,
             bool with_neighbours) {
  return Search(job, hardware, ranks, objective).run(most, with_neighbours);
}

double mfu_of(const Job& job, const Hardware& hardware, const Plan& plan) {
  const double tokens = static_cast<double>(job.step_samples * job.context);
  return training_flops_per_token(job.model, job.context) * tokens /
         (plan.time.total() * plan.layout.mesh.ranks() * hardware.peak_tflops * 1e12);
}

}  // namespace llm
