// The mean loss of a model on a token stream.
#pragma once
#include <functional>

#include "llm/device/communicator.h"
#include "llm/graph/program.h"
#include "llm/model/config.h"
#include "llm/model/gpt.h"
#include "llm/text/shards.h"

namespace llm {

class Evaluator {
 public:
  // B = `batch` windows of T = `tokens` tokens (usually the context) at a time; `end_of_text` as in RecipeOptions.
  // `divide`: what makes of the graph that of a rank which has pieces of the parameters alone; null: it has them all.
  Evaluator(const ModelConfig& config, int64_t batch, int64_t tokens, const PersistentLayout& layout,
            const Target& target, int32_t end_of_text = -1, const std::function<void(Graph&)>& divide = {});

  size_t arena_bytes() const { return program_.arena_bytes(); }
  // `device_ranks`: those that have the other pieces.
  void bind(const Arena& arena, Communicator* device_ranks = nullptr) { program_.bind(arena, device_ranks); }

  struct Result {
    double loss = 0;     // nats per token
    int64_t tokens = 0;  // predicted
  };
  // The mean loss of the stream, which is cut into windows of T tokens without overlap: every token but the first is
  // predicted once. (A shorter last window is filled up with targets that do not count.) max_batches > 0: only
  // max_batches x B windows, evenly spaced over the stream, or all where there are no more. Losses are summed in double
  // in the order of the stream, whatever the batch. Throws Error for a stream of fewer than two tokens, or with a token
  // outside the vocabulary. `progress(done, total)` counts batches. Several ranks, which all call it,
  // share the batches and get the same result, which does not depend on their number.
  Result run(const TokenStream& stream, int64_t max_batches = 0,
             const std::function<void(int64_t, int64_t)>& progress = {}, Communicator* ranks = nullptr);

 private:
  Evaluator(EvaluationGraph graph, int64_t vocabulary, const PersistentLayout& layout, const Target& target,
            const std::function<void(Graph&)>& divide);
  // Writes the window of `count` predictions that begins at token `begin` of the stream to row `row` of the inputs.
  void fill(const TokenStream& stream, int64_t begin, int64_t count, int64_t row);

  int64_t vocabulary_;
  bool is_divided_;
  TensorId tokens_, targets_, losses_;
  Program program_;
  std::vector<int32_t> window_;                        // a window's tokens and the one after it
  std::vector<int32_t> batch_tokens_, batch_targets_;  // (B, T)
  std::vector<float> batch_losses_;                    // (B, T)
  std::vector<float> all_losses_;                      // (ranks, B, T)
};

}  // namespace llm
