#include "llm/serve/jinja_lexer.h"

#include <algorithm>
#include <cstring>

#include "llm/base/error.h"
#include "llm/text/utf8.h"

namespace llm::jinja {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Line ends of any kind become "\n"; the last one is no part of the template.
std::string normalized(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text += source[i];
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      text += '\n';
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

// The value of `digits` hexadecimal digits at `at`, or -1.
int64_t hexadecimal(std::string_view text, size_t at, size_t digits) {
  if (text.size() < at + digits) return -1;
  int64_t value = 0;
  for (const char c : text.substr(at, digits)) {
    const int digit = is_digit(c)            ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

class Lexer {
 public:
  explicit Lexer(const std::string& source) : source_(source) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text();
    add(Token::Kind::end, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void wrong(const std::string& what) const { fail("line ", line_, ": ", what); }
  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  void add(Token::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  void skip(size_t bytes) {
    const auto from = source_.begin() + static_cast<ptrdiff_t>(at_);
    line_ += static_cast<int>(std::count(from, from + static_cast<ptrdiff_t>(bytes), '\n'));
    at_ += bytes;
  }
  void skip_blanks() {
    while (const size_t length = blank_length(rest())) skip(length);
  }

  // The text up to the next tag, and that tag.
  void text() {
    size_t open = source_.find('{', at_);
    while (open < source_.size() && (open + 1 == source_.size() || !std::strchr("{%#", source_[open + 1])))
      open = source_.find('{', open + 1);
    if (open >= source_.size()) {
      add(Token::Kind::text, std::string(rest()));
      at_ = source_.size();
      return;
    }
    const char mark = source_[open + 1];
    const char sign = open + 2 < source_.size() ? source_[open + 2] : ' ';
    std::string_view text = std::string_view(source_).substr(at_, open - at_);
    if (sign == '-') {
      text = without_blanks_behind(text);
    } else if (sign != '+' && mark != '{') {
      const size_t line = text.rfind('\n') + 1;  // where the tag's line begins
      if ((line > 0 || starts_line_) && without_blanks_before(text.substr(line)).empty()) text = text.substr(0, line);
    }
    if (!text.empty()) add(Token::Kind::text, std::string(text));
    skip(open + (sign == '-' || sign == '+' ? 3 : 2) - at_);
    if (mark == '#')
      comment();
    else
      tag(mark == '{');
  }

  void comment() {
    const size_t end = source_.find("#}", at_);
    if (end == source_.npos) wrong("a comment {# has no end");
    // The sign belongs to the end, if the comment is not that sign alone.
    const bool has_sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+');
    const char sign = has_sign ? source_[end - 1] : ' ';
    skip(end + 2 - at_);
    after_tag(sign, false);
  }

  // What the end of a tag takes from the text behind it.
  void after_tag(char sign, bool print) {
    const size_t begin = at_;
    if (sign == '-')
      skip_blanks();
    else if (sign != '+' && !print && rest().starts_with('\n'))
      skip(1);
    starts_line_ = at_ > begin && source_[at_ - 1] == '\n';
  }

  void tag(bool print) {
    const std::string_view close = print ? "}}" : "%}";
    add(print ? Token::Kind::print_begin : Token::Kind::block_begin, "");
    std::string open;  // the brackets that are open
    for (;;) {
      skip_blanks();
      if (at_ == source_.size()) wrong(concat("a tag has no end, \"", close, "\""));
      const char c = source_[at_];
      const bool has_sign = c == '-' || (c == '+' && !print);
      if (open.empty() && rest().substr(has_sign ? 1 : 0).starts_with(close)) {
        add(print ? Token::Kind::print_end : Token::Kind::block_end, "");
        skip(close.size() + (has_sign ? 1 : 0));
        return after_tag(has_sign ? c : ' ', print);
      }
      if (is_letter(c)) {
        size_t length = 1;
        while (length < rest().size() && (is_letter(rest()[length]) || is_digit(rest()[length]))) ++length;
        add(Token::Kind::name, std::string(rest().substr(0, length)));
        skip(length);
      } else if (is_digit(c)) {
        number();
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        symbol(open);
      }
    }
  }

  void number() {
    size_t length = 0;
    bool real = false;
    const auto digits = [&] {
      const size_t begin = length;
      while (length < rest().size() && is_digit(rest()[length])) ++length;
      return length > begin;
    };
    digits();
    // "1.5", but not "1.x", which is a member of 1.
    if (const size_t point = length; rest().substr(point).starts_with('.')) {
      ++length;
      real = digits();
      if (!real) length = point;
    }
    if (const size_t before = length; length < rest().size() && (rest()[length] == 'e' || rest()[length] == 'E')) {
      ++length;
      if (length < rest().size() && (rest()[length] == '+' || rest()[length] == '-')) ++length;
      if (digits())
        real = true;
      else
        length = before;
    }
    if (length < rest().size() && (is_letter(rest()[length]) || is_digit(rest()[length])))
      wrong("a number that chat templates here may not have: only decimal digits, a point, an exponent");
    add(real ? Token::Kind::real : Token::Kind::integer, std::string(rest().substr(0, length)));
    skip(length);
  }

  void string(char mark) {
    std::string value;
    size_t i = at_ + 1;
    for (;;) {
      if (i >= source_.size()) wrong("a string has no end");
      const char c = source_[i++];
      if (c == mark) break;
      if (c != '\\') {
        value += c;
        continue;
      }
      if (i >= source_.size()) wrong("a string has no end");
      escape(i, value);
    }
    add(Token::Kind::string, std::move(value));
    skip(i - at_);
  }

  // What Python makes of a backslash before source_[i].
  void escape(size_t& i, std::string& value) const {
    const char c = source_[i++];
    static constexpr std::string_view kLetters = "abfnrtv\\'\"", kValues = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t at = kLetters.find(c); at != kLetters.npos) {
      value += kValues[at];
    } else if (c == '\n') {
      // A line that goes on.
    } else if (c >= '0' && c <= '7') {
      uint32_t code = static_cast<uint32_t>(c - '0');
      for (int more = 0; more < 2 && i < source_.size() && source_[i] >= '0' && source_[i] <= '7'; ++more)
        code = code * 8 + static_cast<uint32_t>(source_[i++] - '0');
      append_utf8(code, value);
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      const int64_t code = hexadecimal(source_, i, digits);
      if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        wrong(concat("a string has a wrong escape, \\", c));
      append_utf8(static_cast<uint32_t>(code), value);
      i += digits;
    } else if (c == 'N') {
      wrong("a string has a character by its name, \\N, which chat templates here may not have");
    } else {
      value += '\\';
      value += c;
    }
  }

  void symbol(std::string& open) {
    static constexpr std::string_view kLong[] = {"==", "!=", "<=", ">=", "//", "**"};
    std::string text(1, source_[at_]);
    for (const std::string_view two : kLong)
      if (rest().starts_with(two)) text = two;
    if (!std::strchr("+-*/%~<>=!.:|,;()[]{}", text[0]) || text == "!" || text[0] == '\0')
      wrong(concat("\"", rest().substr(0, std::max<size_t>(1, utf8_length(rest()))), "\" has no meaning here"));
    if (std::strchr("([{", text[0])) open += text[0] == '(' ? ')' : text[0] == '[' ? ']' : '}';
    if (std::strchr(")]}", text[0])) {
      if (open.empty() || open.back() != text[0]) wrong(concat("\"", text, "\" closes what is not open"));
      open.pop_back();
    }
    skip(text.size());
    add(Token::Kind::symbol, std::move(text));
  }

  const std::string& source_;
  size_t at_ = 0;
  int line_ = 1;
  bool starts_line_ = true;  // the text at `at_` begins a line
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokens_of(std::string_view source) {
  const std::string text = normalized(source);
  return Lexer(text).run();
}

size_t blank_length(std::string_view text) {
  if (text.empty()) return 0;
  const auto byte = static_cast<unsigned char>(text[0]);
  if (byte < 0x80) return byte == ' ' || (byte >= 9 && byte <= 13) || (byte >= 0x1C && byte <= 0x1F) ? 1 : 0;
  const size_t length = utf8_length(text);
  if (length < 2) return 0;
  const uint32_t code = utf8_code(text, length);
  static constexpr uint32_t kBlanks[] = {0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
  const bool blank = (code >= 0x2000 && code <= 0x200A) ||
                     std::find(std::begin(kBlanks), std::end(kBlanks), code) != std::end(kBlanks);
  return blank ? length : 0;
}

std::string_view without_blanks_before(std::string_view text) {
  while (const size_t length = blank_length(text)) text.remove_prefix(length);
  return text;
}

std::string_view without_blanks_behind(std::string_view text) {
  while (!text.empty()) {
    const size_t last = last_character(text);
    if (!blank_length(text.substr(last)) || blank_length(text.substr(last)) != text.size() - last) break;
    text = text.substr(0, last);
  }
  return text;
}

}  // namespace llm::jinja
