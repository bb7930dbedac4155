#include "llm/serve/jinja_operators.h"

#include <cmath>

#include "llm/base/error.h"
#include "llm/serve/jinja_library.h"

namespace llm::jinja {
namespace {

std::string described(const Value& value) {
  if (value.is_undefined() && value.undefined_name())
    return concat("\"", *value.undefined_name(), "\", which is undefined");
  return value.kind();
}

Value joined(const std::string& a, const std::string& b, Budget& budget) {
  budget.make_bytes(a.size() + b.size());
  budget.look_at_bytes(a.size() + b.size());
  return Value(a + b);
}

Value repeated(const std::string& text, int64_t times, Budget& budget) {
  std::string all;
  for (int64_t i = 0; i < times && !text.empty(); ++i) {
    budget.step();
    budget.make_bytes(text.size());
    all += text;
  }
  return Value(std::move(all));
}

Value arithmetic(char symbol, bool whole_quotient, const Value& a, const Value& b) {
  const bool whole = a.is_whole() && b.is_whole();
  if ((symbol == '/' || symbol == '%') && b.real() == 0) fail("a division by zero");
  if (!whole || (symbol == '/' && !whole_quotient)) {
    const double x = a.real(), y = b.real();
    switch (symbol) {
      case '+': return Value(x + y);
      case '-': return Value(x - y);
      case '*': return Value(x * y);
      case '/': return Value(whole_quotient ? std::floor(x / y) : x / y);
      default: {
        const double rest = std::fmod(x, y);
        return Value(rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest);
      }
    }
  }
  const int64_t x = a.integer(), y = b.integer();
  int64_t result = 0;
  bool overflow = false;
  switch (symbol) {
    case '+': overflow = __builtin_add_overflow(x, y, &result); break;
    case '-': overflow = __builtin_sub_overflow(x, y, &result); break;
    case '*': overflow = __builtin_mul_overflow(x, y, &result); break;
    default: {
      // Python rounds down, C++ towards zero.
      if (y == -1) {
        overflow = symbol == '/' && __builtin_sub_overflow(int64_t{0}, x, &result);
        break;
      }
      const int64_t rest = x % y, adjust = rest != 0 && (rest < 0) != (y < 0) ? 1 : 0;
      result = symbol == '/' ? x / y - adjust : rest + adjust * y;
    }
  }
  if (overflow) fail("a number is too large");
  return Value(result);
}

}  // namespace

Value apply_unary(const std::string& text, const Value& value) {
  if (text == "not") return Value(!is_true(value));
  if (!value.is_number()) fail("\"", text, "\" before ", described(value));
  if (text == "+") return value.is_real() ? value : Value(value.integer());
  if (value.is_real()) return Value(-value.real());
  int64_t negative = 0;
  if (__builtin_sub_overflow(int64_t{0}, value.integer(), &negative)) fail("a number is too large");
  return Value(negative);
}

Value apply_binary(const std::string& text, const Value& a, const Value& b, Budget& budget) {
  if (text == "~") return joined(text_of(a, budget), text_of(b, budget), budget);
  if (text == "==") return Value(equal(a, b, budget));
  if (text == "!=") return Value(!equal(a, b, budget));
  if (text == "in") return Value(contains(b, a, budget));
  if (text == "not in") return Value(!contains(b, a, budget));
  if (text == "<") return Value(compare(a, b, budget) < 0);
  if (text == "<=") return Value(compare(a, b, budget) <= 0);
  if (text == ">") return Value(compare(a, b, budget) > 0);
  if (text == ">=") return Value(compare(a, b, budget) >= 0);
  if (a.is_number() && b.is_number()) return arithmetic(text[0], text == "//", a, b);
  if (text == "+" && a.is_string() && b.is_string()) return joined(a.string(), b.string(), budget);
  if (text == "+" && a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
    budget.look_at_items(a.items().size() + b.items().size());
    Value::Items items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    return Value(std::move(items), a.is_tuple());
  }
  if (text == "*" && a.is_string() && b.is_whole()) return repeated(a.string(), b.integer(), budget);
  if (text == "*" && b.is_string() && a.is_whole()) return repeated(b.string(), a.integer(), budget);
  fail("\"", text, "\" of ", described(a), " and ", described(b));
}

}  // namespace llm::jinja
