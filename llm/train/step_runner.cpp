#include "llm/train/step_runner.h"

#include <algorithm>
#include <cmath>

namespace llm {

StepRunner::StepRunner(Program& program, const Tensors& tensors, Loader& loader, int64_t micro_steps,
                       int64_t step_samples, Device& device)
    : program_(program),
      tensors_(tensors),
      loader_(loader),
      batch_(program.graph().shape(tensors.tokens)[0]),
      tokens_(program.graph().shape(tensors.tokens)[1]),
      micro_steps_(micro_steps),
      loss_weight_(static_cast<float>(1.0 / static_cast<double>(step_samples * tokens_))),
      device_(device),
      upload_(device.new_upload(static_cast<size_t>(batch_ * tokens_) * 3 * 4)),
      download_(device.new_download(3 * sizeof(float))) {}

// The inputs are copied to their places before each micro-step, since other tensors take these places after the inputs'
// last use.
void StepRunner::run_micro_step(const StepState& state, int64_t first_sample) {
  program_.step = state;
  program_.step.first_sample = first_sample;
  if (prefetched_ != first_sample) prefetch(first_sample);
  const auto bytes = static_cast<size_t>(batch_ * tokens_) * 4;
  upload_->consume({{program_.data<void>(tensors_.tokens), 0, bytes},
                    {program_.data<void>(tensors_.targets), bytes, bytes},
                    {program_.data<void>(tensors_.loss_weights), 2 * bytes, bytes}});
  prefetched_ = -1;
  program_.run(kMicroStep);
  // While the device works on this batch, the next one is read and copied.
  prefetch(first_sample + batch_);
}

void StepRunner::prefetch(int64_t first_sample) {
  const int64_t count = batch_ * tokens_;
  auto* tokens = reinterpret_cast<int32_t*>(upload_->slot());
  loader_.read(first_sample, batch_, tokens, tokens + count);
  std::fill_n(reinterpret_cast<float*>(tokens + 2 * count), count, loss_weight_);
  upload_->submit();
  prefetched_ = first_sample;
}

void StepRunner::start(StepState state, int64_t first_sample) {
  for (int64_t micro = 0; micro < micro_steps_; ++micro) {
    state.micro_step = micro;
    run_micro_step(state, first_sample + micro * batch_);
  }
  program_.run({Phase::reduce, Phase::optimizer});
  learning_rates_.push_back(static_cast<double>(state.learning_rate));
  download_->submit({{program_.data<void>(tensors_.loss), 0, sizeof(float)},
                     {program_.data<void>(tensors_.gradient_norm), sizeof(float), sizeof(float)},
                     {program_.data<void>(tensors_.guarded_norm), 2 * sizeof(float), sizeof(float)}});
}

StepRunner::Result StepRunner::take() {
  const auto* values = reinterpret_cast<const float*>(download_->wait());
  const Result result = {.loss = values[0],
                         .gradient_norm = values[1],
                         .learning_rate = learning_rates_.front(),
                         .skipped = !std::isfinite(values[2])};
  learning_rates_.pop_front();
  return result;
}

}  // namespace llm
