#include "llm/infer/choose.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "llm/base/error.h"
#include "llm/base/simd.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

// The `count` likeliest tokens, the likeliest first, of equal ones the lowest id first; as (logit, id).
std::vector<SamplingCandidate> likeliest(const float* logits, int64_t vocabulary, int64_t count) {
  const auto likelier = [](const SamplingCandidate& a, const SamplingCandidate& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  std::vector<SamplingCandidate> kept;  // a heap, the least likely one at its front
  for (int64_t i = 0; i < vocabulary; ++i) {
    const SamplingCandidate candidate{logits[i], static_cast<int32_t>(i)};
    if (static_cast<int64_t>(kept.size()) == count) {
      if (count == 0 || !likelier(candidate, kept.front())) continue;
      std::pop_heap(kept.begin(), kept.end(), likelier);
      kept.pop_back();
    }
    kept.push_back(candidate);
    std::push_heap(kept.begin(), kept.end(), likelier);
  }
  std::sort_heap(kept.begin(), kept.end(), likelier);
  return kept;
}

// The logarithms of probabilities; the logits are finite or -inf.
class LogProbabilities {
 public:
  LogProbabilities(const Request& request, const float* logits, Vocabulary vocabulary)
      : top_(logits[likeliest_token(logits, vocabulary.all).id]) {
    double sum = 0;
    constexpr int64_t kPiece = 64 * simd::kLanes;  // sums of so many are taken in float, lane by lane
    for (int64_t begin = 0; begin < vocabulary.all; begin += kPiece) {
      simd::Vec of_piece{};
      for_vectors(std::min(kPiece, vocabulary.all - begin), [&](int64_t i, auto lanes) {
        of_piece += lanes.keep(simd::exp(lanes.load(logits + begin + i) - simd::broadcast(top_)));
      });
      sum += static_cast<double>(simd::reduce_add(of_piece));
    }
    log_sum_ = std::log(sum);
    for (const auto& [logit, id] : likeliest(logits, vocabulary.known, request.logprobs))
      alternatives_.emplace_back(id, of(logit));
  }
  float of(float logit) const {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(top_) - log_sum_);
  }
  void describe(TokenOutput& output, const float* logits) {
    output.logprob = of(logits[output.id]);
    output.alternatives = std::move(alternatives_);
  }

 private:
  float top_;
  double log_sum_ = 0;
  std::vector<std::pair<int32_t, float>> alternatives_;
};

// What is wrong with a draw, or "".
std::string error_of(const Draw& draw) {
  try {
    token_of(draw);
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

}  // namespace

Chosen chosen_by(const Draw& draw) {
  Chosen chosen;
  chosen.error = error_of(draw);
  chosen.output.id = draw.id;
  chosen.output.logprob = std::numeric_limits<float>::quiet_NaN();
  return chosen;
}

Chosen choose_token(const Request& request, const TokenCounts& counts, int64_t index, float* logits,
                    Vocabulary vocabulary, std::vector<SamplingCandidate>& scratch) {
  std::vector<float> own;  // the model's logits, where they are wanted and changed
  const float* of_model = logits;
  if (request.sampling.penalizes() || !request.sampling.bias.empty()) {
    if (request.logprobs >= 0) own.assign(logits, logits + vocabulary.all), of_model = own.data();
    adjust_logits(request.sampling, counts, logits);
  }
  scratch.resize(static_cast<size_t>(vocabulary.known));
  Chosen chosen = chosen_by(draw_token(request.sampling, logits, vocabulary.known, index, scratch.data()));
  if (request.logprobs < 0 || !chosen.error.empty()) return chosen;
  LogProbabilities(request, of_model, vocabulary).describe(chosen.output, of_model);
  return chosen;
}

Chosen score_token(const Request& request, int32_t token, const float* logits, Vocabulary vocabulary) {
  Chosen chosen;
  chosen.error = error_of(likeliest_token(logits, vocabulary.all));
  chosen.output.id = token;
  if (chosen.error.empty()) LogProbabilities(request, logits, vocabulary).describe(chosen.output, logits);
  return chosen;
}

}  // namespace llm
