#include "llm/serve/answer_choice.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "llm/text/utf8.h"

namespace llm {
namespace {

// As few digits as tell this float from others. OpenAI writes -9999 for what is impossible.
Json logprob_json(float logprob) {
  if (!std::isfinite(logprob)) return -9999.0;
  char digits[32];
  const char* end = std::to_chars(digits, digits + sizeof digits, logprob).ptr;
  double number = 0;
  std::from_chars(digits, end, number);
  return number;
}

// A token's text; where it is no UTF-8, its bytes: "bytes:\xe2\x80".
std::string shown_token(std::string_view bytes) {
  if (utf8_prefix(bytes) == bytes.size()) return std::string(bytes);
  std::string text = "bytes:";
  for (const char byte : bytes) {
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned char>(byte));
    text += escape;
  }
  return text;
}

}  // namespace

AnswerChoice::AnswerChoice(const Tokenizer& tokenizer, Options options)
    : tokenizer_(tokenizer), options_(std::move(options)), text_(options_.stops) {}

// A vocabulary may be larger than its tokenizer: such ids stand for nothing.
std::string_view AnswerChoice::bytes_of(int32_t id) const {
  return id < tokenizer_.vocabulary() ? tokenizer_.bytes_of(id) : std::string_view();
}

void AnswerChoice::push(const TokenOutput& token) {
  if (ended()) return;
  const bool of_prompt = token.position < options_.prompt;
  const bool ends =
      !of_prompt && std::find(options_.ends.begin(), options_.ends.end(), token.id) != options_.ends.end();
  if (!of_prompt && !ends) ++new_tokens_;
  text_.push(ends || token.position < options_.prefix ? std::string_view() : bytes_of(token.id), of_prompt);
  if (options_.logprobs >= 0 || options_.token_ids) tokens_.push_back(token);
  if (ends) text_.finish();
  if (ends || text_.stopped()) finish_ = "stop";
}

void AnswerChoice::end(Finish finish) {
  if (ended()) return;
  text_.finish();
  finish_ = text_.stopped() || finish == Finish::stop ? "stop" : "length";
}

AnswerChoice::Part AnswerChoice::take() {
  Part part;
  part.text = text_.take();
  if (tokens_.empty()) return part;
  const size_t until = std::min(text_.tokens(), tokens_.size());
  if (until <= taken_) return part;
  if (options_.token_ids)
    for (size_t i = taken_; i < until; ++i) part.ids.push_back(tokens_[i].id);
  if (options_.logprobs >= 0)
    part.logprobs = options_.kind == ApiKind::chat ? chat_logprobs(taken_, until) : completion_logprobs(taken_, until);
  taken_ = until;
  return part;
}

Json AnswerChoice::no_logprobs() const {
  if (options_.logprobs < 0) return {};
  return options_.kind == ApiKind::chat ? chat_logprobs(0, 0) : completion_logprobs(0, 0);
}

Json AnswerChoice::completion_logprobs(size_t from, size_t to) const {
  Json tokens = Json::array(), logprobs = Json::array(), alternatives = Json::array(), offsets = Json::array();
  for (size_t i = from; i < to; ++i) {
    const TokenOutput& token = tokens_[i];
    const std::string text = shown_token(bytes_of(token.id));
    const bool known = !std::isnan(token.logprob);
    Json likeliest;
    if (known && options_.logprobs > 0) {
      likeliest = Json::object();
      for (const auto& [id, logprob] : token.alternatives) {
        const std::string other = shown_token(bytes_of(id));
        // Of tokens of one text the likeliest counts.
        if (!likeliest.contains(other)) likeliest[other] = logprob_json(logprob);
      }
      if (!likeliest.contains(text)) likeliest[text] = logprob_json(token.logprob);
    }
    tokens.push_back(text);
    logprobs.push_back(known ? logprob_json(token.logprob) : Json());
    alternatives.push_back(likeliest);
    offsets.push_back(text_.offset(i));
  }
  return {{"tokens", tokens}, {"token_logprobs", logprobs}, {"top_logprobs", alternatives}, {"text_offset", offsets}};
}

Json AnswerChoice::chat_logprobs(size_t from, size_t to) const {
  const auto entry = [&](int32_t id, float logprob) {
    const std::string_view bytes = bytes_of(id);
    Json numbers = Json::array();
    for (const char byte : bytes) numbers.push_back(static_cast<int>(static_cast<unsigned char>(byte)));
    return Json{{"token", shown_token(bytes)}, {"logprob", logprob_json(logprob)}, {"bytes", numbers}};
  };
  Json content = Json::array();
  for (size_t i = from; i < to; ++i) {
    Json likeliest = Json::array();
    for (const auto& [id, logprob] : tokens_[i].alternatives) likeliest.push_back(entry(id, logprob));
    Json one = entry(tokens_[i].id, tokens_[i].logprob);
    one["top_logprobs"] = likeliest;
    content.push_back(one);
  }
  return {{"content", content}, {"refusal", nullptr}};
}

}  // namespace llm
