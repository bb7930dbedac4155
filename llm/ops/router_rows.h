// The router of a layer with experts, for one token: a row of E logits. Shared by the CPU and the CUDA kernels.
#pragma once
#include <cmath>
#include <cstdint>

#include "llm/base/bf16.h"

namespace llm {

// Adds `term(e)` for e = 0, 1, ..., in that order.
template <class Term>
LLM_HOST_DEVICE inline float sum_over(int experts, Term term) {
  float sum = 0;
  for (int e = 0; e < experts; ++e) sum += term(e);
  return sum;
}

// log(sum(exp(logits))).
template <class T>
LLM_HOST_DEVICE inline float router_log_sum_exp(const T* logits, int experts) {
  float top = to_float(logits[0]);
  for (int e = 1; e < experts; ++e) top = ::fmaxf(top, to_float(logits[e]));
  return top + ::logf(sum_over(experts, [=](int e) { return ::expf(to_float(logits[e]) - top); }));
}

// The `count` experts with the highest scores, best first; of equal scores the lower number comes first. A score is the
// logit or, with a bias, softmax(logits) + bias (DeepSeek-AI 2024, arXiv 2412.19437, equation 16). The weights are the
// softmax over the logits of the chosen alone.
template <class T>
LLM_HOST_DEVICE inline void choose_experts(const T* logits, const T* bias, int experts, int count, int32_t* chosen,
                                           float* weights) {
  const float lse = bias ? router_log_sum_exp(logits, experts) : 0;
  const auto score = [=](int e) {
    const float logit = to_float(logits[e]);
    return bias ? ::expf(logit - lse) + to_float(bias[e]) : logit;
  };
  float last = 0;
  for (int k = 0; k < count; ++k) {
    int best = -1;
    float highest = 0;
    for (int e = 0; e < experts; ++e) {
      const float s = score(e);
      const bool is_behind_last = k == 0 || s < last || (s == last && e > chosen[k - 1]);
      if (is_behind_last && (best < 0 || s > highest)) best = e, highest = s;
    }
    // Logits that are not numbers leave none; the result must be an expert all the same.
    chosen[k] = best < 0 ? k : best, last = highest;
  }
  float top = to_float(logits[chosen[0]]);
  for (int k = 1; k < count; ++k) top = ::fmaxf(top, to_float(logits[chosen[k]]));
  float sum = 0;
  for (int k = 0; k < count; ++k) sum += weights[k] = ::expf(to_float(logits[chosen[k]]) - top);
  for (int k = 0; k < count; ++k) weights[k] /= sum;
}

// The gradient of the chosen experts' softmax: w_k (dw_k - sum_j w_j dw_j). The other logits (E in all) have none.
template <class T, class Store>
LLM_HOST_DEVICE inline void choice_gradient(const float* d_weights, const float* weights, const int32_t* chosen,
                                            int experts, int count, T* d_logits, Store store) {
  const float mean = sum_over(count, [=](int k) { return weights[k] * d_weights[k]; });
  for (int e = 0; e < experts; ++e) d_logits[e] = store(0.0f);
  for (int k = 0; k < count; ++k) d_logits[chosen[k]] = store(weights[k] * (d_weights[k] - mean));
}

// What a token adds to the router's losses. With p = softmax(logits) and f_e the share of all choices that fell on
// expert e, `balance` is E sum_e f_e p_e: its mean over the tokens is 1 where all is even (Fedus et al. 2022, "Switch
// transformers", equation 4). The square of log_sum_exp is the z-loss (Zoph et al. 2022, "ST-MoE", equation 5).
struct RouterTerms {
  float balance, log_sum_exp, entropy;  // entropy: of p, in nats
};
// `share`: 1 / (number of choices).
template <class T>
LLM_HOST_DEVICE inline RouterTerms router_terms(const T* logits, const int32_t* counts, int experts, float share) {
  const float lse = router_log_sum_exp(logits, experts);
  float dot = 0, entropy = 0;
  for (int e = 0; e < experts; ++e) {
    const float log_p = to_float(logits[e]) - lse, p = ::expf(log_p);
    dot += static_cast<float>(counts[e]) * share * p;
    entropy -= p > 0 ? p * log_p : 0.0f;
  }
  return {static_cast<float>(experts) * dot, lse, entropy};
}

// d (balance_weight balance + z_weight log_sum_exp^2) / d logits, times d.
template <class T, class Store>
LLM_HOST_DEVICE inline void router_loss_gradient(float d, const T* logits, const int32_t* counts, int experts,
                                                 float share, float balance_weight, float z_weight, T* d_logits,
                                                 Store store) {
  const RouterTerms terms = router_terms(logits, counts, experts, share);
  const float scale = static_cast<float>(experts) * share;
  for (int e = 0; e < experts; ++e) {
    const float p = ::expf(to_float(logits[e]) - terms.log_sum_exp);
    const float of_balance = balance_weight * (scale * static_cast<float>(counts[e]) - terms.balance);
    d_logits[e] = store(d * p * (of_balance + 2 * z_weight * terms.log_sum_exp));
  }
}

}  // namespace llm
