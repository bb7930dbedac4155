#include "llm/infer/evaluate.h"

#include <algorithm>
#include <utility>

#include "llm/base/error.h"

namespace llm {

Evaluator::Evaluator(const ModelConfig& config, int64_t batch, int64_t tokens, const PersistentLayout& layout,
                     const Target& target, int32_t end_of_text, const std::function<void(Graph&)>& divide)
    : Evaluator(build_evaluation_graph(config, batch, tokens, dtype_of(target.precision), end_of_text, target.weights),
                config.vocabulary, layout, target, divide) {}

Evaluator::Evaluator(EvaluationGraph graph, int64_t vocabulary, const PersistentLayout& layout, const Target& target,
                     const std::function<void(Graph&)>& divide)
    : vocabulary_(vocabulary),
      is_divided_(divide != nullptr),
      tokens_(graph.tokens),
      targets_(graph.targets),
      losses_(graph.losses),
      program_((divide ? divide(graph.graph) : void(), compile(graph.graph, graph.results(), target)), layout) {
  const Shape shape = program_.graph().shape(tokens_);
  window_.resize(static_cast<size_t>(shape[1]) + 1);
  batch_tokens_.resize(static_cast<size_t>(shape.elements()));
  batch_targets_.resize(batch_tokens_.size());
  batch_losses_.resize(batch_tokens_.size());
}

void Evaluator::fill(const TokenStream& stream, int64_t begin, int64_t count, int64_t row) {
  const int64_t T = program_.graph().shape(tokens_)[1];
  int32_t *tokens = batch_tokens_.data() + row * T, *targets = batch_targets_.data() + row * T;
  stream.read(begin, count > 0 ? count + 1 : 0, window_.data());
  for (int64_t i = 0; count > 0 && i <= count; ++i)
    if (const int32_t token = window_[static_cast<size_t>(i)]; token < 0 || token >= vocabulary_)
      fail("the data's token ", token, " (number ", begin + i, ") is outside the model's vocabulary of ", vocabulary_);
  std::copy_n(window_.begin(), count, tokens);
  std::copy_n(window_.begin() + 1, count, targets);
  std::fill(tokens + count, tokens + T, 0);
  std::fill(targets + count, targets + T, -1);  // not counted
}

Evaluator::Result Evaluator::run(const TokenStream& stream, int64_t max_batches,
                                 const std::function<void(int64_t, int64_t)>& progress, Communicator* ranks) {
  const int64_t predicted = stream.size() - 1;
  if (predicted < 1)
    fail("the loss needs at least two tokens of data, there ", stream.size() == 1 ? "is 1" : "are none");
  const int64_t B = program_.graph().shape(tokens_)[0], T = program_.graph().shape(tokens_)[1];
  const int64_t all = (predicted + T - 1) / T;
  const int64_t windows = max_batches > 0 && max_batches <= all / B ? max_batches * B : all;
  const int64_t batches = (windows + B - 1) / B;
  const int64_t at_a_time = ranks ? ranks->size() : 1, rank = ranks ? ranks->rank() : 0;
  // Where window `window` begins, and how many tokens are predicted in it: none behind the last window.
  const auto begin_of = [&](int64_t window) { return window < windows ? window * all / windows * T : 0; };
  const auto count_of = [&](int64_t window) {
    return window < windows ? std::min(T, predicted - begin_of(window)) : 0;
  };
  all_losses_.resize(static_cast<size_t>(at_a_time * B * T));

  Result result;
  double sum = 0;
  for (int64_t first = 0; first < batches; first += at_a_time) {
    // Where parameters are divided, a rank without a batch has its pieces to send.
    if (const int64_t mine = first + rank; mine < batches || is_divided_) {
      for (int64_t row = 0; row < B; ++row) fill(stream, begin_of(mine * B + row), count_of(mine * B + row), row);
      program_.write(tokens_, batch_tokens_.data());
      program_.write(targets_, batch_targets_.data());
      program_.run(Phase::forward);
      program_.read(losses_, batch_losses_.data());
    }
    if (ranks)
      all_gather(*ranks, batch_losses_.data(), batch_losses_.size() * sizeof(float), all_losses_.data());
    else
      all_losses_ = batch_losses_;
    for (int64_t row = 0; row < at_a_time * B; ++row) {
      const int64_t count = count_of(first * B + row);
      for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(all_losses_[static_cast<size_t>(row * T + i)]);
      result.tokens += count;
    }
    if (progress) progress(std::min(batches, first + at_a_time), batches);
  }
  result.loss = sum / static_cast<double>(result.tokens);
  return result;
}

}  // namespace llm
