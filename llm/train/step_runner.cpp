#include "llm/train/step_runner.h"

#include <algorithm>
#include <cmath>

#include "llm/ops/router_sums.h"

namespace llm {
namespace {

constexpr size_t kScalars = 3;  // loss and norms, in front of the routers' statistics

// Bytes of what a step hands over.
size_t result_bytes(const Graph& graph, const StepRunner::Tensors& tensors) {
  size_t bytes = kScalars * sizeof(float);
  for (const TensorId id : tensors.router_statistics) bytes += graph.tensor(id).bytes();
  return bytes;
}

}  // namespace

StepRunner::StepRunner(Program& program, VirtualRankSums& sums, const Tensors& tensors, Loader& loader,
                       const DataParallel& parallel, const Shape& batch, Device& device, Pipeline* pipeline)
    : program_(program),
      sums_(sums),
      tensors_(tensors),
      loader_(loader),
      parallel_(parallel),
      batch_(batch[0]),
      tokens_(batch[1]),
      loss_weight_(static_cast<float>(
          1.0 / static_cast<double>(parallel.virtual_ranks * parallel.micro_steps * batch_ * tokens_))),
      device_(device),
      pipeline_(pipeline),
      upload_(device.new_upload(static_cast<size_t>(batch_ * tokens_) * 3 * 4)),
      download_(device.new_download(result_bytes(program.graph(), tensors))) {}

// The inputs are copied to their places before each micro-step, since other tensors take these places after the inputs'
// last use.
void StepRunner::run_micro_step(const StepState& state, int64_t first_sample, Phases phases, int64_t next_sample) {
  program_.step = state;
  program_.step.first_sample = first_sample;
  provide(first_sample, program_.data<void>(tensors_.tokens), program_.data<void>(tensors_.targets),
          program_.data<void>(tensors_.loss_weights));
  run(phases);
  // While the device works on this batch, the next one is read and copied.
  prefetch(next_sample);
}

// Where an address is null, the program there does not read what it would get.
void StepRunner::provide(int64_t first_sample, void* tokens, void* targets, void* weights) {
  if (prefetched_ != first_sample) prefetch(first_sample);
  const auto bytes = static_cast<size_t>(batch_ * tokens_) * 4;
  void* const some = tokens ? tokens : targets ? targets : weights;
  const auto piece = [&](void* to, size_t offset) { return TransferPiece{to ? to : some, offset, to ? bytes : 0}; };
  upload_->consume({piece(tokens, 0), piece(targets, bytes), piece(weights, 2 * bytes)});
  prefetched_ = -1;
}

void StepRunner::prefetch(int64_t first_sample) {
  const int64_t count = batch_ * tokens_;
  auto* tokens = reinterpret_cast<int32_t*>(upload_->slot());
  loader_.read(first_sample, batch_, tokens, tokens + count);
  std::fill_n(reinterpret_cast<float*>(tokens + 2 * count), count, loss_weight_);
  upload_->submit();
  prefetched_ = first_sample;
}

void StepRunner::run(Phases phases) { times_ ? program_.run_timed(phases, *times_) : program_.run(phases); }

void StepRunner::start(StepState state, int64_t first_sample, std::vector<NodeTime>* times) {
  times_ = times;
  const VirtualRanks mine = parallel_.mine();
  const int64_t each = parallel_.micro_steps * batch_;  // samples of a virtual rank
  const int64_t last = first_sample + mine.last * each - batch_;
  const int64_t next_step = first_sample + (parallel_.virtual_ranks + mine.first) * each;
  // Where each rank has only pieces of the parameters, all ranks make the same number of micro-steps. What comes of those
  // that this rank has too few of is overwritten by the others.
  const int64_t most = (parallel_.virtual_ranks + parallel_.ranks - 1) / parallel_.ranks;
  const int64_t idle = parallel_.divides_parameters() ? (most - mine.count()) * parallel_.micro_steps : 0;
  for (int64_t i = 0; i < idle; ++i)
    run_micro_step(state, first_sample + mine.first * each, kMicroStep, first_sample + mine.first * each);
  for (int64_t v = mine.first; v < mine.last; ++v) {
    const int64_t first = first_sample + v * each;
    if (pipeline_) {
      pipeline_->run(state, first, batch_, [this](int64_t sample, void* tokens, void* targets, void* weights) {
        provide(sample, tokens, targets, weights);
      });
    } else {
      for (state.micro_step = 0; state.micro_step < parallel_.micro_steps; ++state.micro_step) {
        const int64_t sample = first + state.micro_step * batch_;
        const bool is_last = sample == last;
        // The last backward pass is also when the sums are sent to other ranks.
        run_micro_step(state, sample, is_last ? kMicroStep | Phase::reduce : kMicroStep,
                       is_last ? next_step : sample + batch_);
      }
    }
    if (v + 1 < mine.last) sums_.add(static_cast<size_t>(v - mine.first));
  }
  if (pipeline_) {
    program_.step = state;
    run(Phase::reduce);
  }
  run(Phase::optimizer);
  learning_rates_.push_back(static_cast<double>(state.learning_rate));
  std::vector<TransferPiece> results = {{program_.data<void>(tensors_.loss), 0, sizeof(float)},
                                        {program_.data<void>(tensors_.gradient_norm), sizeof(float), sizeof(float)},
                                        {program_.data<void>(tensors_.guarded_norm), 2 * sizeof(float), sizeof(float)}};
  size_t at = kScalars * sizeof(float);
  for (const TensorId id : tensors_.router_statistics) {
    const size_t bytes = program_.graph().tensor(id).bytes();
    results.push_back({program_.data<void>(id), at, bytes});
    at += bytes;
  }
  download_->submit(results);
}

// `statistics`: of all layers, as router_statistics has them.
std::optional<StepRunner::Routers> StepRunner::routers(const float* statistics) const {
  if (tensors_.router_statistics.empty()) return {};
  const auto tokens = static_cast<double>(parallel_.micro_steps * batch_ * tokens_ / parallel_.mesh.sharing());
  Routers mean;
  for (const TensorId id : tensors_.router_statistics) {
    const int64_t experts = program_.graph().shape(id)[0] - kRouterSums;
    double all = 0, most = 0;
    for (int64_t e = 0; e < experts; ++e) {
      const auto count = static_cast<double>(statistics[e]);
      all += count, most = std::max(most, count);
    }
    mean.load = std::max(mean.load, most * static_cast<double>(experts) / all);
    mean.balance += static_cast<double>(statistics[experts]) / tokens;
    mean.entropy += static_cast<double>(statistics[experts + 2]) / tokens;
    statistics += experts + kRouterSums;
  }
  const auto layers = static_cast<double>(tensors_.router_statistics.size());
  mean.balance /= layers, mean.entropy /= layers;
  return mean;
}

StepRunner::Result StepRunner::take() {
  const auto* values = reinterpret_cast<const float*>(download_->wait());
  const Result result = {.loss = values[0],
                         .gradient_norm = values[1],
                         .learning_rate = learning_rates_.front(),
                         .skipped = !std::isfinite(values[2]),
                         .routers = routers(values + kScalars)};
  learning_rates_.pop_front();
  return result;
}

}  // namespace llm
