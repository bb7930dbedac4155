#include "llm/serve/jinja_expressions.h"

#include <algorithm>
#include <charconv>

#include "llm/base/error.h"

namespace llm::jinja {

using Kind = Expression::Kind;

bool TokenReader::among(std::string_view text, Names names) {
  return std::find(names.begin(), names.end(), text) != names.end();
}

void TokenReader::wrong(const std::string& what) const { fail("line ", token().line, ": ", what); }

void TokenReader::unexpected(std::string_view wanted) const {
  const Token& t = token();
  const bool named = !t.text.empty() && t.kind != Token::Kind::text;
  wrong(concat(wanted, " is missing before ",
               named                                ? "\"" + t.text + "\""
               : t.kind == Token::Kind::print_end   ? "}}"
               : t.kind == Token::Kind::block_end   ? "%}"
               : t.kind == Token::Kind::print_begin ? "{{"
               : t.kind == Token::Kind::block_begin ? "{%"
               : t.kind == Token::Kind::end         ? "the end"
                                                    : "text"));
}

const Token& TokenReader::next_token() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }

Token TokenReader::take() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_[at_]; }

void TokenReader::need_symbol(std::string_view text) {
  if (!take_symbol(text)) unexpected(concat("\"", text, "\""));
}

std::string TokenReader::need_name(std::string_view what) {
  if (token().kind != Token::Kind::name) unexpected(what);
  return take().text;
}

ExpressionPointer ExpressionParser::make(Kind kind, std::string text) const {
  return std::make_unique<Expression>(Expression{kind, token().line, 1, std::move(text), {}, {}, {}});
}

void ExpressionParser::add(Expression& to, ExpressionPointer operand) const {
  if (operand) to.depth = std::max(to.depth, operand->depth + 1);
  if (to.depth > Limits::depth) wrong("an expression is nested too deeply");
  to.operands.push_back(std::move(operand));
}

template <class... Operands>
ExpressionPointer ExpressionParser::make_of(Kind kind, std::string text, Operands... operands) const {
  ExpressionPointer made = make(kind, std::move(text));
  (add(*made, std::move(operands)), ...);
  return made;
}

ExpressionPointer ExpressionParser::tuple(bool with_choice, bool in_parentheses) {
  ExpressionPointer first = with_choice ? expression() : disjunction();
  if (!is_symbol(",")) return first;
  ExpressionPointer made = make_of(Kind::tuple, "", std::move(first));
  while (take_symbol(",")) {
    const bool ends = token().kind == Token::Kind::print_end || token().kind == Token::Kind::block_end ||
                      (in_parentheses && is_symbol(")"));
    if (ends) break;
    add(*made, with_choice ? expression() : disjunction());
  }
  return made;
}

ExpressionPointer ExpressionParser::expression() {
  const Deeper deeper(*this);
  ExpressionPointer value = disjunction();
  while (take_name("if")) {
    ExpressionPointer when = disjunction();
    ExpressionPointer otherwise = take_name("else") ? expression() : nullptr;
    value = make_of(Kind::choice, "", std::move(value), std::move(when), std::move(otherwise));
  }
  return value;
}

ExpressionPointer ExpressionParser::disjunction() {
  ExpressionPointer left = conjunction();
  while (take_name("or")) left = make_of(Kind::binary, "or", std::move(left), conjunction());
  return left;
}

ExpressionPointer ExpressionParser::conjunction() {
  ExpressionPointer left = negation();
  while (take_name("and")) left = make_of(Kind::binary, "and", std::move(left), negation());
  return left;
}

ExpressionPointer ExpressionParser::negation() {
  const Deeper deeper(*this);
  return take_name("not") ? make_of(Kind::unary, "not", negation()) : comparison();
}

ExpressionPointer ExpressionParser::comparison() {
  ExpressionPointer left = sum();
  const std::string text = comparison_symbol();
  if (text.empty()) return left;
  ExpressionPointer made = make_of(Kind::binary, text, std::move(left), sum());
  if (!comparison_symbol().empty()) wrong("a chain of comparisons is not among what chat templates may use here");
  return made;
}

