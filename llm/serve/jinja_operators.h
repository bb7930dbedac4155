// What the operators of expressions do, as Python's do it, but for "and" and "or", which may leave an operand alone.
#pragma once
#include <string>

#include "llm/serve/jinja_value.h"

namespace llm::jinja {

// "-", "+" or "not" of a value. Throws Error for what it cannot be applied to.
Value apply_unary(const std::string& text, const Value& value);
// + - * / // % ~ == != < <= > >= in "not in"
Value apply_binary(const std::string& text, const Value& a, const Value& b, Budget& budget);

}  // namespace llm::jinja
