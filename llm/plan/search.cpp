#include "llm/plan/search.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/model/shard.h"
#include "llm/model/stages.h"
#include "llm/ops/ordered_sum.h"

namespace llm {
namespace {

constexpr int64_t kMostSequences = 64;  // of a micro-step; at least one for each rank that has other experts
constexpr int64_t kLeastTokens = 8192;  // of a sequence on each of the ranks that share it

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
    std::vector<Plan> all = candidates();
    Plans plans;
    plans.tried = static_cast<int64_t>(all.size());
    std::ranges::stable_sort(all, {}, [](const Plan& p) { return p.time.total(); });
    if (all.empty()) fail_usage("no layout of ", ranks_, " ranks is possible: ", first_reason_);
    Plan least;
    for (Plan plan : all) {
      if (plans.best.size() >= most && objective_ != Objective::memory) break;
      if (is_known(plan.layout)) continue;
      check(plan);
      if (plan.rejection.empty())
        plans.best.push_back(plan);
      else if (least.rejection.empty() || plan.memory.device() < least.memory.device())
        least = plan;
    }
    if (plans.best.empty() && hardware_.host_gbs > 0 && !std::exchange(offload_, true))
      return run(most, with_neighbours);
    if (plans.best.empty()) fail_usage("no layout of ", ranks_, " ranks fits: the least one ", least.rejection);
    if (objective_ == Objective::memory) {
      std::ranges::stable_sort(plans.best, {}, [](const Plan& p) { return p.memory.device(); });
      plans.best.resize(std::min(plans.best.size(), most));
    }
    for (Plan& plan : plans.best) recompute_less(plan);
    if (with_neighbours) plans.neighbours = neighbours(plans.best[0], all);
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
    for (int level = 0; level <= static_cast<int>(Recompute::block); ++level) {
      layout.recompute = static_cast<Recompute>(level);
      plans.push_back({.layout = layout, .time = timer_.time(layout), .memory = {}, .rejection = {}});
    }
  }

  void add_all(std::vector<Plan>& plans, const Mesh& mesh, ContextExchange exchange) {
    Layout l{.mesh = mesh, .exchange = exchange, .offload = offload_};
    for (l.batch = mesh.expert; l.batch <= kMostSequences && l.batch * mesh.data <= job_.step_samples; l.batch *= 2)
      for (const int zero : {1, 2, 3}) {
        // Gradients are sent before a second micro-step would make others; one rank has nothing to divide.
        const bool at_once = l.batch * mesh.data == job_.step_samples;
        if ((mesh.data == 1 && zero > 1) || (zero == 2 && !at_once)) continue;
        l.zero = zero;
        using enum PipelineKind;
        for (const PipelineKind kind : {one_forward_one_backward, zero_bubble, interleaved}) {
          l.pipeline = kind, l.chunks = kind == interleaved ? 2 : 1;
          if (l.is_pipeline() || kind == one_forward_one_backward) add(plans, l);
        }
      }
  }

  std::vector<Plan> candidates() {
    std::vector<Plan> plans;
    for (int tensor = 1; tensor <= std::min(static_cast<double>(job_.model.heads), hardware_.ranks_a_node); ++tensor)
      for (int context = 1; context == 1 || context * kLeastTokens <= job_.context; context *= 2)
        for (int expert = 1; expert <= std::max<int64_t>(1, job_.model.experts); expert *= 2)
          for (int stages = 1; stages <= job_.model.layers; ++stages) {
            Mesh mesh{.stage = stages, .context = context, .tensor = tensor, .expert = expert};
            if (ranks_ % mesh.ranks()) continue;
            mesh.data = ranks_ / mesh.ranks();
            for (const ContextExchange exchange : {ContextExchange::gather, ContextExchange::ring})
              if (context > 1 || exchange == ContextExchange::gather) add_all(plans, mesh, exchange);
          }
    return plans;
  }

