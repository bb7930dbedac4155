// What the engine does with a row of logits: the next token by a request's options, and log-probabilities.
#pragma once
#include <string>

#include "llm/infer/engine.h"

namespace llm {

struct Chosen {
  TokenOutput output;  // id, logprob and alternatives
  std::string error;   // why there is no token; empty where there is one
};

// What a draw by a device says.
Chosen chosen_by(const Draw& draw);

// How many tokens the model has, and how many of them the tokenizer knows: the others are neither drawn nor alternatives.
struct Vocabulary {
  int64_t all, known;
};

// Draws token number `index` of a text. The logits (V) are changed. `counts`: the tokens of the sequence, which only
// penalties need; `scratch`: memory that is kept from call to call.
Chosen choose_token(const Request& request, const TokenCounts& counts, int64_t index, float* logits,
                    Vocabulary vocabulary, std::vector<SamplingCandidate>& scratch);

// The log-probability of a token that is given, and its alternatives.
Chosen score_token(const Request& request, int32_t token, const float* logits, Vocabulary vocabulary);

}  // namespace llm
