#include "llm/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "llm/base/error.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

// Hands each character of `text` to map(code, out), which appends what becomes of it; bytes that are none are copied.
template <class Map>
std::string mapped(std::string_view text, Map&& map) {
  return with_changes(text, [&](std::string_view stretch, std::string& out) {
    for (size_t length; !stretch.empty(); stretch.remove_prefix(length)) {
      length = utf8_length(stretch);
      map(utf8_code(stretch, length), out);
    }
  });
}

template <class Map>
Normalizer by_character(Map map) {
  return {[map](std::string& text, bool) { text = mapped(text, map); }};
}

utf8proc_category_t category(uint32_t code) { return utf8proc_category(static_cast<utf8proc_int32_t>(code)); }

bool is_mark(uint32_t code) {
  const auto c = category(code);
  return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
}

void append_lower(uint32_t code, std::string& out) {
  if (code == 0x130) {  // the one capital letter whose small form is two characters
    out += "i\u0307";
  } else {
    append_utf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))), out);
  }
}

// Appends the normal form of `text`, well-formed UTF-8. `room` is memory to be used again.
void append_normal(std::string_view text, int options, std::vector<utf8proc_int32_t>& room, std::string& out) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto length = static_cast<utf8proc_ssize_t>(text.size());
  const auto option = static_cast<utf8proc_option_t>(options);
  room.resize(text.size() * 4 + 32);
  utf8proc_ssize_t count =
      utf8proc_decompose(bytes, length, room.data(), static_cast<utf8proc_ssize_t>(room.size()) - 1, option);
  if (count >= static_cast<utf8proc_ssize_t>(room.size())) {
    room.resize(static_cast<size_t>(count) + 1);
    count = utf8proc_decompose(bytes, length, room.data(), count, option);
  }
  if (count >= 0) count = utf8proc_reencode(room.data(), count, option);
  if (count < 0) fail("Unicode's normal form of a text cannot be made: ", utf8proc_errmsg(count));
  out.append(reinterpret_cast<const char*>(room.data()), static_cast<size_t>(count));
}

bool is_chinese(uint32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x2F800 && c <= 0x2FA1F);
}

// Controls, formats, private and unassigned ones.
bool is_other(uint32_t code) {
  const auto c = category(code);
  return c == UTF8PROC_CATEGORY_CC || c == UTF8PROC_CATEGORY_CF || c == UTF8PROC_CATEGORY_CO;
}

}  // namespace

bool is_white_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::string normal_form(std::string_view text, NormalForm form) {
  const bool composes = form == NormalForm::nfc || form == NormalForm::nfkc;
  const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
  const int options =
      (composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | UTF8PROC_STABLE | (compatible ? UTF8PROC_COMPAT : 0);
  // Characters below this one change only where a mark follows.
  const uint32_t quiet = compatible ? 0xA0 : composes ? 0x300 : 0xC0;
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> room;
  size_t done = 0, last = 0;  // what is in `out`; the last character that is quiet
  for (size_t at = 0; at < text.size();) {
    const size_t ascii = ascii_prefix(text.substr(at));
    if (ascii) last = at + ascii - 1, at += ascii;
    if (at == text.size()) break;
    const size_t length = utf8_length(text.substr(at));
    if (length == 0 || utf8_code(text.substr(at), length) < quiet) {
      last = at;
      at += std::max<size_t>(1, length);
      continue;
    }
    // From the quiet character before it to the next one.
    const size_t begin = std::max(done, utf8_length(text.substr(last)) ? last : at);
    size_t end = at;
    for (size_t n; (n = utf8_length(text.substr(end))) && utf8_code(text.substr(end), n) >= quiet;) end += n;
    out.append(text, done, begin - done);
    append_normal(text.substr(begin, end - begin), options, room, out);
    done = last = at = end;
  }
  return out.append(text, done);
}

Normalizer normal_form_normalizer(NormalForm form) {
  return {[form](std::string& text, bool) {
    if (ascii_prefix(text) != text.size()) text = normal_form(text, form);
  }};
}

Normalizer lowercase_normalizer() { return by_character(append_lower); }

Normalizer strip_accents_normalizer() {
  return by_character([](uint32_t code, std::string& out) {
    if (!is_mark(code)) append_utf8(code, out);
  });
}

Normalizer strip_normalizer(bool left, bool right) {
  return {[left, right](std::string& text, bool) {
            size_t begin = 0, end = text.size();
            const auto space = [&](size_t at) {
              const size_t length = utf8_length(std::string_view(text).substr(at));
              return length && is_white_space(utf8_code(std::string_view(text).substr(at), length)) ? length : 0;
            };
            for (size_t n; left && begin < end && (n = space(begin)); begin += n) {
            }
            while (right && end > begin) {
              const size_t last = begin + last_character(std::string_view(text).substr(begin, end - begin));
              if (!space(last)) break;
              end = last;
            }
            text = text.substr(begin, end - begin);
          },
          false, false, left};
}

Normalizer prepend_normalizer(const std::string& prefix) {
  return {[prefix](std::string& text, bool rest) {
            if (!text.empty() && !rest) text.insert(0, prefix);
          },
          true, true};
}

Normalizer replace_normalizer(SplitPattern pattern, const std::string& content) {
  const bool one_blank = pattern.text() == " ";
  const auto shared = std::make_shared<const SplitPattern>(std::move(pattern));
  return {[shared, content, one_blank](std::string& text, bool) {
            if (one_blank) {
              text = with_replaced(text, " ", content);
              return;
            }
            SplitPattern::Matcher matcher(*shared);
            text = with_changes(text, [&](std::string_view stretch, std::string& out) {
              size_t done = 0;
              matcher.start(stretch);
              for (size_t begin, end; matcher.next(begin, end); done = end)
                out.append(stretch, done, begin - done).append(content);
              out.append(stretch, done);
            });
          },
          one_blank && !content.empty()};
}

Normalizer nmt_normalizer() {
  return by_character([](uint32_t c, std::string& out) {
    if ((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) return;
    const bool blank = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                       c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
    append_utf8(blank ? ' ' : c, out);
  });
}

Normalizer bert_normalizer(const BertNormalization& what) {
  return {[what](std::string& text, bool) {
    if (what.clean_text)
      text = mapped(text, [](uint32_t c, std::string& out) {
        const bool line = c == '\t' || c == '\n' || c == '\r';
        if (c == 0 || c == 0xFFFD || (!line && is_other(c))) return;
        append_utf8(is_white_space(c) ? ' ' : c, out);
      });
    if (what.handle_chinese_chars)
      text = mapped(text, [](uint32_t c, std::string& out) {
        if (is_chinese(c)) out += ' ';
        append_utf8(c, out);
        if (is_chinese(c)) out += ' ';
      });
    if (what.strip_accents)
      text = mapped(normal_form(text, NormalForm::nfd), [](uint32_t c, std::string& out) {
        if (category(c) != UTF8PROC_CATEGORY_MN) append_utf8(c, out);
      });
    if (what.lowercase) text = mapped(text, append_lower);
  }};
}

}  // namespace llm
