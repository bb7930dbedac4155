#include "llm/train/rules.h"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdio>

#include "llm/base/error.h"

namespace llm {
namespace {

std::string text_of(bool value) { return value ? "on" : "off"; }
std::string text_of(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}
template <std::integral Integer>
std::string text_of(Integer value) {
  return std::to_string(value);
}
template <HasNames Enum>
std::string text_of(Enum value) {
  return name_of(value);
}

class Rules {
 public:
  Rules(TrainOptions& options, const ModelConfig& model, int64_t val_tokens, bool is_trained)
      : o_(options),
        m_(model),
        val_tokens_(val_tokens),
        is_trained_(is_trained),
        parameters_(static_cast<double>(active_parameter_count(model))) {}

  std::vector<Rule> run() {
    length();
    const OptimizerKind optimizer = usual_optimizer(m_, o_.context, o_.total_batch_tokens);
    choose("optimizer", o_.optimizer, optimizer,
           optimizer == OptimizerKind::muon
               ? "less loss for the same time than adamw (Jordan et al. 2024), which embeddings, head and vectors take"
               : "muon's products would cost more than the gradients of such small steps");
    say("parametrization", o_.parametrization,
        "completep: rates in units of a model of 128 channels and 4 layers, `graph --parameters` shows each "
        "(Yang et al. 2022; Dey et al. 2025)");
    choose("zero-projections", o_.zero_projections, usually_zero_projections(*o_.optimizer),
           o_.optimizer == OptimizerKind::muon ? "blocks begin as the identity, the head without an opinion "
                                                 "(Zhang et al. 2019; Yang et al. 2022, appendix D.2)"
                                               : "drawn: from zero adamw gets away more slowly than muon");
    rates();
    routers();
    watching();
    return std::move(rules_);
  }

 private:
  // A value for which there is no rule, only a choice.
  template <class Value>
  void say(const char* name, const Value& value, const char* reason) {
    rules_.push_back({name, text_of(value), reason, true});
  }
  template <class Value>
  void set(const char* name, Value& value, bool missing, Value chosen, const std::string& reason) {
    if (missing) value = chosen;
    rules_.push_back({name, text_of(value), missing ? reason : "given", !missing});
  }

  template <class Value>
  void choose(const char* name, std::optional<Value>& value, Value chosen, const std::string& reason) {
    const bool missing = !value;
    set(name, missing ? value.emplace(chosen) : *value, missing, chosen, reason);
  }

  void length() {
    // Of a run from before there was a choice, too.
    if (!o_.context) o_.context = m_.context;
    const int64_t T = o_.context;
    const int64_t wanted_batch = o_.total_batch_tokens && !o_.grad_accum && o_.total_batch_tokens < 1024
                                     ? std::max<int64_t>(1, o_.total_batch_tokens / T)
                                     : std::clamp<int64_t>(1024 / T, 1, 64);
    set("batch", o_.batch, !o_.batch, wanted_batch,
        "about 1024 tokens a micro-step: small steps make the most of few tokens");
    if (!o_.virtual_ranks) o_.virtual_ranks = 1;
    const int64_t R = o_.virtual_ranks, micro = R * o_.batch * T;  // of all ranks together
    if (o_.total_batch_tokens) {
      if (o_.grad_accum && o_.grad_accum * micro != o_.total_batch_tokens)
        fail_value("total-batch-tokens", " ", o_.total_batch_tokens, " is not ", R > 1 ? "ranks x " : "",
                   "batch x context x grad-accum = ", o_.grad_accum * micro);
      if (o_.total_batch_tokens % micro)
        fail_value("total-batch-tokens", " ", o_.total_batch_tokens, " is not a multiple of ", R > 1 ? "ranks x " : "",
                   "batch x context = ", micro);
      o_.grad_accum = o_.total_batch_tokens / micro;
    }
    // The number of tokens a step beyond which more do not pay grows about as the square root of the run's tokens; 1024
    // serve a run of 16 million.
    const double run = o_.tokens ? static_cast<double>(o_.tokens) : 20 * parameters_;
    const int64_t accumulated =
        o_.steps ? 1 : std::max<int64_t>(1, std::llround(1024 * std::sqrt(run / 16e6) / static_cast<double>(micro)));
    set("grad-accum", o_.grad_accum, !o_.grad_accum, accumulated,
        "1024 tokens a step for a run of 16M tokens, growing with their root (Zhang et al. 2025)");
    const int64_t step_tokens = o_.total_batch_tokens = micro * o_.grad_accum;
    if (o_.tokens && !o_.steps) o_.steps = std::max<int64_t>(1, o_.tokens / step_tokens);
    const auto by_size = static_cast<int64_t>(20 * parameters_ / static_cast<double>(step_tokens));
    set("steps", o_.steps, !o_.steps, std::max<int64_t>(20, by_size), "20 tokens a parameter (Hoffmann et al. 2022)");
    o_.tokens = o_.steps * step_tokens;
  }

