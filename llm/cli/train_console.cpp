#include "llm/cli/train_console.h"

#include <cmath>
#include <iostream>

#include "llm/base/bytes.h"
#include "llm/base/error.h"

namespace llm {
namespace {

std::string fixed(double value, int digits) {
  if (std::isnan(value)) return "nan";  // whatever its sign
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

}  // namespace

void Console::on_step(const LogEntry& entry, bool is_last) {
  if (prints_log_) std::cout << entry.json() << "\n" << std::flush;
  const double seconds = *entry.ms * 1e-3;
  recent_ = recent_ > 0 ? 0.9 * recent_ + 0.1 * seconds : seconds;
  val_loss_ = entry.val_loss.value_or(val_loss_);
  std::string line = concat("step ", entry.step, "/", steps_, " | loss ", fixed(*entry.loss, 3));
  if (!std::isnan(val_loss_)) line += " | val " + fixed(val_loss_, 3);
  if (entry.expert_load) line += " | load " + fixed(*entry.expert_load, 2);
  line += " | " + format_count(*entry.tokens_per_second * seconds / recent_) + " tokens/s";
  if (entry.mfu) line += " | MFU " + fixed(100 * *entry.mfu * seconds / recent_, 0) + " %";
  line += " | " + format_seconds(recent_ * static_cast<double>(steps_ - entry.step)) + " left";
  progress_.show(line, is_last);
}

void Console::on_evaluation(int64_t done, int64_t total) {
  if (done < total) progress_.show(concat("evaluating: batch ", done, " of ", total));
}

void Console::on_skip(const SkippedStep& s) {
  progress_.clear();
  std::cerr << "step " << s.step << ": loss " << fixed(s.loss, 3) << ", gradient norm " << fixed(s.gradient_norm, 2)
            << ": " << (s.finite ? "far above those before" : "not finite") << ", the step was skipped; " << s.batch
            << "\n";
}

void Console::on_sample(const Sample& s) {
  progress_.clear();
  std::cerr << "--- sample after step " << s.step << " (prompt|continuation)\n"
            << s.prompt << "|" << s.continuation << "\n---\n";
}

void print_plan(const ModelConfig& model, const TrainOptions& o, const std::vector<Rule>& rules, const Trainer& trainer,
                int ranks, std::ostream& notes) {
  notes << "model: " << format_count(static_cast<double>(parameter_count(model))) << " parameters, "
        << (model.experts ? concat(format_count(static_cast<double>(active_parameter_count(model))),
                                   " of them active (", model.experts_per_token, " of ", model.experts, " experts",
                                   model.shared_hidden ? " and a shared one" : "", "), ")
                          : std::string())
        << model.layers << " layers, " << model.channels << " channels, " << model.heads << " heads, context "
        << (o.context < model.context ? concat(o.context, " of ", model.context) : concat(model.context))
        << ", vocabulary " << model.vocabulary << " (" << name_of(model.norm) << ", " << name_of(model.positions)
        << ", " << name_of(model.activation) << ")\n"
        << "run:   " << o.steps << " steps of " << o.total_batch_tokens
        << " tokens = " << format_count(static_cast<double>(o.tokens)) << " tokens; " << o.out << "\n";
  if (!o.mesh.is_data_alone()) notes << "mesh:  " << ranks << " ranks, " << o.mesh.text() << "\n";
  if (o.virtual_ranks > 1)
    notes << "ranks: " << o.mesh.data << ", which share a step's " << o.virtual_ranks << " x " << o.grad_accum << " x "
          << o.batch << " sequences" << (o.zero ? concat("; ZeRO ", o.zero) : std::string()) << "\n";
  for (const Rule& r : rules)
    if (!r.given) notes << "       --" << r.name << " " << r.value << "  (" << r.reason << ")\n";
  if (trainer.program().compiled().recomputation.level != Recompute::none)
    for (const PassReport& r : trainer.program().compiled().reports)
      if (r.pass == "recomputation") notes << "memory: " << r.pass << " of " << r.detail << "\n";
}

}  // namespace llm
