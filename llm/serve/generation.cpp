#include "llm/serve/generation.h"

#include "llm/serve/api_error.h"

namespace llm {
namespace {

std::string event_of(const Json& json) { return "data: " + json.dump() + "\n\n"; }

Json ids_json(const std::vector<int32_t>& ids) { return Json(ids); }

}  // namespace

bool Generation::wait() {
  while (events_.empty()) {
    events_ = ticket_->wait(std::chrono::milliseconds(100));
    if (events_.empty() && gone_()) return false;
  }
  return true;
}

void Generation::begin() {
  if (open_ == 0 || !wait()) return;
  const EngineEvent& first = events_.front();
  if (first.kind == EngineEvent::Kind::refused) throw ApiError(400, first.error);
  if (first.kind == EngineEvent::Kind::failed) throw ApiError(500, first.error);
}

void Generation::apply(const EngineEvent& event) {
  AnswerChoice& choice = choices_[event.sequence];
  switch (event.kind) {
    case EngineEvent::Kind::refused: throw ApiError(400, event.error);
    case EngineEvent::Kind::failed: throw ApiError(500, event.error);
    case EngineEvent::Kind::end:
      if (choice.ended()) return;
      choice.end(event.finish);
      --open_;
      return;
    case EngineEvent::Kind::token:
      if (choice.ended()) return;
      choice.push(event.token);
      if (!choice.ended()) return;
      --open_;
      ticket_->cancel(event.sequence);
  }
}

Json Generation::usage() const {
  int64_t made = 0;
  for (const AnswerChoice& choice : choices_) made += choice.new_tokens();
  return {{"prompt_tokens", form_.prompt_tokens},
          {"completion_tokens", made},
          {"total_tokens", form_.prompt_tokens + made}};
}

Json Generation::envelope(const char* completion, const char* chat) const {
  return {{"id", form_.id},
          {"object", form_.kind == ApiKind::chat ? chat : completion},
          {"created", form_.created},
          {"model", form_.model},
          {"seed", form_.seed}};
}

Json Generation::answer() {
  Json choices = Json::array();
  while (open_ > 0 && wait())
    for (const EngineEvent& event : std::exchange(events_, {})) apply(event);
  for (size_t i = 0; i < choices_.size(); ++i) {
    const AnswerChoice::Part part = choices_[i].take();
    const Json finish = choices_[i].ended() ? Json(choices_[i].finish()) : Json();
    Json choice = {{"index", i}};
    if (form_.kind == ApiKind::chat)
      choice["message"] = {{"role", "assistant"}, {"content", part.text}, {"refusal", nullptr}};
    else
      choice["text"] = part.text;
    choice["logprobs"] = part.logprobs.is_null() ? choices_[i].no_logprobs() : part.logprobs;
    choice["finish_reason"] = finish;
    if (!part.ids.empty()) choice["token_ids"] = ids_json(part.ids);
    choices.push_back(choice);
  }
  Json answer = envelope("text_completion", "chat.completion");
  answer["choices"] = choices;
  answer["usage"] = usage();
  return answer;
}

Json Generation::chunk(size_t choice, const Json& delta, const Json& logprobs, const Json& finish) const {
  Json chunk = envelope("text_completion", "chat.completion.chunk");
  Json one = {{"index", choice},
              {form_.kind == ApiKind::chat ? "delta" : "text", delta},
              {"logprobs", logprobs},
              {"finish_reason", finish}};
  chunk["choices"] = Json::array({one});
  if (form_.stream_usage) chunk["usage"] = nullptr;
  return chunk;
}

void Generation::stream(const HttpResponse::Write& write) {
  const bool chat = form_.kind == ApiKind::chat;
  std::vector<bool> told(choices_.size(), false);  // how the choice ended
  std::string out;
  try {
    for (size_t i = 0; chat && i < choices_.size(); ++i)
      out += event_of(chunk(i, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr));
    while (open_ > 0) {
      if (!out.empty() && !write(out)) return;
      out.clear();
      if (!wait()) return;
      for (const EngineEvent& event : std::exchange(events_, {})) apply(event);
      for (size_t i = 0; i < choices_.size(); ++i) {
        if (told[i]) continue;
        const AnswerChoice::Part part = choices_[i].take();
        if (!part.empty()) {
          Json one = chunk(i, chat ? Json{{"content", part.text}} : Json(part.text), part.logprobs, nullptr);
          if (!part.ids.empty()) one["token_ids"] = ids_json(part.ids);
          out += event_of(one);
        }
        if (!choices_[i].ended()) continue;
        told[i] = true;
        out += event_of(chunk(i, chat ? Json::object() : Json(""), nullptr, choices_[i].finish()));
      }
    }
    if (form_.stream_usage) {
      Json last = envelope("text_completion", "chat.completion.chunk");
      last["choices"] = Json::array();
      last["usage"] = usage();
      out += event_of(last);
    }
  } catch (const ApiError& error) {
    out += event_of(error.json());
  }
  write(out + "data: [DONE]\n\n");
}

}  // namespace llm
