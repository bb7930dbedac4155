#include "llm/serve/jinja_text.h"

#include <utf8proc.h>

#include <algorithm>

#include "llm/base/error.h"
#include "llm/serve/jinja_lexer.h"
#include "llm/text/utf8.h"

namespace llm::jinja {
namespace {

// change(character, whether the one before it has a case)
template <class Change>
std::string changed(std::string_view text, Change&& change) {
  std::string out;
  bool cased = false;
  while (!text.empty()) {
    const size_t length = std::max<size_t>(1, utf8_length(text));
    const auto code = static_cast<utf8proc_int32_t>(utf8_code(text, length));
    append_utf8(static_cast<uint32_t>(change(code, cased)), out);
    cased = utf8proc_toupper(code) != code || utf8proc_tolower(code) != code;
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace

std::string upper(std::string_view text) {
  return changed(text, [](auto code, bool) { return utf8proc_toupper(code); });
}

std::string lower(std::string_view text) {
  return changed(text, [](auto code, bool) { return utf8proc_tolower(code); });
}

std::string capitalized(std::string_view text) {
  const size_t first = std::min(text.size(), std::max<size_t>(1, utf8_length(text)));
  return changed(text.substr(0, first), [](auto code, bool) { return utf8proc_totitle(code); }) +
         lower(text.substr(first));
}

std::string python_title(std::string_view text) {
  return changed(text, [](auto code, bool cased) { return cased ? utf8proc_tolower(code) : utf8proc_totitle(code); });
}

Value stripped(std::string_view text, const std::string* characters, bool before, bool behind, Budget& budget) {
  budget.look_at_bytes(text.size());
  const auto is_among = [&](std::string_view character) {
    budget.look_at_bytes(characters->size());
    return characters->find(character) != characters->npos;
  };
  if (!characters) {
    if (before) text = without_blanks_before(text);
    if (behind) text = without_blanks_behind(text);
  } else {
    while (before && !text.empty()) {
      const size_t length = std::max<size_t>(1, utf8_length(text));
      if (!is_among(text.substr(0, length))) break;
      text.remove_prefix(length);
    }
    while (behind && !text.empty()) {
      const size_t last = last_character(text);
      if (!is_among(text.substr(last))) break;
      text = text.substr(0, last);
    }
  }
  budget.make_bytes(text.size());
  return Value(std::string(text));
}

Value replaced(const std::string& text, const std::string& from, const std::string& to, const Value* count,
               Budget& budget) {
  if (count && !count->is_none() && !count->is_whole()) fail("replace() so many times: ", count->kind());
  int64_t left = count && count->is_whole() && count->integer() >= 0 ? count->integer() : INT64_MAX;
  std::string out;
  budget.look_at_bytes(text.size());
  size_t done = 0;
  const auto next = [&] {
    if (!from.empty()) return text.find(from, done);
    return done <= text.size() ? done : text.npos;
  };
  // An empty `from` is found before every character and at the end.
  for (size_t at; left > 0 && (at = next()) != text.npos; --left) {
    budget.make_bytes(to.size());
    budget.step();
    out.append(text, done, at - done).append(to);
    done = at + from.size();
    if (!from.empty()) continue;
    if (at == text.size()) break;
    const size_t length = std::max<size_t>(1, utf8_length(std::string_view(text).substr(at)));
    out.append(text, at, length);
    done = at + length;
  }
  if (done < text.size()) out.append(text, done);
  budget.make_bytes(text.size());
  return Value(std::move(out));
}

}  // namespace llm::jinja