  // Whether a layout that needs no more is known not to fit, or one that is as fast is known to fit.
  bool is_known(const Layout& l) const {
    return std::any_of(tried_.begin(), tried_.end(), [&](const Plan& tried) {
      const Layout& o = tried.layout;
      if (o.mesh != l.mesh || o.zero != l.zero || o.chunks != l.chunks || o.exchange != l.exchange ||
          o.offload != l.offload)
        return false;
      if (tried.memory.persistent() > room_) return true;
      return o.pipeline == l.pipeline && (tried.rejection.empty() ? o.batch == l.batch && o.recompute <= l.recompute
                                                                  : o.batch <= l.batch && o.recompute >= l.recompute);
    });
  }

  // Sets the memory, and the rejection where it does not fit.
  void check(Plan& plan) {
    const Layout& l = plan.layout;
    plan.memory = memory_of(job_, l, 0);
    if (l.is_pipeline())
      if (const RankMemory last = memory_of(job_, l, l.mesh.stage - 1); last.device() > plan.memory.device())
        plan.memory = last;
    const bool is_hopeless = plan.memory.persistent() > room_;
    if (is_hopeless) plan.memory.activations = 0;
    if (plan.memory.device() > room_)
      plan.rejection = concat("needs ", format_bytes(plan.memory.device()), is_hopeless ? " without activations" : "",
                              " of ", format_bytes(room_));
    else if (l.recompute != Recompute::none)
      plan.budget = room_;
    tried_.push_back(plan);
  }

  // With a budget `train` recomputes in as many layers as it must: in between two levels.
  void recompute_less(Plan& plan) {
    if (!plan.budget) return;
    plan.memory = memory_of(job_, plan.layout, 0, plan.budget);
    const auto [level, layers] = plan.memory.recomputation;
    for (int stage = 1; stage < plan.layout.mesh.stage; ++stage)
      if (const RankMemory other = memory_of(job_, plan.layout, stage, plan.budget);
          other.device() > plan.memory.device())
        plan.memory = other;
    if (plan.layout.is_pipeline() || level == Recompute::none) return;
    plan.layout.recompute = level;
    Layout less = plan.layout;
    less.recompute = static_cast<Recompute>(static_cast<int>(level) - 1);
    const double share = static_cast<double>(layers) / static_cast<double>(job_.model.layers);
    const StepTime low = timer_.time(less), high = timer_.time(plan.layout);
    plan.time = high;
    plan.time.compute = low.compute + share * (high.compute - low.compute);
  }

  // Those of the candidates that differ from the best one in one thing, by one step.
  std::vector<Plan> neighbours(const Plan& best, const std::vector<Plan>& candidates) {
    std::vector<Plan> found;
    for (const Plan& candidate : candidates) {
      const Layout &l = candidate.layout, &b = best.layout;
      const auto is_near = [](int64_t x, int64_t y) { return x == 2 * y || y == 2 * x; };
      const bool tensor = l.mesh.tensor != b.mesh.tensor || l.mesh.context != b.mesh.context ||
                          l.mesh.expert != b.mesh.expert,
                 stage = l.mesh.stage != b.mesh.stage, batch = l.batch != b.batch,
                 recomputes = l.recompute != b.recompute,
                 other = l.zero != b.zero || l.pipeline != b.pipeline ||
                         (l.mesh.context > 1 && b.mesh.context > 1 && l.exchange != b.exchange);
      if (tensor + stage + batch + recomputes + other != 1 ||
          (tensor && !is_near(l.mesh.sharing(), b.mesh.sharing())) || (stage && !is_near(l.mesh.stage, b.mesh.stage)) ||
          (batch && !is_near(l.batch, b.batch)) ||
          std::abs(static_cast<int>(l.recompute) - static_cast<int>(b.recompute)) > 1)
        continue;
      check(found.emplace_back(candidate));
    }
    return found;
  }

  const Job& job_;
  const Hardware& hardware_;
  int ranks_;
  Objective objective_;
  StepTimer timer_;
  size_t room_;
  std::string first_reason_;
  std::vector<Plan> tried_;  // whose memory is known
  bool offload_ = false;     // the optimizer's state, to the host's memory
};

}  // namespace

Plans search(const Job& job, const Hardware& hardware, int ranks, Objective objective, size_t most,
             bool with_neighbours) {
  return Search(job, hardware, ranks, objective).run(most, with_neighbours);
}

}  // namespace llm
