#include "llm/ops/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "llm/base/error.h"
#include "llm/base/random.h"
#include "llm/base/rounding.h"
#include "llm/base/simd.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

using Candidate = SamplingCandidate;

bool likelier(const Candidate& a, const Candidate& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// Moves the `count` likeliest of candidates [begin, end) to the front, sorted.
void sort_front(Candidate* begin, Candidate* end, size_t count) {
  if (begin + count < end) std::nth_element(begin, begin + count, end, likelier);
  std::sort(begin, begin + count, likelier);
}

// Finds the smallest number of the likeliest candidates whose weights reach `share` of the total, and moves these to
// the front, sorted. That number is usually small, so the candidates are sorted in ever larger pieces instead of all at
// once.
template <class Weight>
size_t keep_nucleus(Candidate* candidates, size_t size, double share, double total, Weight weight) {
  double reached = 0;
  size_t sorted = 0;
  for (size_t i = 0; i < size; ++i) {
    if (i == sorted) {
      const size_t count = std::min(size - sorted, std::max<size_t>(64, 3 * sorted));
      sort_front(candidates + sorted, candidates + size, count);
      sorted += count;
    }
    reached += weight(candidates[i].first);
    if (reached >= share * total) return i + 1;
  }
  return size;
}

// The weights of all tokens by whole vectors, in float; for temperatures at which float is enough.
class AllWeights {
 public:
  static bool can(double temperature) { return temperature >= 1e-3 && temperature <= 1e3; }

  AllWeights(const float* logits, int64_t vocabulary, float largest, double temperature)
      : logits_(logits),
        size_(vocabulary),
        piece_(round_up(ceil_div(vocabulary, kPieces), simd::kLanes)),
        largest_(simd::broadcast(largest)),
        factor_(simd::broadcast(static_cast<float>(1 / temperature))) {
    for (int64_t begin = 0; begin < size_; begin += piece_)
      total_ += sums_[static_cast<size_t>(begin / piece_)] = sum(begin, std::min(size_, begin + piece_));
  }

  double total() const { return total_; }

  // The token at which the running sum of the weights, in the order of the ids, passes `target`; the last one with a
  // weight where rounding keeps the sum below it.
  int64_t crossing(double target) const {
    int64_t begin = 0, last = 0;
    for (; begin + piece_ < size_ && sums_[static_cast<size_t>(begin / piece_)] <= target; begin += piece_)
      target -= sums_[static_cast<size_t>(begin / piece_)];
    for (int64_t i = begin; i < size_; i += simd::kLanes) {
      const int64_t count = std::min<int64_t>(simd::kLanes, size_ - i);
      const simd::Vec of_tokens = weights(simd::load_part(logits_ + i, count));
      for (int64_t lane = 0; lane < count; ++lane) {
        const auto weight = static_cast<double>(of_tokens[lane]);
        if (weight > 0) last = i + lane;
        if ((target -= weight) < 0) return last;
      }
    }
    return last;
  }

 private:
  static constexpr int64_t kPieces = 256, kVectors = 64;  // sums of so many vectors are taken in float, lane by lane

  simd::Vec weights(simd::Vec logits) const { return simd::exp((logits - largest_) * factor_); }

  double sum(int64_t begin, int64_t end) const {
    double all = 0;
    for (; begin < end; begin += kVectors * simd::kLanes) {
      simd::Vec part{};
      for_vectors(std::min(kVectors * simd::kLanes, end - begin),
                  [&](int64_t i, auto lanes) { part += lanes.keep(weights(lanes.load(logits_ + begin + i))); });
      all += static_cast<double>(simd::reduce_add(part));
    }
    return all;
  }

  const float* logits_;
  int64_t size_, piece_;
  simd::Vec largest_, factor_;
  std::array<double, kPieces> sums_;
  double total_ = 0;
};

}  // namespace

void check(const SamplingOptions& options, int64_t vocabulary) {
  if (!(options.temperature >= 0) || std::isinf(options.temperature))
    fail_value("temperature", " must be 0 or more, not ", options.temperature);
  if (options.top_k < 0) fail_value("top-k", " must be 0 or more, not ", options.top_k);
  for (const auto& [name, value] : {std::pair("top-p", options.top_p), std::pair("min-p", options.min_p)})
    if (!(value >= 0 && value <= 1)) fail_value(name, " must lie in [0, 1], not ", value);
  if (!(options.repetition > 0) || std::isinf(options.repetition))
    fail_value("repetition-penalty", " must be above 0, not ", options.repetition);
  for (const auto& [name, value] :
       {std::pair("presence-penalty", options.presence), std::pair("frequency-penalty", options.frequency)})
    if (!std::isfinite(value)) fail_value(name, " must be a finite number, not ", value);
  for (const auto& [token, added] : options.bias) {
    if (token < 0 || token >= vocabulary)
      fail_value("logit-bias", ": token ", token, " is outside the model's vocabulary of ", vocabulary);
    if (std::isnan(added) || added == INFINITY) fail_value("logit-bias", " of token ", token, " is ", added);
  }
}

