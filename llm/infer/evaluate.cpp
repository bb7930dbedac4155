#include "llm/infer/evaluate.h"

#include <algorithm>
#include <utility>

#include "llm/base/error.h"

namespace llm {

Evaluator::Evaluator(const ModelConfig& config, int64_t batch, int64_t tokens, const PersistentLayout& layout,
                     const Target& target, int32_t end_of_text)
    : Evaluator(build_evaluation_graph(config, batch, tokens, dtype_of(target.precision), end_of_text),
                config.vocabulary, layout, target) {}

Evaluator::Evaluator(EvaluationGraph graph, int64_t vocabulary, const PersistentLayout& layout, const Target& target)
    : vocabulary_(vocabulary),
      tokens_(graph.tokens),
      targets_(graph.targets),
      losses_(graph.losses),
      program_(compile(graph.graph, graph.results(), target), layout) {
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
                                 const std::function<void(int64_t, int64_t)>& progress) {
  const int64_t predicted = stream.size() - 1;
  if (predicted < 1)
    fail("the loss needs at least two tokens of data, there ", stream.size() == 1 ? "is 1" : "are none");
  const int64_t B = program_.graph().shape(tokens_)[0], T = program_.graph().shape(tokens_)[1];
  const int64_t all = (predicted + T - 1) / T;
  const int64_t windows = max_batches > 0 && max_batches <= all / B ? max_batches * B : all;
  const int64_t batches = (windows + B - 1) / B;
  const float* losses = batch_losses_.data();

  Result result;
  double sum = 0;
  std::vector<int64_t> counts(static_cast<size_t>(B));
  for (int64_t batch = 0; batch < batches; ++batch) {
    for (int64_t row = 0; row < B; ++row) {
      const int64_t window = batch * B + row;
      const int64_t begin = window < windows ? window * all / windows * T : 0;
      counts[static_cast<size_t>(row)] = window < windows ? std::min(T, predicted - begin) : 0;
      fill(stream, begin, counts[static_cast<size_t>(row)], row);
    }
    program_.write(tokens_, batch_tokens_.data());
    program_.write(targets_, batch_targets_.data());
    program_.run(Phase::forward);
    program_.read(losses_, batch_losses_.data());
    for (int64_t row = 0; row < B; ++row) {
      const int64_t count = counts[static_cast<size_t>(row)];
      for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(losses[row * T + i]);
      result.tokens += count;
    }
    if (progress) progress(batch + 1, batches);
  }
  result.loss = sum / static_cast<double>(result.tokens);
  return result;
}

}  // namespace llm