std::string ExpressionParser::comparison_symbol() {
  if (token().kind == Token::Kind::symbol && among(token().text, {"==", "!=", "<", "<=", ">", ">="}))
    return take().text;
  if (take_name("in")) return "in";
  if (is_name("not") && next_token().kind == Token::Kind::name && next_token().text == "in")
    return take(), take(), "not in";
  return "";
}

ExpressionPointer ExpressionParser::sum() {
  ExpressionPointer left = concatenation();
  while (is_symbol("+") || is_symbol("-")) {
    const std::string text = take().text;
    left = make_of(Kind::binary, text, std::move(left), concatenation());
  }
  return left;
}

ExpressionPointer ExpressionParser::concatenation() {
  ExpressionPointer left = product();
  while (take_symbol("~")) left = make_of(Kind::binary, "~", std::move(left), product());
  return left;
}

ExpressionPointer ExpressionParser::product() {
  ExpressionPointer left = unary(true);
  while (token().kind == Token::Kind::symbol && among(token().text, {"*", "/", "//", "%", "**"})) {
    const std::string text = take().text;
    if (text == "**") wrong("\"**\" is not among what chat templates may use here");
    left = make_of(Kind::binary, text, std::move(left), unary(true));
  }
  return left;
}

ExpressionPointer ExpressionParser::unary(bool with_filters) {
  const Deeper deeper(*this);
  ExpressionPointer made;
  if (is_symbol("-") || is_symbol("+")) {
    const std::string text = take().text;
    made = make_of(Kind::unary, text, unary(false));
  } else {
    made = primary();
  }
  made = with_members(std::move(made));
  return with_filters ? filtered(std::move(made)) : std::move(made);
}

ExpressionPointer ExpressionParser::constant(Value value) {
  ExpressionPointer made = make(Kind::constant);
  made->constant = std::move(value);
  take();
  return made;
}

ExpressionPointer ExpressionParser::primary() {
  const Token& t = token();
  switch (t.kind) {
    case Token::Kind::name:
      if (among(t.text, {"true", "True", "false", "False"}))
        return constant(Value(t.text[0] == 't' || t.text[0] == 'T'));
      if (among(t.text, {"none", "None"})) return constant(Value(Value::None()));
      {
        ExpressionPointer made = make(Kind::name, t.text);
        take();
        return made;
      }
    case Token::Kind::string: {
      std::string value = t.text;
      while (next_token().kind == Token::Kind::string) take(), value += token().text;
      return constant(Value(std::move(value)));
    }
    case Token::Kind::integer: {
      int64_t number = 0;
      if (std::from_chars(t.text.data(), t.text.data() + t.text.size(), number).ec != std::errc())
        wrong(concat("the number ", t.text, " is too large"));
      return constant(Value(number));
    }
    case Token::Kind::real: {
      double number = 0;
      if (std::from_chars(t.text.data(), t.text.data() + t.text.size(), number).ec != std::errc())
        wrong(concat("the number ", t.text, " is out of range"));
      return constant(Value(number));
    }
    default: break;
  }
  if (take_symbol("(")) return parenthesis();
  if (take_symbol("[")) return list();
  if (take_symbol("{")) return dict();
  unexpected("a value");
}

ExpressionPointer ExpressionParser::parenthesis() {
  if (is_symbol(")")) {
    ExpressionPointer made = make(Kind::tuple);
    take();
    return made;
  }
  ExpressionPointer made = tuple(true, true);
  need_symbol(")");
  return made;
}

ExpressionPointer ExpressionParser::list() {
  ExpressionPointer made = make(Kind::list);
  while (!take_symbol("]")) {
    if (!made->operands.empty()) {
      need_symbol(",");
      if (take_symbol("]")) break;
    }
    add(*made, expression());
  }
  return made;
}

