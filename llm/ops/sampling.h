// Draws the next token from logits on the host: what the op `sample` does for one token.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace llm {

struct SamplingOptions {
  double temperature =
      1.0;             // divides the logits; 0: always the likeliest token, among equals the one with the lowest id
  int64_t top_k = 0;   // keep the k likeliest tokens; 0: all
  double top_p = 1.0;  // keep, of these, the fewest likeliest whose probabilities reach top_p (Holtzman et al. 2020)
  uint64_t seed = 1;
  double min_p = 0;  // keep, of these, those at least min_p times as likely as the likeliest (Nguyen et al. 2024)
  // What changes the logits before all that. The bias of a token is added to its logit. Of a token that the sequence
  // has, prompt included, a positive logit is divided by `repetition` and a negative one multiplied by it (Keskar et al.
  // 2019). From the logit of a token that was generated n > 0 times, `presence` + n `frequency` is subtracted.
  double repetition = 1, presence = 0, frequency = 0;
  std::vector<std::pair<int32_t, float>> bias = {};  // token, what is added

  bool penalizes() const { return repetition != 1 || presence != 0 || frequency != 0; }
};
// Throws UsageError for options out of range.
void check(const SamplingOptions& options, int64_t vocabulary);

// The tokens of a sequence, and how often each was generated: 0 for those of the prompt alone.
using TokenCounts = std::unordered_map<int32_t, int32_t>;
// Bias and penalties, in place, for logits (V).
void adjust_logits(const SamplingOptions& options, const TokenCounts& counts, float* logits);

// The result of a draw: a token, or the reason why there is none.
struct Draw {
  enum Status : int32_t { done, not_finite, no_chance };  // no_chance: all logits are -inf
  int32_t id = 0;
  int32_t status = done;
  int32_t culprit = 0;  // for not_finite: the first token whose logit is NaN or +inf
  float logit = 0;      // for not_finite: the logit of that token
};
static_assert(sizeof(Draw) == 16);

// The token of a draw; throws Error with the reason where there is none.
int32_t token_of(const Draw& draw);

// What the op `sample` is told for a row of logits, as it lies in a tensor of twelve words.
struct SampleRow {
  double temperature = -1;  // below 0: nothing is drawn
  double top_p = 1, min_p = 0;
  int64_t top_k = 0;
  uint64_t seed = 1;
  int64_t index = 0;
};
static_assert(sizeof(SampleRow) == 12 * sizeof(int32_t));

// The random number in [0, 1) that decides token number `index` of a run (Philox).
double sampling_uniform(uint64_t seed, int64_t index);

// The likeliest token, among equals the one with the lowest id; or why no token can be drawn.
Draw likeliest_token(const float* logits, int64_t vocabulary);

// Draws one token from logits (V), which are adjusted already: a pure function of logits, options and `index`, the
// number of the token in the run.
// `scratch` is memory for V pairs.
using SamplingCandidate = std::pair<float, int32_t>;  // logit, later weight; id
Draw draw_token(const SamplingOptions& options, const float* logits, int64_t vocabulary, int64_t index,
                SamplingCandidate* scratch);

// The same with memory of its own and checks.
class Sampler {
 public:
  // Throws UsageError for options out of range. Bias and penalties are left to the caller.
  Sampler(const SamplingOptions& options, int64_t vocabulary);
  // Throws Error for logits that are NaN or +inf, or all -inf.
  int32_t sample(const float* logits, int64_t index);

 private:
  SamplingOptions options_;
  std::vector<SamplingCandidate> scratch_;
};

}  // namespace llm
