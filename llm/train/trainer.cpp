#include "llm/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "llm/base/clock.h"
#include "llm/base/error.h"
#include "llm/base/median.h"
#include "llm/base/process.h"
#include "llm/base/random.h"
#include "llm/model/huggingface.h"
#include "llm/train/recompute_alike.h"
#include "llm/train/rules.h"
#include "llm/train/trace.h"

namespace llm {
namespace {

constexpr int64_t kMostSkippedSteps = 10, kMostDeadSteps = 20;
constexpr int64_t kSampleTokens = 200;

DataParallel parallel_of(const ModelConfig& model, const TrainOptions& options, const Communicator* ranks) {
  Mesh mesh = options.mesh;
  if (ranks && mesh.ranks() == 1) mesh.data = ranks->size();
  const int rank = ranks ? ranks->rank() : 0;
  if (mesh.ranks() != (ranks ? ranks->size() : 1)) fail(mesh.text(), " are not as many ranks as there are");
  return {.rank = mesh.place_of(rank).data,
          .ranks = mesh.data,
          .virtual_ranks = std::max<int64_t>(1, options.virtual_ranks),
          .micro_steps = options.grad_accum,
          .zero = static_cast<int>(options.zero),
          .bucket_bytes = static_cast<size_t>(options.bucket_bytes),
          .mesh = mesh,
          .run_rank = rank,
          .context_exchange = options.context_exchange,
          .chunks = static_cast<int>(options.chunks),
          .cuts = mesh.stage > 1 ? cut_layers(model, options.context, mesh.stage * static_cast<int>(options.chunks))
                                 : std::vector<int>{},
          .splits_backward = options.pipeline == PipelineKind::zero_bubble};
}

}  // namespace

Trainer::Trainer(const ModelConfig& model, const TrainOptions& options, Dataset dataset, Device& device,
                 Communicator* ranks)
    : model_(model),
      options_(options),
      dataset_(std::move(dataset)),
      device_(device),
      ranks_(ranks),
      parallel_(parallel_of(model, options, ranks)),
      table_(parameter_table(model, parametrization_of(options))),
      placement_(table_, parallel_, options.optimizer.value(), model.tied_head),
      step_samples_(options.batch * options.grad_accum * parallel_.virtual_ranks),
      step_tokens_(step_samples_ * options.context) {
  schedule_ = {options_.schedule.value(), options_.lr, 0.0, options_.steps, options_.warmup};
  loader_ =
      std::make_unique<Loader>(dataset_.train, options_.context, options_.seed, model_.vocabulary, dataset_.mixture);
  for (const TokenStream* stream : {&dataset_.train, &dataset_.val})
    if (stream->largest_token() >= model_.vocabulary)
      fail("the data holds token ", stream->largest_token(), " but the model's vocabulary is ", model_.vocabulary,
           ": a new model takes --vocabulary ", stream->largest_token() + int64_t{1},
           ", a trained one data that was tokenized for it");

  const int32_t end_of_text = options_.document_mask && dataset_.tokenizer ? dataset_.tokenizer->end_of_text() : -1;
  if (options_.document_mask && end_of_text < 0)
    fail("the document mask: ", dataset_.tokenizer
                                    ? "the data's tokenizer has no end-of-text token"
                                    : "the data has no tokenizer that says which token is the end of a text");
  const Target target = target_on(device_, options_.dtype);
  const bool is_pipeline = parallel_.mesh.stage > 1;
  const auto build = [&](auto builder, const DataParallel& parallel) {
    return builder(model_, options_.batch, options_.context, optimizer_of(options_), dtype_of(target.precision),
                   recipe_of(options_, end_of_text), parallel);
  };
  PipelineGraphs parts;
  if (is_pipeline) parts = build(build_pipeline_graphs, parallel_);
  for (const PipelinePart& part : parts.parts) layout_.add(part.graph);
  TrainingGraph t = is_pipeline ? parts.step : build(build_training_graph, parallel_);
  tensors_ = {t.tokens, t.targets, t.loss_weights, t.loss, t.gradient_norm, t.guarded_norm, t.router_statistics};
  layout_.add(t.graph);
  sums_ = std::make_unique<VirtualRankSums>(t, parallel_, layout_, target);
  CompileOptions compiling;
  compiling.memory_budget = options_.memory_budget;
  const std::vector<PipelineGraphs> ring = recompute_alike(compiling, parallel_, target, build);
  if (is_pipeline) {
    const PipelineShape shape = {options_.pipeline, parallel_.mesh.stage, static_cast<int>(options_.grad_accum),
                                 parallel_.chunks};
    pipeline_ = std::make_unique<Pipeline>(parts, shape, parallel_, layout_, target, compiling, ring);
    compiling.memory_budget = 0;  // a step's end keeps nothing that could be computed again
  }
  training_ = std::make_unique<Program>(
      compile(std::move(t.graph), {t.loss, t.gradient_norm, t.guarded_norm}, target, compiling), layout_);
  const bool divides = parallel_.divides_parameters() || !parallel_.mesh.is_data_alone();
  std::function<void(Graph&)> divide;
  if (divides)
    divide = [this](Graph& g) { add_block_gathers(g, placement_.sliced(), parallel_, placement_.partition()); };
  if (dataset_.val.size() > 1)
    evaluator_ =
        std::make_unique<Evaluator>(model_, options_.batch, options_.context, layout_, target, end_of_text, divide);
  // Where a rank has only pieces of the parameters, all make the same samples.
  if (options_.sample_every && dataset_.tokenizer && (is_first() || divides)) {
    ModelConfig sampled = model_;
    // The cache holds as many positions; a table of learned ones is as long as it is.
    if (model_.positions == Positions::rope) sampled.context = options_.context;
    generator_ = std::make_unique<Generator>(sampled, layout_, target, dataset_.tokenizer->vocabulary(), divide);
  }
}

size_t Trainer::arena_bytes() const {
  size_t bytes = std::max(training_->arena_bytes(), sums_->arena_bytes());
  if (pipeline_) bytes = std::max(bytes, pipeline_->arena_bytes());
  if (evaluator_) bytes = std::max(bytes, evaluator_->arena_bytes());
  if (generator_) bytes = std::max(bytes, generator_->arena_bytes());
  return bytes;
}

void Trainer::allocate(Communicator* device_ranks, Communicator* forward, Communicator* backward) {
  device_ranks_ = device_ranks;
  arena_ = std::make_unique<Arena>(arena_bytes(), device_, layout_.host_bytes());
  training_->bind(*arena_, device_ranks);
  sums_->bind(*arena_);
  if (pipeline_)
    pipeline_->bind(*arena_, device_ranks, forward ? forward : device_ranks, backward ? backward : device_ranks);
  if (evaluator_) evaluator_->bind(*arena_, device_ranks);
  if (generator_) generator_->bind(*arena_, device_ranks);
  runner_ = std::make_unique<StepRunner>(*training_, *sums_, tensors_, *loader_, parallel_,
                                         Shape{options_.batch, options_.context}, device_, pipeline_.get());
}

void Trainer::initialise() {
  WholeTensors tensors = whole_tensors();
  for (const Parameter& p : table_) {
    float* const values = tensors.room(weights_of(p), p.shape.elements());
    llm::initialise(device_.threads(), p, options_.seed, values);
    round_parameter(tensors, p, values);
  }
  tensors.flush();
}

// Where a parameter's exact values lie.
std::string Trainer::weights_of(const Parameter& p) const {
  return options_.dtype == Precision::fp32 ? p.name : master_of(p.name);
}

std::vector<StateTensor> Trainer::state_tensors() const {
  std::vector<StateTensor> tensors = optimizer_state(table_, options_.optimizer.value());
  if (options_.guard_deviations > 0) tensors.push_back({kGuardState, {kGuardStatistics}});
  return tensors;
}

// In a bf16 run a parameter is made from its master (values), with the rounding of the last step that changed it: so a
// resumed run has the same bits.
void Trainer::round_parameter(WholeTensors& tensors, const Parameter& p, const float* whole) {
  if (weights_of(p) == p.name || !placement_.is_here(p.name)) return;
  const float* const values = tensors.slice_of(p.name, whole);
  const int64_t elements = tensors.slice_elements(p.name);
  std::vector<bf16> rounded(static_cast<size_t>(elements));
  device_.threads().for_blocks(elements, 16384, [&](int64_t begin, int64_t end) {
    if (state_.rounded_step < 0)
      std::transform(values + begin, values + end, rounded.begin() + begin, nearest_bf16);
    else
      round_stochastically(values, rounded.data(), begin, end, options_.seed, state_.rounded_step, stream_of(p.name));
  });
  const Piece piece = placement_.piece_of(p.name);
  if (piece.count == 0) return;
  const auto count = static_cast<size_t>(piece.count < 0 ? elements : piece.count);
  arena_->write(layout_.offset(p.name), rounded.data() + piece.first, count * sizeof(bf16));
}

void Trainer::load_weights(const std::string& directory) {
  WholeTensors tensors = whole_tensors();
  const Parameter* last = nullptr;
  float* values = nullptr;
  load_parameters(directory, table_, [&](size_t i) {
    if (last) round_parameter(tensors, *last, values);
    last = &table_[i];
    return values = tensors.room(weights_of(*last), last->shape.elements());
  });
  round_parameter(tensors, *last, values);
  tensors.flush();
}

void Trainer::load(const std::string& checkpoint) {
  if (read_config(checkpoint + "/config.json") != model_) fail(checkpoint, ": its config.json is not this run's model");
  state_ = read_trainer_state(checkpoint);
  load_weights(checkpoint);
  WholeTensors tensors = whole_tensors();
  const std::vector<StateTensor> optimizer = state_tensors();
  load_optimizer(checkpoint, optimizer,
                 [&](size_t i) { return tensors.room(optimizer[i].name, optimizer[i].shape.elements()); });
  tensors.flush();
}

void Trainer::initialise_from(const std::string& directory) {
  initialise();  // the moments
  load_weights(directory);
}

Trainer::Due Trainer::due_after(int64_t steps) const {
  const bool end = steps == options_.steps;
  const auto is_due = [&](int64_t every) { return every > 0 && (steps % every == 0 || end); };
  return {.evaluation = evaluator_ && is_due(options_.eval_every),
          .sample = options_.sample_every && dataset_.tokenizer && is_due(options_.sample_every),
          .save = is_due(options_.save_every),
          .end = end};
}

// As many steps as may be under way at once; none beyond one after which something looks at the weights.
void Trainer::start_steps(int64_t& started, bool stop_requested) {
  while (started - state_.step <= runner_->ahead() && started < options_.steps && !stop_requested &&
         (started == state_.step || !due_after(started).any())) {
    const uint64_t sent = device_ranks_ ? device_ranks_->bytes_sent() : 0;
    const double waited = device_ranks_ ? device_ranks_->seconds_waited() : 0;
    std::vector<NodeTime> times;
    const bool is_traced = !options_.trace.empty() && started == first_step_ + 1;
    if (is_traced && ranks_) barrier(*ranks_);
    const double begin = seconds_since(Clock::time_point());
    runner_->start({.learning_rate = static_cast<float>(schedule_.at(started)), .step = started, .seed = options_.seed},
                   state_.samples + (started - state_.step) * step_samples_, is_traced ? &times : nullptr);
    if (device_ranks_) {
      step_sent_ = static_cast<int64_t>(device_ranks_->bytes_sent() - sent);
      step_waited_ = device_ranks_->seconds_waited() - waited;
    }
    if (is_traced) {
      std::string events = trace_events(training_->graph(), times, begin, parallel_.run_rank);
      if (pipeline_) events += pass_events(pipeline_->times(), begin, parallel_.run_rank);
      write_trace(options_.trace, events, ranks_);
    }
    ++started;
  }
}

std::string Trainer::batch_position() const {
  const int64_t count = step_samples_, first = state_.samples;
  const auto& shards = dataset_.train.shards();
  std::string text =
      concat("its batch: samples ", first, " to ", first + count - 1, ", the first at token ", loader_->position(first),
             " of ", shards.front().path(), shards.size() > 1 ? " and its followers" : "");
  constexpr int64_t kShown = 3;
  for (int64_t i = 0; i < std::min(count, kShown) && dataset_.tokenizer; ++i)
    text += (i ? ", " : ": ") + excerpt(loader_->position(first + i));
  return text + (dataset_.tokenizer && count > kShown ? ", ..." : "");
}

// The first words of the sample that begins there, in quotes and on one line.
std::string Trainer::excerpt(int64_t position) const {
  constexpr int64_t kMostTokens = 60;
  constexpr size_t kMostBytes = 60;
  std::vector<int32_t> ids(static_cast<size_t>(std::min(kMostTokens, options_.context)));
  dataset_.train.read(position, static_cast<int64_t>(ids.size()), ids.data());
  std::string text = "\"";
  size_t bytes = 0;
  for (const char c : dataset_.tokenizer->decode(ids)) {
    if (++bytes > kMostBytes && (c & 0xc0) != 0x80) break;  // not in the middle of a character
    const auto byte = static_cast<unsigned char>(c);
    text += c == '\n' ? "\\n" : byte < ' ' || byte == 0x7f ? "?" : std::string(1, c);
  }
  return text + "\"";
}

// Called before the step is counted. A step that was left out has changed nothing.
void Trainer::check_skipped(const StepResult& r, TrainingObserver& observer) {
  const bool finite = std::isfinite(r.loss) && std::isfinite(r.gradient_norm);
  if (finite) skipped_ = 0;
  // Where the loss is 0 as well, all is learned.
  dead_ = r.gradient_norm == 0 && r.loss != 0 ? dead_ + 1 : 0;
  if (dead_ == kMostDeadSteps)
    fail("the gradient was exactly 0 in each of the last ", kMostDeadSteps, " steps up to step ", state_.step + 1,
         ", at a loss of ", r.loss,
         ": nothing is learned any more; resume from an earlier checkpoint, or start again "
         "with a lower learning rate");
  if (finite && !r.skipped) return;
  observer.on_skip({state_.step + 1, r.loss, r.gradient_norm, finite, batch_position()});
  if (!finite && ++skipped_ == kMostSkippedSteps)
    fail("the last ", kMostSkippedSteps, " steps up to step ", state_.step + 1,
         " were not finite; resume from a checkpoint with a lower learning rate");
}

LogEntry Trainer::finish_step(const StepResult& result, double seconds, double peak_gflops) {
  if (!result.skipped) state_.rounded_step = state_.step;
  state_.step += 1;
  state_.samples += step_samples_;
  state_.tokens += step_tokens_;
  const auto tokens = static_cast<double>(step_tokens_);
  LogEntry entry;
  entry.step = state_.step;
  entry.loss = result.loss, entry.learning_rate = result.learning_rate, entry.grad_norm = result.gradient_norm;
  if (result.skipped) entry.skipped = true;
  if (result.routers)
    entry.expert_load = result.routers->load, entry.balance_loss = result.routers->balance,
    entry.router_entropy = result.routers->entropy;
  if (ranks_) {
    entry.ranks = parallel_.ranks, entry.sent_bytes = step_sent_;
    if (!device_.cuda()) entry.wait_ms = step_waited_ * 1e3;
  }
  entry.tokens = state_.tokens, entry.ms = seconds * 1e3, entry.tokens_per_second = tokens / seconds;
  if (peak_gflops > 0) {
    const double mfu = training_flops_per_token(model_, options_.context) * tokens / seconds / (peak_gflops * 1e9);
    if (mfu <= 1) entry.mfu = mfu;  // else the machine was busy when its peak was measured
  }
  return entry;
}

double Trainer::evaluate(int64_t max_batches, LogEntry& entry, TrainingObserver& observer) {
  const auto [loss, tokens] = evaluator_->run(
      dataset_.val, max_batches, [&](int64_t done, int64_t total) { observer.on_evaluation(done, total); }, ranks_);
  if (!(state_.best_val_loss <= loss)) state_.best_val_loss = loss;
  entry.val_loss = loss, entry.val_tokens = tokens;
  if (bits_per_byte(loss) > 0) entry.val_bits_per_byte = bits_per_byte(loss);
  return loss;
}

double Trainer::bits_per_byte(double loss) const {
  return dataset_.val_bytes_per_token > 0 ? loss / std::numbers::ln2 / dataset_.val_bytes_per_token : 0;
}

Sample Trainer::sample() {
  std::vector<int32_t> prompt;
  if (!options_.sample_prompt.empty()) {
    dataset_.tokenizer->encode(options_.sample_prompt, true, prompt);
  } else if (evaluator_) {
    // The first words of a line of the held-out text: the model has to go on with something it has not seen.
    std::vector<int32_t> text(static_cast<size_t>(std::min<int64_t>(1024, dataset_.val.size())));
    dataset_.val.read(0, static_cast<int64_t>(text.size()), text.data());
    const auto ends_line = [&](int32_t id) { return dataset_.tokenizer->bytes_of(id).ends_with('\n'); };
    auto begin = std::find_if(text.begin(), text.end(), ends_line);
    begin = text.end() - begin > 16 ? begin + 1 : text.begin();
    prompt.assign(begin, begin + std::min<int64_t>({16, text.end() - begin, options_.context}));
  } else {
    prompt = {std::max(0, dataset_.tokenizer->end_of_text())};
  }
  Sample sample{state_.step, dataset_.tokenizer->decode(prompt), ""};
  const SamplingOptions sampling{0.8, 0, 1.0, options_.seed};
  generator_->generate(prompt, kSampleTokens, sampling, dataset_.tokenizer->end_of_text(), [&](int32_t id) {
    sample.continuation += dataset_.tokenizer->bytes_of(id);
    return true;
  });
  return sample;
}

void Trainer::save(double val_loss) {
  state_.val_loss = val_loss;
  CheckpointContent content;
  content.state = state_;
  content.state.settings_json = options_.settings_json;
  content.config = model_;
  content.table = table_;
  content.optimizer = state_tensors();
  WholeTensors tensors = whole_tensors();
  content.parameter = [&](size_t i) { return tensors.values(weights_of(table_[i]), table_[i].shape.elements()); };
  content.optimizer_tensor = [&](size_t i) {
    return tensors.values(content.optimizer[i].name, content.optimizer[i].shape.elements());
  };
  content.parameter_pieces = [&](size_t i) -> std::vector<TensorPiece> {
    const int64_t elements = table_[i].shape.elements();
    if (!has_transposed_parts(table_[i])) return tensors.own_pieces(weights_of(table_[i]), elements);
    const float* const all = tensors.values(weights_of(table_[i]), elements);
    return is_first() ? std::vector<TensorPiece>{{0, all, elements}} : std::vector<TensorPiece>{};
  };
  content.optimizer_pieces = [&](size_t i) {
    return tensors.own_pieces(content.optimizer[i].name, content.optimizer[i].shape.elements());
  };
  if (dataset_.tokenizer) {
    content.tokenizer_json = dataset_.tokenizer->json();
    content.end_tokens = dataset_.tokenizer->end_of_text();
  }
  save_checkpoint(options_.out, content, static_cast<int>(options_.keep_last), ranks_);
}

Trainer::Outcome Trainer::run(double peak_gflops, TrainingObserver& observer) {
  constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();
  const StopRequest stop;
  std::optional<RunLog> log;
  if (is_first()) log.emplace(options_.out, state_.step);
  const auto begin = Clock::now();
  first_step_ = state_.step;
  const double seconds_before = state_.seconds;
  double training_seconds = 0;
  int64_t started = state_.step, saved_at = -1;
  auto last_result = begin;
  Outcome outcome;
  std::vector<double> step_times;  // milliseconds, but for the first step, which touches memory for the first time
  while (state_.step < options_.steps && !outcome.stopped) {
    // Ranks that are told to stop at different times stop together.
    const bool stop_requested = ranks_ ? any(*ranks_, stop.requested()) : stop.requested();
    start_steps(started, stop_requested);
    outcome.stopped = started == state_.step;  // asked to stop, and nothing is under way
    if (outcome.stopped) break;
    const StepResult result = runner_->take();
    const double seconds = seconds_since(std::exchange(last_result, Clock::now()));
    training_seconds += seconds;
    if (state_.step > first_step_) step_times.push_back(1e3 * seconds);
    check_skipped(result, observer);
    LogEntry entry = finish_step(result, seconds, peak_gflops);
    const bool all_done = started == state_.step;
    outcome.stopped = all_done && stop_requested && state_.step < options_.steps;
    const Due due = outcome.stopped ? Due{.save = true} : due_after(state_.step);

    double val_loss = kNotMeasured;
    if (due.evaluation)
      val_loss = evaluate(due.end ? last_evaluation_batches(options_) : options_.eval_batches, entry, observer);
    if (due.evaluation && due.end) {
      outcome.val_loss = val_loss;
      outcome.val_tokens = *entry.val_tokens, outcome.held_out_tokens = dataset_.val.size() - 1;
    }
    if (log) log->write(entry);
    observer.on_step(entry, due.end || outcome.stopped);
    state_.seconds = seconds_before + seconds_since(begin);
    if (due.sample && generator_) observer.on_sample(sample());
    if (due.save) save(val_loss), saved_at = state_.step;
    if (all_done) last_result = Clock::now();  // What was looked at is no part of the next step's time.
  }
  if (outcome.stopped && saved_at != state_.step) save(kNotMeasured);
  outcome.val_bits_per_byte = bits_per_byte(outcome.val_loss);
  outcome.seconds = seconds_since(begin);
  if (!step_times.empty()) outcome.step_ms = median(step_times);
  outcome.tokens_per_second = static_cast<double>((state_.step - first_step_) * step_tokens_) / training_seconds;
  return outcome;
}

}  // namespace llm
