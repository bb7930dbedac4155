// Which token comes next, given the logits: what the op `sample` does for one token, on the host.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace llm {

struct SamplingOptions {
  double temperature = 1.0;  // 0: always the likeliest token, of equals the one with the lowest id
  int64_t top_k = 0;         // only the k likeliest tokens; 0: all
  double top_p = 1.0;        // of those, the smallest set whose probability reaches this (Holtzman et al. 2020)
  uint64_t seed = 1;
};

// What came of it: a token, or why there is none.
struct Draw {
  enum Status : int32_t { done, not_finite, no_chance };
  int32_t id = 0;
  int32_t status = done;
  int32_t culprit = 0;  // not_finite: the first token whose logit is NaN or +inf
  float logit = 0;      // and that logit
};
static_assert(sizeof(Draw) == 16);

// The token; throws Error where there is none, saying why.
int32_t token_of(const Draw& draw);

// In [0, 1): what decides token number `index` of a run.
double sampling_uniform(uint64_t seed, int64_t index);

// One token from logits (V): a pure function of the options and `index`, the token's number in the run (Philox). `scratch` is
// room for V pairs.
using SamplingCandidate = std::pair<float, int32_t>;  // logit, later weight; id
Draw draw_token(const SamplingOptions& options, const float* logits, int64_t vocabulary, int64_t index,
                SamplingCandidate* scratch);

// The same with room of its own and checks.
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
