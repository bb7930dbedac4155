// Requests of OpenAI's completions and chat API, read and checked: https://platform.openai.com/docs/api-reference. Fields
// that the API does not have are left alone; a field that is there and cannot be done is an error that names it.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "llm/base/json.h"
#include "llm/infer/engine.h"
#include "llm/serve/chat_template.h"

namespace llm {

// What both kinds of requests say.
struct GenerationFields {
  std::string model;                  // empty: not said
  std::optional<int64_t> max_tokens;  // none: as many as usual
  SamplingOptions sampling;           // of the first choice
  bool has_seed = false;              // else sampling.seed is to be drawn
  int64_t choices = 1;                // for each prompt
  std::vector<std::string> stops;
  std::vector<int32_t> stop_tokens;
  bool ignore_end = false;  // go on behind the end of text
  int logprobs = -1;        // alternatives to tell for each token; -1: no log-probabilities
  bool token_ids = false;   // tell the tokens' ids, too
  bool stream = false, stream_usage = false;
};

struct CompletionRequest : GenerationFields {
  // A text, or ids.
  struct Prompt {
    std::string text;
    std::vector<int32_t> ids;
    bool is_text = true;
  };
  std::vector<Prompt> prompts;
  bool echo = false;
  bool special_tokens = true;  // what the tokenizer puts before a text
};

struct ChatRequest : GenerationFields {
  ChatTemplate::Conversation conversation;
};

struct TokenizeRequest {
  std::string text;
  std::optional<ChatTemplate::Conversation> conversation;  // instead of `text`
  bool special_tokens = true;
};

// Each throws ApiError. `vocabulary`: ids are below it.
CompletionRequest parse_completion_request(std::string_view body, int64_t vocabulary);
ChatRequest parse_chat_request(std::string_view body, int64_t vocabulary);
TokenizeRequest parse_tokenize_request(std::string_view body);
std::vector<int32_t> parse_detokenize_request(std::string_view body, int64_t vocabulary);

}  // namespace llm
