#include "llm/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <numbers>

#include "llm/base/error.h"
#include "llm/base/process.h"
#include "llm/base/random.h"
#include "llm/model/huggingface.h"

namespace llm {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr int64_t kMostSkippedSteps = 10;
constexpr int64_t kSampleTokens = 200;

std::string fixed(double value, int digits) {
  if (std::isnan(value)) return "nan";  // whatever its sign
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

}  // namespace

SpikeWatch::Verdict SpikeWatch::look(double loss, double gradient_norm) {
  if (!std::isfinite(loss) || !std::isfinite(gradient_norm)) return Verdict::not_finite;
  const double distance = loss - mean_;
  const bool spike = seen_ >= 50 && distance > 0.5 && distance > 6 * std::sqrt(variance_);
  // The first losses fall fast: weigh all equally at the start, then forget over about 100 steps.
  const double weight = std::max(0.01, 1.0 / static_cast<double>(++seen_));
  mean_ += weight * distance;
  variance_ = (1 - weight) * (variance_ + weight * distance * distance);
  return spike ? Verdict::spike : Verdict::ordinary;
}

Trainer::Trainer(const ModelConfig& model, const TrainOptions& options, Dataset dataset, ThreadTeam& threads)
    : model_(model),
      options_(options),
      dataset_(std::move(dataset)),
      threads_(threads),
      table_(parameter_table(model)) {
  schedule_ = {schedule_named(options_.schedule), options_.lr, 0.0, options_.steps, options_.warmup};
  train_stream_ = std::make_unique<TokenStream>(dataset_.train);
  loader_ = std::make_unique<Loader>(*train_stream_, model_.context, options_.seed);
  if (!dataset_.val.empty()) val_stream_ = std::make_unique<TokenStream>(dataset_.val);
  for (const TokenStream* stream : {train_stream_.get(), val_stream_.get()})
    if (stream && stream->largest_token() >= model_.vocabulary)
      fail("the data holds token ", stream->largest_token(), " but the model's vocabulary is ", model_.vocabulary,
           "; choose a model without a fixed vocabulary, or tokenize the data for this one");

  const OptimizerOptions optimizer{options_.beta1, options_.beta2, options_.epsilon, options_.weight_decay,
                                   options_.grad_clip};
  TrainingGraph t = build_training_graph(model_, options_.batch, model_.context, optimizer, threads_.size());
  tokens_ = t.tokens, targets_ = t.targets, loss_weights_ = t.loss_weights;
  losses_ = t.losses, gradient_norm_ = t.gradient_norm;
  layout_.add(t.graph);
  CompileOptions compiling;
  compiling.memory_budget = options_.memory_budget;
  training_ = std::make_unique<Program>(compile(std::move(t.graph), {losses_, gradient_norm_}, compiling), layout_);
  if (val_stream_ && val_stream_->size() > 1)
    evaluator_ = std::make_unique<Evaluator>(model_, options_.batch, model_.context, layout_, threads_.size());
  if (options_.sample_every && dataset_.tokenizer)
    generator_ = std::make_unique<Generator>(model_, layout_, threads_.size());
}

size_t Trainer::arena_bytes() const {
  size_t bytes = training_->arena_bytes();
  if (evaluator_) bytes = std::max(bytes, evaluator_->arena_bytes());
  if (generator_) bytes = std::max(bytes, generator_->arena_bytes());
  return bytes;
}

void Trainer::allocate() {
  arena_ = std::make_unique<Arena>(arena_bytes());
  training_->bind(*arena_, threads_);
  if (evaluator_) evaluator_->bind(*arena_, threads_);
  if (generator_) generator_->bind(*arena_, threads_);
}

void Trainer::initialise() {
  for (const Parameter& p : table_)
    llm::initialise(threads_, p, options_.seed, reinterpret_cast<float*>(arena_->data() + layout_.offset(p.name)));
}

void Trainer::load(const std::string& checkpoint) {
  if (read_config(checkpoint + "/config.json") != model_) fail(checkpoint, ": its config.json is not this run's model");
  state_ = read_trainer_state(checkpoint);
  const auto place = [&](const std::string& name) {
    return reinterpret_cast<float*>(arena_->data() + layout_.offset(name));
  };
  load_parameters(checkpoint, table_, [&](size_t i) { return place(table_[i].name); });
  const auto moments = moment_tensors(table_);
  load_optimizer(checkpoint, moments, [&](size_t i) { return place(moments[i].name); });
}

Trainer::StepResult Trainer::step() {
  const int64_t B = options_.batch, T = model_.context, micro_steps = options_.grad_accum;
  StepResult result;
  result.learning_rate = schedule_.at(state_.step);
  StepState& s = training_->step;
  s.step = state_.step;
  s.learning_rate = static_cast<float>(result.learning_rate);
  std::fill_n(training_->data(loss_weights_), B * T,
              static_cast<float>(1.0 / static_cast<double>(B * T * micro_steps)));
  double sum = 0;
  for (int64_t micro = 0; micro < micro_steps; ++micro) {
    s.micro_step = micro;
    loader_->read(state_.samples + micro * B, B, training_->data<int32_t>(tokens_), training_->data<int32_t>(targets_));
    training_->run(Phase::forward, Phase::backward);
    const float* losses = training_->data(losses_);
    for (int64_t i = 0; i < B * T; ++i) sum += losses[i];
  }
  training_->run(Phase::optimizer, Phase::optimizer);
  result.loss = sum / static_cast<double>(B * T * micro_steps);
  result.gradient_norm = *training_->data(gradient_norm_);
  return result;
}

std::string Trainer::batch_position() const {
  const int64_t count = options_.batch * options_.grad_accum, first = state_.samples;
  return concat("its batch: samples ", first, " to ", first + count - 1, ", the first at token ",
                loader_->position(first), " of ", dataset_.train.front(),
                dataset_.train.size() > 1 ? " and its followers" : "");
}

// Called before the step is counted. A step that is not finite has changed nothing: the optimizer leaves the weights alone.
void Trainer::report(SpikeWatch::Verdict verdict, const StepResult& r) {
  if (verdict == SpikeWatch::Verdict::ordinary) {
    skipped_ = 0;
    return;
  }
  progress_.clear();
  if (verdict == SpikeWatch::Verdict::spike) {
    skipped_ = 0;
    std::cerr << "step " << state_.step + 1 << ": the loss jumped to " << fixed(r.loss, 3) << " (gradient norm "
              << fixed(r.gradient_norm, 2) << "); " << batch_position() << "\n";
    return;
  }
  std::cerr << "step " << state_.step + 1 << ": loss " << fixed(r.loss, 3) << ", gradient norm "
            << fixed(r.gradient_norm, 2) << ": not finite, the step was skipped; " << batch_position() << "\n";
  if (++skipped_ == kMostSkippedSteps)
    fail("the last ", kMostSkippedSteps, " steps up to step ", state_.step + 1,
         " were not finite; go back with --resume from a checkpoint and a lower --lr");
}

double Trainer::evaluate(int64_t max_batches) { return evaluator_->run(*val_stream_, max_batches).loss; }

double Trainer::bits_per_byte(double loss) const {
  return dataset_.val_bytes_per_token > 0 ? loss / std::numbers::ln2 / dataset_.val_bytes_per_token : 0;
}

void Trainer::sample() {
  std::vector<int32_t> prompt;
  if (!options_.sample_prompt.empty()) {
    dataset_.tokenizer->encode(options_.sample_prompt, true, prompt);
  } else if (evaluator_) {
    // The first words of a line of the held-out text: the model has to go on with something it has not seen.
    std::vector<int32_t> text(static_cast<size_t>(std::min<int64_t>(1024, val_stream_->size())));
    val_stream_->read(0, static_cast<int64_t>(text.size()), text.data());
    const auto ends_line = [&](int32_t id) { return dataset_.tokenizer->bytes_of(id).ends_with('\n'); };
    auto begin = std::find_if(text.begin(), text.end(), ends_line);
    begin = text.end() - begin > 16 ? begin + 1 : text.begin();
    prompt.assign(begin, begin + std::min<int64_t>({16, text.end() - begin, model_.context}));
  } else {
    prompt = {std::max(0, dataset_.tokenizer->end_of_text())};
  }
  std::string text = dataset_.tokenizer->decode(prompt) + "|";
  const SamplingOptions sampling{0.8, 0, 1.0, options_.seed};
  generator_->generate(prompt, kSampleTokens, sampling, dataset_.tokenizer->end_of_text(), [&](int32_t id) {
    text += dataset_.tokenizer->bytes_of(id);
    return true;
  });
  progress_.clear();
  std::cerr << "--- sample after step " << state_.step << " (prompt|continuation)\n" << text << "\n---\n";
}

void Trainer::save(double val_loss) {
  state_.val_loss = val_loss;
  CheckpointContent content;
  content.state = state_;
  content.state.settings_json = options_.json(model_);
  content.config = model_;
  content.table = table_;
  content.optimizer = moment_tensors(table_);
  const auto place = [&](const std::string& name) {
    return reinterpret_cast<const float*>(arena_->data() + layout_.offset(name));
  };
  content.parameter = [&](size_t i) { return place(table_[i].name); };
  content.optimizer_tensor = [&](size_t i) { return place(content.optimizer[i].name); };
  if (dataset_.tokenizer) {
    content.tokenizer_json = dataset_.tokenizer->json();
    content.eos_token_id = dataset_.tokenizer->end_of_text();
  }
  save_checkpoint(options_.out, content, static_cast<int>(options_.keep_last));
}

Trainer::Outcome Trainer::run(double peak_gflops, const std::function<void(const LogEntry&)>& on_log) {
  const StopRequest stop;
  RunLog log(options_.out, state_.step);
  const int64_t step_tokens = options_.batch * options_.grad_accum * model_.context;
  const double step_flops = training_flops_per_token(model_, model_.context) * static_cast<double>(step_tokens);
  const auto due = [&](int64_t every) { return every > 0 && state_.step % every == 0; };
  const auto begin = Clock::now();
  const int64_t first_step = state_.step;
  const double seconds_before = state_.seconds;
  double training_seconds = 0, recent = 0, last_val = state_.best_val_loss;
  int64_t saved_at = -1;
  Outcome outcome;
  while (state_.step < options_.steps && !outcome.stopped) {
    const auto start = Clock::now();
    const StepResult result = step();
    const double seconds = seconds_since(start);
    report(watch_.look(result.loss, result.gradient_norm), result);
    state_.step += 1;
    state_.samples += options_.batch * options_.grad_accum;
    state_.tokens += step_tokens;
    training_seconds += seconds;
    recent = recent > 0 ? 0.9 * recent + 0.1 * seconds : seconds;

    LogEntry entry;
    entry.step = state_.step;
    entry.loss = result.loss, entry.learning_rate = result.learning_rate, entry.grad_norm = result.gradient_norm;
    entry.tokens = state_.tokens, entry.ms = seconds * 1e3;
    entry.tokens_per_second = static_cast<double>(step_tokens) / seconds;
    if (peak_gflops > 0) entry.mfu = step_flops / seconds / (peak_gflops * 1e9);
    outcome.stopped = stop.requested() && state_.step < options_.steps;
    const bool last = state_.step == options_.steps;
    double val_loss = std::numeric_limits<double>::quiet_NaN();
    if (evaluator_ && options_.eval_every && (due(options_.eval_every) || last) && !outcome.stopped) {
      val_loss = last_val = evaluate(last ? 0 : options_.eval_batches);
      if (!(state_.best_val_loss <= val_loss)) state_.best_val_loss = val_loss;
      entry.val_loss = val_loss;
      if (bits_per_byte(val_loss) > 0) entry.val_bits_per_byte = bits_per_byte(val_loss);
    }
    log.write(entry);
    if (on_log) on_log(entry);
    state_.seconds = seconds_before + seconds_since(begin);
    std::string line = concat("step ", state_.step, "/", options_.steps, " | loss ", fixed(result.loss, 3));
    if (!std::isnan(last_val)) line += " | val " + fixed(last_val, 3);
    line += " | " + format_count(static_cast<double>(step_tokens) / recent) + " tokens/s";
    if (peak_gflops > 0) line += " | MFU " + fixed(100 * step_flops / recent / (peak_gflops * 1e9), 0) + " %";
    line += " | " + format_seconds(recent * static_cast<double>(options_.steps - state_.step)) + " left";
    progress_.show(line, last || outcome.stopped);
    if (generator_ && !outcome.stopped && (due(options_.sample_every) || last)) sample();
    if (options_.save_every && (due(options_.save_every) || last || outcome.stopped)) {
      save(val_loss);
      saved_at = state_.step;
    }
    if (last) outcome.val_loss = std::isnan(val_loss) ? 0 : val_loss;
  }
  // Asked to stop without --save-every: what was learned is kept all the same.
  if (outcome.stopped && saved_at != state_.step) save(std::numeric_limits<double>::quiet_NaN());
  outcome.val_bits_per_byte = bits_per_byte(outcome.val_loss);
  outcome.seconds = seconds_since(begin);
  outcome.tokens_per_second = static_cast<double>((state_.step - first_step) * step_tokens) / training_seconds;
  return outcome;
}

}  // namespace llm
