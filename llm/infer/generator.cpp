#include "llm/infer/generator.h"

#include <algorithm>

#include "llm/base/error.h"

namespace llm {
namespace {

// Prompts are taken in so many tokens at a time: as many rows as a matrix product needs to come near the machine's peak.
constexpr int64_t kLargestPiece = 256;
constexpr int64_t kDrafts = 3;  // with the row before them four rows, for which there are programs on every device

}  // namespace

// The weights may change from text to text, so no blocks are kept.
Generator::Generator(const ModelConfig& config, const PersistentLayout& layout, const Target& target,
                     int64_t known_tokens, std::function<void(Graph&)> divide)
    : context_(config.context),
      engine_(config, layout, target,
              {.most_running = 1,
               .tokens_of_step = std::min(kLargestPiece, config.context),
               .prefix_cache = false,
               .drafts = kDrafts,
               .known_tokens = known_tokens,
               .divide = std::move(divide)}) {}

std::vector<int32_t> Generator::window_of(const std::vector<int32_t>& prompt) const {
  return {prompt.end() - std::min(static_cast<int64_t>(prompt.size()), context_), prompt.end()};
}

bool Generator::run(Request request, RequestCallbacks callbacks) {
  bool by_length = false;
  std::string error;
  callbacks.on_finish = [&](Finish why, const std::string& text) { by_length = why == Finish::length, error = text; };
  current_ = engine_.submit(std::move(request), std::move(callbacks));
  while (engine_.step()) {
  }
  if (!error.empty()) fail(error);
  return by_length;
}

void Generator::generate(const std::vector<int32_t>& prompt, int64_t max_tokens, const SamplingOptions& sampling,
                         int32_t stop_token, const std::function<bool(int32_t)>& on_token) {
  std::vector<int32_t> window = window_of(prompt);  // the tokens that the next one depends on
  bool wanted = true;
  for (int64_t made = 0; wanted && made < max_tokens;) {
    if (static_cast<int64_t>(window.size()) > context_)
      window.erase(window.begin(), window.end() - std::max<int64_t>(1, context_ / 2));
    Request request{.prompt = window, .max_tokens = max_tokens - made, .sampling = sampling, .first_index = made};
    if (stop_token >= 0) request.stop_tokens = {stop_token};
    const bool by_length = run(std::move(request), {.on_token = [&](const TokenOutput& token) {
                                 ++made;
                                 window.push_back(token.id);
                                 if (wanted && !on_token(token.id)) wanted = false, engine_.cancel(current_);
                               }});
    wanted = wanted && by_length;
  }
}

std::vector<float> Generator::logits(const std::vector<int32_t>& prompt) {
  std::vector<float> all;
  run({.prompt = window_of(prompt), .max_tokens = 1, .sampling = {.temperature = 0}},
      {.on_logits = [&](std::span<float> logits) { all.assign(logits.begin(), logits.end()); }});
  return all;
}

}  // namespace llm
