// One text of an answer as it comes: its tokens become text and log-probabilities in the forms that OpenAI's two APIs have
// for them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "llm/base/json.h"
#include "llm/infer/engine.h"
#include "llm/serve/text_stream.h"
#include "llm/text/tokenizer.h"

namespace llm {

enum class ApiKind { completion, chat };

class AnswerChoice {
 public:
  struct Options {
    ApiKind kind = ApiKind::completion;
    int logprobs = -1;
    bool token_ids = false;
    std::vector<std::string> stops;
    std::vector<int32_t> ends;  // tokens that end the text, where the engine does not look for them
    int64_t prompt = 0;         // tokens of the prompt
    int64_t prefix = 0;         // of these, the first ones that the tokenizer put there, which are no text
  };
  AnswerChoice(const Tokenizer& tokenizer, Options options);

  void push(const TokenOutput& token);
  void end(Finish finish);
  bool ended() const { return !finish_.empty(); }
  // "stop" or "length".
  const std::string& finish() const { return finish_; }
  int64_t new_tokens() const { return new_tokens_; }

  // What can be handed on since the last part.
  struct Part {
    std::string text;
    Json logprobs;             // null: none were asked for, or there are none for this part
    std::vector<int32_t> ids;  // with `token_ids`
    bool empty() const { return text.empty() && logprobs.is_null() && ids.empty(); }
  };
  Part take();
  // The log-probabilities of no tokens; null where none were asked for.
  Json no_logprobs() const;

 private:
  Json completion_logprobs(size_t from, size_t to) const;
  Json chat_logprobs(size_t from, size_t to) const;
  std::string_view bytes_of(int32_t id) const;

  const Tokenizer& tokenizer_;
  Options options_;
  TextStream text_;
  std::vector<TokenOutput> tokens_;  // kept where they are asked for
  size_t taken_ = 0;                 // tokens that were handed on
  int64_t new_tokens_ = 0;
  std::string finish_;
};

}  // namespace llm