void adjust_logits(const SamplingOptions& options, const TokenCounts& counts, float* logits) {
  if (options.penalizes())
    for (const auto& [token, count] : counts) {
      double logit = static_cast<double>(logits[token]);
      logit = logit > 0 ? logit / options.repetition : logit * options.repetition;
      if (count > 0) logit -= options.presence + options.frequency * count;
      logits[token] = static_cast<float>(logit);
    }
  for (const auto& [token, added] : options.bias) logits[token] += added;
}

int32_t token_of(const Draw& draw) {
  if (draw.status == Draw::not_finite)
    fail("the model's logits are not finite, that of token ", draw.culprit, " is ", draw.logit,
         ": its weights are damaged, or its training diverged");
  if (draw.status == Draw::no_chance) fail("the model gives no token a chance: all logits are -inf");
  return draw.id;
}

double sampling_uniform(uint64_t seed, int64_t index) {
  return Random(seed, stream_of("sample")).uniform(static_cast<uint64_t>(index));
}

Draw likeliest_token(const float* logits, int64_t vocabulary) {
  // The largest logit of each piece, so that the place is searched for in one piece alone.
  constexpr int64_t kPiece = 64 * simd::kLanes;
  float best = -INFINITY;
  int64_t in_piece = 0;
  for (int64_t begin = 0; begin < vocabulary; begin += kPiece) {
    const int64_t end = std::min(vocabulary, begin + kPiece);
    simd::Vec top = simd::broadcast(-INFINITY);
    simd::IntVec wrong{};
    int64_t i = begin;
    for (; i + simd::kLanes <= end; i += simd::kLanes) {
      const simd::Vec v = simd::load(logits + i);
      top = simd::max(top, v);
      wrong |= v < simd::broadcast(INFINITY) ? simd::IntVec{} : simd::IntVec{} + 1;
    }
    float largest = simd::reduce_max(top);
    int32_t any = 0;
    for (int lane = 0; lane < simd::kLanes; ++lane) any |= wrong[lane];
    for (; i < end; ++i) largest = std::max(largest, logits[i]), any |= !(logits[i] < INFINITY);
    if (any) {
      const auto at = std::find_if(logits + begin, logits + end, [](float x) { return !(x < INFINITY); });
      return {0, Draw::not_finite, static_cast<int32_t>(at - logits), *at};
    }
    if (largest > best) best = largest, in_piece = begin;
  }
  if (std::isinf(best)) return {0, Draw::no_chance};
  return {static_cast<int32_t>(std::find(logits + in_piece, logits + vocabulary, best) - logits)};
}

Draw draw_token(const SamplingOptions& options, const float* logits, int64_t vocabulary, int64_t index,
                Candidate* scratch) {
  const Draw likeliest = likeliest_token(logits, vocabulary);
  if (likeliest.status != Draw::done || options.temperature == 0) return likeliest;
  const float largest = logits[likeliest.id];
  const double maximum = static_cast<double>(largest), uniform = sampling_uniform(options.seed, index);
  const bool some = options.top_k > 0 && options.top_k < vocabulary;
  if (!some && options.top_p == 1 && options.min_p == 0 && AllWeights::can(options.temperature)) {
    const AllWeights all(logits, vocabulary, largest, options.temperature);
    return {static_cast<int32_t>(all.crossing(all.total() * uniform))};
  }
  auto kept = static_cast<size_t>(vocabulary);
  for (size_t i = 0; i < kept; ++i) scratch[i] = {logits[i], static_cast<int32_t>(i)};

  // The largest weight is 1, so weights cannot overflow and their total is not 0.
  const auto weight = [&](float logit) {
    return std::exp((static_cast<double>(logit) - maximum) / options.temperature);
  };
  if (some) {
    sort_front(scratch, scratch + kept, static_cast<size_t>(options.top_k));
    kept = static_cast<size_t>(options.top_k);
  }
  if (options.top_p < 1) {
    double total = 0;
    if (!some && AllWeights::can(options.temperature))
      total = AllWeights(logits, vocabulary, largest, options.temperature).total();
    else
      for (size_t i = 0; i < kept; ++i) total += weight(scratch[i].first);
    kept = keep_nucleus(scratch, kept, options.top_p, total, weight);
  }
  if (options.min_p > 0) {
    Candidate* const end =
        std::remove_if(scratch, scratch + kept, [&](const Candidate& c) { return weight(c.first) < options.min_p; });
    kept = static_cast<size_t>(end - scratch);
    std::sort(scratch, end, likelier);
  }

  double total = 0;
  for (size_t i = 0; i < kept; ++i)
    total += static_cast<double>(scratch[i].first = static_cast<float>(weight(scratch[i].first)));
  const double target = total * uniform;
  double reached = 0;
  for (size_t i = 0; i < kept; ++i)
    if ((reached += static_cast<double>(scratch[i].first)) > target) return {scratch[i].second};
  return likeliest;  // never reached, since target < total
}

Sampler::Sampler(const SamplingOptions& options, int64_t vocabulary)
    : options_(options), scratch_(static_cast<size_t>(vocabulary)) {
  check(options, vocabulary);
}

int32_t Sampler::sample(const float* logits, int64_t index) {
  return token_of(draw_token(options_, logits, static_cast<int64_t>(scratch_.size()), index, scratch_.data()));
}

}  // namespace llm