ExpressionPointer ExpressionParser::dict() {
  ExpressionPointer made = make(Kind::dict);
  while (!take_symbol("}")) {
    if (!made->operands.empty()) {
      need_symbol(",");
      if (take_symbol("}")) break;
    }
    add(*made, expression());
    need_symbol(":");
    add(*made, expression());
  }
  return made;
}

ExpressionPointer ExpressionParser::with_members(ExpressionPointer value) {
  for (;;) {
    if (take_symbol(".")) {
      if (token().kind == Token::Kind::integer) {
        value = make_of(Kind::item, "", std::move(value), primary());
      } else {
        std::string name = need_name("a member's name");
        value = make_of(Kind::member, std::move(name), std::move(value));
      }
    } else if (take_symbol("[")) {
      value = item(std::move(value));
    } else if (is_symbol("(")) {
      ExpressionPointer call = make_of(Kind::call, "", std::move(value));
      arguments(*call);
      value = std::move(call);
    } else {
      return value;
    }
  }
}

// value[1], value["a"], value[1:], value[::-1]; the bracket is open.
ExpressionPointer ExpressionParser::item(ExpressionPointer value) {
  const auto part = [&]() -> ExpressionPointer { return is_symbol(":") || is_symbol("]") ? nullptr : expression(); };
  ExpressionPointer first = part();
  if (is_symbol("]")) {
    if (!first) unexpected("an index");
    take();
    return make_of(Kind::item, "", std::move(value), std::move(first));
  }
  if (!is_symbol(":")) unexpected("\"]\"");
  take();
  ExpressionPointer second = part(), third;
  if (take_symbol(":")) third = part();
  need_symbol("]");
  return make_of(Kind::slice, "", std::move(value), std::move(first), std::move(second), std::move(third));
}

// (a, b, name=c)
void ExpressionParser::arguments(Expression& of) {
  need_symbol("(");
  const size_t before = of.operands.size();
  while (!take_symbol(")")) {
    if (of.operands.size() > before) {
      need_symbol(",");
      if (take_symbol(")")) break;
    }
    if (is_symbol("*") || is_symbol("**")) wrong("arguments by \"*\" are not among what chat templates may use here");
    const bool by_name =
        token().kind == Token::Kind::name && next_token().kind == Token::Kind::symbol && next_token().text == "=";
    if (by_name) {
      of.keywords.push_back(take().text);
      take();
    } else if (!of.keywords.empty()) {
      wrong("an argument without a name comes behind one with a name");
    }
    add(of, expression());
  }
}

ExpressionPointer ExpressionParser::filtered(ExpressionPointer value) {
  for (;;) {
    if (take_symbol("|")) {
      std::string name = need_name("a filter's name");
      ExpressionPointer made = make_of(Kind::filter, std::move(name), std::move(value));
      if (is_symbol("(")) arguments(*made);
      value = std::move(made);
    } else if (take_name("is")) {
      value = tested(std::move(value));
    } else if (is_symbol("(")) {
      wrong("a call of what a filter gives is not among what chat templates may use here");
    } else {
      return value;
    }
  }
}

ExpressionPointer ExpressionParser::tested(ExpressionPointer value) {
  const bool negated = take_name("not");
  if (is_name("not")) unexpected("a test's name");
  std::string name = need_name("a test's name");
  ExpressionPointer made = make_of(Kind::test, std::move(name), std::move(value));
  const Token& t = token();
  if (is_symbol("(")) {
    arguments(*made);
  } else if ((t.kind == Token::Kind::name &&
              !among(t.text, {"else", "or", "and", "is", "if", "in", "not", "recursive"})) ||
             t.kind == Token::Kind::string || t.kind == Token::Kind::integer || t.kind == Token::Kind::real ||
             is_symbol("[") || is_symbol("{")) {
    add(*made, with_members(primary()));
  }
  return negated ? make_of(Kind::unary, "not", std::move(made)) : std::move(made);
}

}  // namespace llm::jinja