  void rates() {
    const auto steps = static_cast<double>(o_.steps), step_tokens = static_cast<double>(o_.total_batch_tokens);
    choose("schedule", o_.schedule, ScheduleKind::linear,
           "straight to zero is best for a run of a known length (Defazio et al. 2023; Bergsma et al. 2025)");
    // These schedules keep the highest rate for most of the run.
    const bool held = o_.schedule == ScheduleKind::wsd || o_.schedule == ScheduleKind::constant;
    const bool standard = o_.parametrization == RateScaling::standard;
    // The best rates over 200 to 6,000 steps, as measured (llm/train/README.md).
    const bool muon = o_.optimizer == OptimizerKind::muon;
    // Attention without QK-norm takes only a lower rate of AdamW.
    const double scale = !muon ? 0.08 : held ? 0.26 : 0.22, most = muon ? 0.015 : m_.qk_norm ? 0.006 : 0.002;
    // Fewer tokens make a noisier direction, and Muon follows it at full length nevertheless, which costs where the
    // rate is held.
    const double few = muon && held && step_tokens < 1024 ? std::pow(step_tokens / 1024, 0.25) : 1;
    const double rate = std::min(most, scale * few / std::sqrt(steps)) * (is_trained_ ? 0.1 : 1);
    const std::string units = standard ? " x 128 / channels" : "";
    const std::string of_step = few < 1 ? " (tokens a step / 1024)^(1/4)" : "";
    const std::string rule = concat(scale, of_step, " / sqrt(steps)", units, ", at most ", most, units);
    set("lr", o_.lr, o_.lr == 0, standard ? rate * kBaseChannels / static_cast<double>(m_.channels) : rate,
        is_trained_ ? concat("a tenth of a new model's, ", scale, " / sqrt(steps): what is learned should stay")
        : standard  ? rule + " (Defazio et al. 2023; Yang et al. 2022)"
                    : rule + " (Defazio et al. 2023); the same at every size (Yang et al. 2022; Dey et al. 2025)");
    // Weights are an average of the last 1 / (lr decay) updates: best is the whole run, or twice as many where the rate
    // is held.
    set("weight-decay", o_.weight_decay, o_.weight_decay < 0, 1 / (o_.lr * std::max(steps * (held ? 2 : 1), 200.0)),
        concat("1 / (lr x steps", held ? " x 2" : "",
               "): weights average their updates over the run, and over 200 steps or more (Wang and Aitchison 2024)"));
    const double window = std::clamp(std::min(steps / 20, 1e7 / step_tokens), 20.0, 1000.0);
    set("beta2", o_.beta2, o_.beta2 == 0, 1 - 1 / window,
        "averages over 1/20 of the steps, at most 10M tokens (Marek et al. 2025), between 0.95 and 0.999");
    set("warmup", o_.warmup, o_.warmup < 0,
        std::min<int64_t>(std::max<int64_t>(o_.steps / 20, std::min<int64_t>(20, o_.steps / 2)), 2000),
        "5 % of the steps, at least 20 and at most 2000");
    say("dropout", o_.dropout, "for many epochs over little text; a run over new text needs none");
    say("z-loss", o_.z_loss, "off unless asked for (Chowdhery et al. 2022)");
    say("document-mask", o_.document_mask, "off unless asked for: attention may cross from one document into the next");
    say("guard", o_.guard_deviations, "a step that sticks out by so many standard deviations is left out");
    say("beta1", o_.beta1, "AdamW's usual");
    say("epsilon", o_.epsilon, "AdamW's usual");
    say("grad-clip", o_.grad_clip, "usual since GPT-3 (Brown et al. 2020)");
  }

