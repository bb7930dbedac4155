// A chat template, read: what the parser makes and the renderer walks over.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "llm/serve/jinja_value.h"

namespace llm::jinja {

struct Expression;
using ExpressionPointer = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    constant,  // `constant`
    name,      // the variable `text`
    list,
    tuple,   // operands
    dict,    // key, value, key, value ...
    member,  // operands[0].text
    item,    // operands[0][operands[1]]
    slice,   // operands[0][operands[1]:operands[2]:operands[3]], each of them null where it was left out
    call,    // operands[0](...)
    filter,  // operands[0] | text(...)
    test,    // operands[0] is text(...)
    unary,   // text is "-", "+" or "not"
    binary,  // text is an operator: + - * / // % ~ == != < <= > >= in "not in" and or
    choice   // operands[0] if operands[1] else operands[2], which may be null
  };
  Kind kind;
  int line;
  int depth;  // of this expression: 1 + that of its deepest operand
  std::string text;
  Value constant;
  std::vector<ExpressionPointer> operands;  // of a call, filter or test, its arguments come behind the first one
  std::vector<std::string> keywords;        // of the last arguments, those given by name
};

struct Statement;
using Statements = std::vector<Statement>;

struct Statement {
  enum class Kind {
    text,        // `text`
    print,       // {{ expression }}
    condition,   // {% if expression %} body {% else %} otherwise
    loop,        // {% for targets in expression if condition %} body {% else %} otherwise
    assignment,  // {% set targets = expression %}
    member,      // {% set targets[0].text = expression %}
    capture,     // {% set targets[0] %} body {% endset %}
    macro,       // {% macro text(targets) %} body; `defaults` are those of the last targets
    group,       // {% generation %} body
    break_loop,
    continue_loop
  };
  Kind kind;
  int line;
  std::string text;
  std::vector<std::string> targets;
  ExpressionPointer expression, condition;
  std::vector<ExpressionPointer> defaults;
  Statements body, otherwise;
};

// Throws Error "line N: ..." for what is no template, and for what Jinja has but not this subset of it, by its name.
Statements parse(std::string_view source);

}  // namespace llm::jinja
