#include "llm/train/options.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "llm/base/error.h"
#include "llm/model/parameters.h"

namespace llm {
namespace {

// Calls visit(flag name, field) for each option, so that writing and reading cannot differ.
template <class Options, class Visit>
void each_option(Options& o, Visit&& visit) {
  visit("data", o.data), visit("out", o.out), visit("val_fraction", o.val_fraction);
  visit("batch", o.batch), visit("grad_accum", o.grad_accum), visit("total_batch_tokens", o.total_batch_tokens);
  visit("steps", o.steps), visit("tokens", o.tokens), visit("optimizer", o.optimizer);
  visit("lr", o.lr), visit("beta1", o.beta1), visit("beta2", o.beta2), visit("epsilon", o.epsilon);
  visit("weight_decay", o.weight_decay), visit("grad_clip", o.grad_clip), visit("warmup", o.warmup);
  visit("schedule", o.schedule), visit("seed", o.seed), visit("eval_every", o.eval_every);
  visit("eval_batches", o.eval_batches), visit("save_every", o.save_every), visit("sample_every", o.sample_every);
  visit("keep_last", o.keep_last), visit("sample_prompt", o.sample_prompt), visit("memory_budget", o.memory_budget);
  visit("data_tokens", o.data_tokens), visit("dtype", o.dtype), visit("zero_projections", o.zero_projections);
  visit("z_loss", o.z_loss), visit("guard_deviations", o.guard_deviations);
  visit("document_mask", o.document_mask), visit("dropout", o.dropout);
}

bool is_newer(std::string_view name) {
  for (const char* newer : {"dtype", "zero_projections", "z_loss", "guard_deviations", "document_mask", "dropout"})
    if (name == newer) return true;
  return false;
}

std::string short_number(double value) {
  std::ostringstream out;
  out.precision(3);
  out << value;
  return out.str();
}

}  // namespace

std::string TrainOptions::json(const ModelConfig& m) const {
  nlohmann::ordered_json j;
  each_option(*this, [&](const char* name, const auto& value) { j[name] = value; });
  j["model"] = {{"vocabulary", m.vocabulary},
                {"context", m.context},
                {"layers", m.layers},
                {"heads", m.heads},
                {"kv_heads", m.kv_heads},
                {"channels", m.channels},
                {"head_size", m.head_size},
                {"hidden", m.hidden},
                {"norm", name_of(m.norm)},
                {"positions", name_of(m.positions)},
                {"activation", name_of(m.activation)},
                {"qk_norm", m.qk_norm},
                {"bias", m.bias},
                {"tied_head", m.tied_head},
                {"logit_softcap", m.logit_softcap},
                {"parameters", parameter_count(m)}};
  return j.dump(2) + "\n";
}

TrainOptions TrainOptions::parse(const std::string& text, const std::string& where) {
  TrainOptions o;
  o.guard_deviations = 0;
  try {
    const auto j = nlohmann::json::parse(text);
    each_option(o, [&](const char* name, auto& value) {
      // In runs from before there was a choice it is as it was then.
      if (!is_newer(name) || j.contains(name)) j.at(name).get_to(value);
    });
  } catch (const nlohmann::json::exception& e) {
    fail(where, ": not the settings of a run: ", e.what());
  }
  return o;
}

std::vector<Rule> apply_rules(TrainOptions& o, const ModelConfig& m, int64_t val_tokens) {
  std::vector<Rule> rules;
  const auto rule = [&](const char* name, auto value, const char* reason) {
    rules.push_back({name, short_number(static_cast<double>(value)), reason});
  };
  const int64_t T = m.context;
  const auto parameters = static_cast<double>(parameter_count(m));
  if (!o.batch) {
    if (o.total_batch_tokens && !o.grad_accum && o.total_batch_tokens < 1024) {
      o.batch = std::max<int64_t>(1, o.total_batch_tokens / T);
    } else {
      o.batch = std::clamp<int64_t>(1024 / T, 1, 64);
    }
    rule("batch", o.batch, "about 1024 tokens a micro-step: small steps make the most of few tokens");
  }
  if (o.total_batch_tokens) {
    const int64_t micro = o.batch * T;
    if (o.grad_accum && o.grad_accum * micro != o.total_batch_tokens)
      fail_usage("--total-batch-tokens ", o.total_batch_tokens,
                 " is not --batch x --context x --grad-accum = ", o.grad_accum * micro);
    if (o.total_batch_tokens % micro)
      fail_usage("--total-batch-tokens ", o.total_batch_tokens, " is not a multiple of --batch x --context = ", micro);
    o.grad_accum = o.total_batch_tokens / micro;
  }
  if (!o.grad_accum) {
    // The batch beyond which more tokens a step stop paying grows about as the square root of the run's tokens (Zhang et
    // al. 2025); 1024 tokens serve a run of 16 million.
    const double run = o.tokens ? static_cast<double>(o.tokens) : 20 * parameters;
    const double wanted = 1024 * std::sqrt(run / 16e6);
    o.grad_accum = std::max<int64_t>(1, std::llround(wanted / static_cast<double>(o.batch * T)));
    if (o.grad_accum > 1 && !o.steps) {
      rule("grad-accum", o.grad_accum, "tokens a step grow with the root of the run's tokens (Zhang et al. 2025)");
    } else {
      o.grad_accum = 1;
    }
  }
  const int64_t step_tokens = o.batch * o.grad_accum * T;
  o.total_batch_tokens = step_tokens;
  if (o.tokens && !o.steps) o.steps = std::max<int64_t>(1, o.tokens / step_tokens);
  if (!o.steps) {
    o.steps = std::max<int64_t>(20, static_cast<int64_t>(20 * parameters / static_cast<double>(step_tokens)));
    rule("steps", o.steps, "20 tokens a parameter (Hoffmann et al. 2022)");
  }
  o.tokens = o.steps * step_tokens;
  if (o.lr == 0) {
    o.lr = std::min(0.01, 0.64 / static_cast<double>(m.channels));
    rule("lr", o.lr, "0.64 / channels: the best rate falls as the model gets wider (Yang et al. 2022)");
  }
  if (o.beta2 == 0) {
    o.beta2 = step_tokens < 16384 ? 0.99 : 0.95;
    rule("beta2", o.beta2, "0.99 for steps under 16384 tokens, whose gradients are noisy, else 0.95");
  }
  if (o.warmup < 0) {
    o.warmup = std::min<int64_t>(std::max<int64_t>(o.steps / 20, std::min<int64_t>(20, o.steps / 2)), 2000);
    rule("warmup", o.warmup, "5 % of the steps, at most 2000");
  }
  if (o.eval_every < 0) {
    o.eval_every = val_tokens > 1 ? std::max<int64_t>(1, std::min<int64_t>(1000, (o.steps + 9) / 10)) : 0;
    rule("eval-every", o.eval_every, "ten times a run, at least every 1000 steps");
  }
  if (!o.eval_batches) {
    // Forward alone costs a third of a step, so this is 5 % of the time between two evaluations.
    o.eval_batches = std::max<int64_t>(4, o.eval_every * o.grad_accum * 3 / 20);
    rule("eval-batches", o.eval_batches, "5 % of the time between evaluations; the last one takes all held-out text");
  }
  if (o.save_every < 0) {
    o.save_every = std::max<int64_t>(1, std::min<int64_t>(1000, (o.steps + 3) / 4));
    rule("save-every", o.save_every, "four times a run, at least every 1000 steps");
  }
  if (o.sample_every < 0) o.sample_every = std::max<int64_t>(1, (o.steps + 3) / 4);
  return rules;
}

}  // namespace llm
