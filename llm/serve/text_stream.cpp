#include "llm/serve/text_stream.h"

#include <algorithm>

#include "llm/serve/api_error.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// How many bytes from the beginning of `text`, which begins with no character, are the beginning of one (Unicode 15,
// table 3-7): at least 1.
size_t broken_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0xC2 || first > 0xF4 || text.size() == 1) return 1;
  const unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 1;
  const size_t whole = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  size_t length = 2;
  while (length < std::min(whole, text.size()) && is_continuation(text[length])) ++length;
  return length;
}

// Whether more bytes could make `text`, which is the beginning of a character, a whole one.
bool may_go_on(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  const size_t whole = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  return first >= 0xC2 && first <= 0xF4 && broken_length(text) == text.size() && text.size() < whole;
}

int64_t characters_in(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return !is_continuation(c); });
}

}  // namespace

std::string ApiError::valid_text(const std::string& text) { return text_of_bytes(text); }

size_t append_text(std::string_view bytes, size_t begin, bool last, std::string& text) {
  while (begin < bytes.size()) {
    const std::string_view rest = bytes.substr(begin);
    if (const size_t whole = utf8_prefix(rest)) {
      text += rest.substr(0, whole);
      begin += whole;
      continue;
    }
    const size_t broken = broken_length(rest);
    if (!last && broken == rest.size() && may_go_on(rest)) break;
    text += kReplacement;
    begin += broken;
  }
  return begin;
}

std::string text_of_bytes(std::string_view bytes) {
  std::string text;
  append_text(bytes, 0, true, text);
  return text;
}

void TextStream::push(std::string_view bytes, bool of_prompt) {
  if (stopped_ || finished_) return;
  // Bytes that are no text yet are part of a character, which stands in front of what comes next.
  tokens_.push_back({text_.size(), characters_});
  bytes_ += bytes;
  const size_t before = text_.size();
  bytes_.erase(0, append_text(bytes_, 0, false, text_));
  characters_ += characters_in(std::string_view(text_).substr(before));
  if (!of_prompt) return search(searched_);
  prompt_ = searched_ = text_.size();
  prompt_tokens_ = tokens_.size();
}

void TextStream::finish() {
  if (stopped_ || finished_) return;
  finished_ = true;
  append_text(bytes_, 0, true, text_);
  bytes_.clear();
  search(searched_);
}

void TextStream::search(size_t from) {
  size_t first = text_.npos, longest = 0;
  for (const std::string& stop : stops_) {
    first = std::min(first, text_.find(stop, from));
    longest = std::max(longest, stop.size());
  }
  if (first != text_.npos) {
    text_.resize(first);
    stopped_ = true;
    while (tokens_.size() > prompt_tokens_ && tokens_.back().begin >= first) tokens_.pop_back();
    return;
  }
  // A stop that is not complete begins in the last bytes.
  searched_ = std::max(prompt_, text_.size() < longest ? 0 : text_.size() - longest + 1);
}

size_t TextStream::certain() const {
  if (stopped_ || finished_) return text_.size();
  size_t certain = text_.size();
  for (const std::string& stop : stops_) {
    // The earliest place from which the rest of the text is the stop's beginning.
    size_t at = std::max(prompt_, text_.size() < stop.size() ? 0 : text_.size() - stop.size() + 1);
    while (at < certain && !stop.starts_with(std::string_view(text_).substr(at))) ++at;
    certain = std::min(certain, at);
  }
  return std::max(certain, taken_);
}

std::string TextStream::take() {
  const size_t end = certain();
  std::string text = text_.substr(taken_, end - taken_);
  taken_ = end;
  return text;
}

size_t TextStream::tokens() {
  if (stopped_ || finished_) return tokens_.size();
  const size_t end = certain();
  while (handed_on_ < tokens_.size() && tokens_[handed_on_].begin < end) ++handed_on_;
  return handed_on_;
}

}  // namespace llm
