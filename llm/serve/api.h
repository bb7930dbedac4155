// The server's addresses: OpenAI's API and what programs around it ask for, https://platform.openai.com/docs/api-reference.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "llm/serve/answer_choice.h"
#include "llm/serve/api_error.h"
#include "llm/serve/chat_template.h"
#include "llm/serve/engine_thread.h"
#include "llm/serve/http.h"
#include "llm/serve/metrics.h"
#include "llm/serve/openai_request.h"
#include "llm/text/tokenizer.h"

namespace llm {

struct ApiOptions {
  std::string model;    // its name
  int64_t context = 0;  // tokens of prompt and answer together
  int64_t vocabulary = 0;
  std::vector<int32_t> end_tokens;  // at which a text ends
  std::string api_key;              // empty: none is asked for
  std::string cors_origin = "*";    // of web pages that may call; empty: none
};

class Api {
 public:
  // `chat_template` may be null.
  Api(ApiOptions options, const Tokenizer& tokenizer, const ChatTemplate* chat_template, EngineThread& engine,
      Metrics& metrics);

  // Answers a request; called by many threads at once.
  HttpResponse handle(const HttpRequest& request);
  static std::string refusal(int status, const std::string& message) { return ApiError(status, message).json().dump(); }

  // From now on no new work is taken.
  void drain() { draining_ = true; }
  // Requests that are being answered.
  int64_t active() const { return active_; }

 private:
  HttpResponse route(const HttpRequest& request);
  HttpResponse complete(const HttpRequest& request);
  HttpResponse chat(const HttpRequest& request);
  struct Prompt {
    std::vector<int32_t> ids;
    int64_t prefix = 0;  // of the ids, the first ones that stand for no text of the client's
  };
  HttpResponse generate(ApiKind kind, GenerationFields fields, const std::vector<Prompt>& prompts, bool echo,
                        const std::function<bool()>& gone);
  Json tokenize(const std::string& body) const;
  Json detokenize(const std::string& body) const;
  Json model_json() const;
  Json tokenizer_json() const;
  void authorize(const HttpRequest& request) const;
  void check_model(const std::string& name) const;
  std::vector<int32_t> ids_of(const ChatTemplate::Conversation& conversation) const;
  // How many new tokens there may be behind a prompt. Throws ApiError where it has no place in the context.
  int64_t most_tokens(const GenerationFields& fields, int64_t prompt, int64_t usual) const;
  const ChatTemplate& need_template() const;

  const ApiOptions options_;
  const Tokenizer& tokenizer_;
  const ChatTemplate* const template_;
  EngineThread& engine_;
  Metrics& metrics_;
  const int64_t started_;
  std::atomic<bool> draining_ = false;
  std::atomic<int64_t> active_ = 0;
  std::atomic<uint64_t> next_ = 1;
};

}  // namespace llm
