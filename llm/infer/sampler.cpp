#include <algorithm>
#include <cmath>

#include "llm/base/error.h"
#include "llm/base/random.h"
#include "llm/infer/generator.h"

namespace llm {
namespace {

using Candidate = std::pair<float, int32_t>;  // logit, later weight; id

bool likelier(const Candidate& a, const Candidate& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// Brings the `count` likeliest of candidates [from, size) to their front, in order.
void sort_front(std::vector<Candidate>& candidates, size_t from, size_t count) {
  const auto begin = candidates.begin() + static_cast<std::ptrdiff_t>(from),
             end = begin + static_cast<std::ptrdiff_t>(count);
  if (end < candidates.end()) std::nth_element(begin, end, candidates.end(), likelier);
  std::sort(begin, end, likelier);
}

// Cuts the candidates to the smallest set, likeliest first, whose weights reach `share` of the total. That set is small
// as a rule, so the candidates are sorted by ever larger pieces and not all at once.
template <class Weight>
void keep_nucleus(std::vector<Candidate>& candidates, double share, Weight weight) {
  double total = 0, reached = 0;
  for (const Candidate& c : candidates) total += weight(c.first);
  size_t sorted = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (i == sorted) {
      const size_t count = std::min(candidates.size() - sorted, std::max<size_t>(64, 3 * sorted));
      sort_front(candidates, sorted, count);
      sorted += count;
    }
    reached += weight(candidates[i].first);
    if (reached >= share * total) return candidates.resize(i + 1);
  }
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options, int64_t vocabulary)
    : options_(options), vocabulary_(static_cast<size_t>(vocabulary)), scratch_(vocabulary_) {
  if (!(options.temperature >= 0) || std::isinf(options.temperature))
    fail_usage("--temperature must be 0 or more, not ", options.temperature);
  if (options.top_k < 0) fail_usage("--top-k must be 0 or more, not ", options.top_k);
  if (!(options.top_p >= 0 && options.top_p <= 1)) fail_usage("--top-p must lie in [0, 1], not ", options.top_p);
}

int32_t Sampler::sample(const float* logits, int64_t index) {
  scratch_.resize(vocabulary_);  // within the constructor's capacity
  size_t best = 0;
  for (size_t i = 0; i < vocabulary_; ++i) {
    if (!(logits[i] < INFINITY))
      fail("the model's logit of token ", i, " is ", logits[i], ": its weights are damaged, or its training diverged");
    if (logits[i] > logits[best]) best = i;
    scratch_[i] = {logits[i], static_cast<int32_t>(i)};
  }
  const double maximum = logits[best];
  if (std::isinf(maximum)) fail("the model gives no token a chance: all logits are -inf");
  if (options_.temperature == 0) return static_cast<int32_t>(best);

  // The largest weight is 1, so there is neither overflow nor a total of 0.
  const auto weight = [&](float logit) {
    return std::exp((static_cast<double>(logit) - maximum) / options_.temperature);
  };
  const bool some = options_.top_k > 0 && static_cast<size_t>(options_.top_k) < vocabulary_;
  if (some) {
    sort_front(scratch_, 0, static_cast<size_t>(options_.top_k));
    scratch_.resize(static_cast<size_t>(options_.top_k));
  }
  if (options_.top_p < 1) keep_nucleus(scratch_, options_.top_p, weight);

  double total = 0;
  for (Candidate& c : scratch_) total += static_cast<double>(c.first = static_cast<float>(weight(c.first)));
  const double target = total * Random(options_.seed, stream_of("sample")).uniform(static_cast<uint64_t>(index));
  double reached = 0;
  for (const Candidate& c : scratch_)
    if ((reached += static_cast<double>(c.first)) > target) return c.second;
  return static_cast<int32_t>(best);  // not reached: target < total
}

}  // namespace llm
