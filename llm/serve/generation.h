// A request that is being answered: its sequences in the engine, and their texts as they come.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llm/serve/answer_choice.h"
#include "llm/serve/engine_thread.h"
#include "llm/serve/http.h"

namespace llm {

class Generation {
 public:
  // How the answer's JSON looks, of whichever API.
  struct Form {
    ApiKind kind;
    std::string id, model;
    int64_t created;
    uint64_t seed;
    bool stream_usage;
    int64_t prompt_tokens;
  };

  Generation(Form form, std::vector<AnswerChoice> choices, std::unique_ptr<EngineThread::Ticket> ticket,
             std::function<bool()> gone)
      : form_(std::move(form)),
        choices_(std::move(choices)),
        ticket_(std::move(ticket)),
        gone_(std::move(gone)),
        open_(choices_.size()) {}

  // Waits for the first sign that the engine took the request. Throws ApiError where it did not.
  void begin();
  // The whole answer; a client that goes away ends it early.
  Json answer();
  // The answer as server-sent events, down to "data: [DONE]".
  void stream(const HttpResponse::Write& write);

 private:
  bool wait();  // for events; false: the client is gone
  void apply(const EngineEvent& event);
  Json usage() const;
  Json envelope(const char* completion, const char* chat) const;
  Json chunk(size_t choice, const Json& delta, const Json& logprobs, const Json& finish) const;

  Form form_;
  std::vector<AnswerChoice> choices_;
  std::unique_ptr<EngineThread::Ticket> ticket_;
  std::function<bool()> gone_;
  size_t open_;  // choices that have not ended
  std::deque<EngineEvent> events_;
};

}  // namespace llm