  void routers() {
    const bool balance = o_.balance_weight < 0, z_loss = o_.router_z_loss < 0;
    complete_routers(o_, m_);
    if (!m_.experts) return;
    set("expert-balance-weight", o_.balance_weight, balance, o_.balance_weight,
        m_.router_bias ? "a bias balances the experts (Wang et al. 2024)"
                       : "Fedus et al. 2022, \"Switch transformers\"");
    set("router-z-loss", o_.router_z_loss, z_loss, o_.router_z_loss, "Zoph et al. 2022, \"ST-MoE\"");
  }

  void watching() {
    set("eval-every", o_.eval_every,
        o_.eval_every<0, val_tokens_> 1 ? std::max<int64_t>(1, std::min<int64_t>(1000, (o_.steps + 9) / 10)) : 0,
        "ten times a run, at least every 1000 steps");
    // A forward pass costs a third of a step, so a share s of the time between two evaluations is 3 s batches a micro-step.
    const int64_t between = o_.eval_every * o_.grad_accum, least = std::clamp<int64_t>(between * 3 / 4, 1, 4);
    set("eval-batches", o_.eval_batches, !o_.eval_batches, std::max<int64_t>(least, between * 3 / 20),
        "5 % of the time between evaluations, or 4 batches within 25 %; the last one takes all held-out text, if that "
        "is "
        "within 25 % of the run's time");
    set("save-every", o_.save_every, o_.save_every < 0,
        std::max<int64_t>(1, std::min<int64_t>(1000, (o_.steps + 3) / 4)),
        "four times a run, at least every 1000 steps");
    set("sample-every", o_.sample_every, o_.sample_every < 0, std::max<int64_t>(1, (o_.steps + 3) / 4),
        "four times a run");
  }

  TrainOptions& o_;
  const ModelConfig& m_;
  int64_t val_tokens_;
  bool is_trained_;
  double parameters_;
  std::vector<Rule> rules_;
};

}  // namespace

OptimizerKind usual_optimizer(const ModelConfig& model, int64_t context, int64_t step_tokens) {
  return muon_flops(model) <= training_flops_per_token(model, context) * static_cast<double>(step_tokens)
             ? OptimizerKind::muon
             : OptimizerKind::adamw;
}

void complete_routers(TrainOptions& o, const ModelConfig& model) {
  if (o.balance_weight < 0) o.balance_weight = model.experts && !model.router_bias ? 0.01 : 0;
  if (o.router_z_loss < 0) o.router_z_loss = model.experts ? 0.001 : 0;
}

bool usually_zero_projections(OptimizerKind optimizer) { return optimizer == OptimizerKind::muon; }

int64_t last_evaluation_batches(const TrainOptions& o) {
  return std::max(o.eval_batches, o.steps * o.grad_accum * 3 / 4);
}

std::vector<Rule> apply_rules(TrainOptions& options, const ModelConfig& model, int64_t val_tokens, bool is_trained) {
  return Rules(options, model, val_tokens, is_trained).run();
}

}  // namespace llm
