// Draws the next token from logits on the host: what the op `sample` does for one token.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace llm {

struct SamplingOptions {
  double temperature =
      1.0;             // divides the logits; 0: always the likeliest token, among equals the one with the lowest id
  int64_t top_k = 0;   // keep the k likeliest tokens; 0: all
  double top_p = 1.0;  // keep, of these, the fewest likeliest whose probabilities reach top_p (Holtzman et al. 2020)
  uint64_t seed = 1;
};

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

// The random number in [0, 1) that decides token number `index` of a run (Philox).
double sampling_uniform(uint64_t seed, int64_t index);

// Draws one token from logits (V): a pure function of logits, options and `index`, the number of the token in the run.
// `scratch` is memory for V pairs.
using SamplingCandidate = std::pair<float, int32_t>;  // logit, later weight; id
Draw draw_token(const SamplingOptions& options, const float* logits, int64_t vocabulary, int64_t index,
                SamplingCandidate* scratch);

// The same with memory of its own and checks.
class Sampler {
 public:
  // Throws UsageError for options out of range.
  Sampler(const SamplingOptions& options, int64_t vocabulary);
  // Throws Error for logits that are NaN or +inf, or all -inf.
  int32_t sample(const float* logits, int64_t index);

 private:
  SamplingOptions options_;
  std::vector<SamplingCandidate> scratch_;
};

}  // namespace llm
