// The grammar is Jinja's (jinja2/parser.py), of which chat templates use a part.
#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "llm/base/error.h"
#include "llm/serve/jinja_lexer.h"
#include "llm/serve/jinja_syntax.h"

namespace llm::jinja {
namespace {

using Kind = Expression::Kind;
using Names = std::initializer_list<std::string_view>;

bool among(std::string_view text, Names names) { return std::find(names.begin(), names.end(), text) != names.end(); }

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Statements run() { return statements({}); }

 private:
  // Counts how deep the parser is in itself.
  class Deeper {
   public:
    explicit Deeper(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > Limits::depth) parser_.wrong("the template is nested too deeply");
    }
    ~Deeper() { --parser_.depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    Parser& parser_;
  };

  [[noreturn]] void wrong(const std::string& what) const { fail("line ", token().line, ": ", what); }
  [[noreturn]] void unexpected(std::string_view wanted) const {
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

  const Token& token() const { return tokens_[at_]; }
  const Token& next_token() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_[at_]; }
  bool is_name(std::string_view text) const { return token().kind == Token::Kind::name && token().text == text; }
  bool is_symbol(std::string_view text) const { return token().kind == Token::Kind::symbol && token().text == text; }
  bool take_name(std::string_view text) { return is_name(text) && (take(), true); }
  bool take_symbol(std::string_view text) { return is_symbol(text) && (take(), true); }
  void need_symbol(std::string_view text) {
    if (!take_symbol(text)) unexpected(concat("\"", text, "\""));
  }
  std::string need_name(std::string_view what = "a name") {
    if (token().kind != Token::Kind::name) unexpected(what);
    return take().text;
  }
  void need_end() {
    if (token().kind != Token::Kind::block_end) unexpected("%}");
    take();
  }

  ExpressionPointer make(Kind kind, std::string text = "") const {
    return std::make_unique<Expression>(Expression{kind, token().line, 1, std::move(text), {}, {}, {}});
  }
  void add(Expression& to, ExpressionPointer operand) const {
    if (operand) to.depth = std::max(to.depth, operand->depth + 1);
    if (to.depth > Limits::depth) wrong("an expression is nested too deeply");
    to.operands.push_back(std::move(operand));
  }
  template <class... Operands>
  ExpressionPointer make_of(Kind kind, std::string text, Operands... operands) const {
    ExpressionPointer made = make(kind, std::move(text));
    (add(*made, std::move(operands)), ...);
    return made;
  }

  // Up to a block that begins with one of these names, which is left to the caller; of none: to the end.
  Statements statements(Names ends) {
    const Deeper deeper(*this);
    Statements all;
    for (;;) {
      Token t = token();
      if (t.kind == Token::Kind::end) {
        if (ends.size()) wrong(concat("{% ", *ends.begin(), " %} is missing"));
        return all;
      }
      take();
      if (t.kind == Token::Kind::text) {
        all.push_back(statement(Statement::Kind::text, t.line, std::move(t.text)));
      } else if (t.kind == Token::Kind::print_begin) {
        Statement print = statement(Statement::Kind::print, t.line);
        print.expression = tuple();
        if (token().kind != Token::Kind::print_end) unexpected("}}");
        take();
        all.push_back(std::move(print));
      } else {
        if (token().kind != Token::Kind::name) unexpected("a tag's name");
        if (among(token().text, ends)) return all;
        all.push_back(block());
      }
    }
  }

  static Statement statement(Statement::Kind kind, int line, std::string text = "") {
    Statement made;
    made.kind = kind, made.line = line, made.text = std::move(text);
    return made;
  }

  Statement block() {
    const int line = token().line;
    const std::string name = take().text;
    if (name == "if") return condition(line);
    if (name == "for") return loop(line);
    if (name == "set") return assignment(line);
    if (name == "macro") return macro(line);
    if (name == "generation") {
      Statement group = statement(Statement::Kind::group, line);
      need_end();
      group.body = statements({"endgeneration"});
      take(), need_end();
      return group;
    }
    if (name == "break" || name == "continue") {
      if (!loops_) fail("line ", line, ": {% ", name, " %} outside a loop");
      need_end();
      return statement(name == "break" ? Statement::Kind::break_loop : Statement::Kind::continue_loop, line);
    }
    if (name.starts_with("end") || name == "else" || name == "elif")
      fail("line ", line, ": {% ", name, " %} without a beginning");
    fail("line ", line, ": the tag {% ", name,
         " %} is not among those that chat templates may use here: if, for, set, macro, generation, break, continue");
  }

  // {% if a %} ... {% elif b %} ... {% else %} ... {% endif %}
  Statement condition(int line) {
    const Deeper deeper(*this);
    Statement made = statement(Statement::Kind::condition, line);
    made.expression = tuple(false);
    need_end();
    made.body = statements({"endif", "else", "elif"});
    const int next = token().line;
    const std::string name = take().text;
    if (name == "elif") {
      made.otherwise.push_back(condition(next));
      return made;
    }
    need_end();
    if (name == "else") {
      made.otherwise = statements({"endif"});
      take(), need_end();
    }
    return made;
  }

  Statement loop(int line) {
    Statement made = statement(Statement::Kind::loop, line);
    made.targets = targets();
    if (!take_name("in")) unexpected("\"in\"");
    made.expression = tuple(false);
    if (take_name("if")) made.condition = expression();
    if (is_name("recursive")) wrong("a recursive loop is not among what chat templates may use here");
    need_end();
    ++loops_;
    made.body = statements({"endfor", "else"});
    --loops_;
    const bool otherwise = is_name("else");
    take(), need_end();
    if (otherwise) {
      made.otherwise = statements({"endfor"});
      take(), need_end();
    }
    return made;
  }

  std::vector<std::string> targets() {
    std::vector<std::string> names;
    const bool parentheses = take_symbol("(");
    do {
      if (!names.empty() && token().kind != Token::Kind::name) break;  // "a," with nothing behind it
      names.push_back(need_name("a variable's name"));
      if (among(names.back(), {"true", "false", "none", "True", "False", "None", "loop"}))
        wrong(concat("\"", names.back(), "\" cannot be set"));
    } while (take_symbol(","));
    if (parentheses) need_symbol(")");
    return names;
  }

  Statement assignment(int line) {
    Statement made = statement(Statement::Kind::assignment, line);
    if (next_token().kind == Token::Kind::symbol && next_token().text == ".") {
      made.kind = Statement::Kind::member;
      made.targets = {need_name()};
      take();
      made.text = need_name();
      need_symbol("=");
      made.expression = tuple();
      need_end();
      return made;
    }
    made.targets = targets();
    if (take_symbol("=")) {
      made.expression = tuple();
      need_end();
      return made;
    }
    if (is_symbol("|")) wrong("{% set ... | filter %} is not among what chat templates may use here");
    made.kind = Statement::Kind::capture;
    if (made.targets.size() != 1) wrong("{% set %} of a block sets one variable");
    need_end();
    made.body = statements({"endset"});
    take(), need_end();
    return made;
  }

  Statement macro(int line) {
    Statement made = statement(Statement::Kind::macro, line, need_name("the macro's name"));
    need_symbol("(");
    while (!take_symbol(")")) {
      if (!made.targets.empty()) need_symbol(",");
      if (take_symbol(")")) break;
      made.targets.push_back(need_name("a parameter's name"));
      if (take_symbol("="))
        made.defaults.push_back(expression());
      else if (!made.defaults.empty())
        wrong("a parameter without a default comes behind one with a default");
    }
    need_end();
    const int loops = std::exchange(loops_, 0);
    made.body = statements({"endmacro"});
    loops_ = loops;
    take(), need_end();
    return made;
  }

  // Expressions separated by commas are a tuple, one alone is itself.
  ExpressionPointer tuple(bool with_choice = true, bool in_parentheses = false) {
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

  // a if b else c
  ExpressionPointer expression() {
    const Deeper deeper(*this);
    ExpressionPointer value = disjunction();
    while (take_name("if")) {
      ExpressionPointer when = disjunction();
      ExpressionPointer otherwise = take_name("else") ? expression() : nullptr;
      value = make_of(Kind::choice, "", std::move(value), std::move(when), std::move(otherwise));
    }
    return value;
  }

  ExpressionPointer disjunction() {
    ExpressionPointer left = conjunction();
    while (take_name("or")) left = make_of(Kind::binary, "or", std::move(left), conjunction());
    return left;
  }

  ExpressionPointer conjunction() {
    ExpressionPointer left = negation();
    while (take_name("and")) left = make_of(Kind::binary, "and", std::move(left), negation());
    return left;
  }

  ExpressionPointer negation() {
    const Deeper deeper(*this);
    return take_name("not") ? make_of(Kind::unary, "not", negation()) : comparison();
  }

  ExpressionPointer comparison() {
    ExpressionPointer left = sum();
    const std::string text = comparison_symbol();
    if (text.empty()) return left;
    ExpressionPointer made = make_of(Kind::binary, text, std::move(left), sum());
    if (!comparison_symbol().empty()) wrong("a chain of comparisons is not among what chat templates may use here");
    return made;
  }

  std::string comparison_symbol() {
    if (token().kind == Token::Kind::symbol && among(token().text, {"==", "!=", "<", "<=", ">", ">="}))
      return take().text;
    if (take_name("in")) return "in";
    if (is_name("not") && next_token().kind == Token::Kind::name && next_token().text == "in")
      return take(), take(), "not in";
    return "";
  }

  ExpressionPointer sum() {
    ExpressionPointer left = concatenation();
    while (is_symbol("+") || is_symbol("-")) {
      const std::string text = take().text;
      left = make_of(Kind::binary, text, std::move(left), concatenation());
    }
    return left;
  }

  ExpressionPointer concatenation() {
    ExpressionPointer left = product();
    while (take_symbol("~")) left = make_of(Kind::binary, "~", std::move(left), product());
    return left;
  }

  ExpressionPointer product() {
    ExpressionPointer left = unary(true);
    while (token().kind == Token::Kind::symbol && among(token().text, {"*", "/", "//", "%", "**"})) {
      const std::string text = take().text;
      if (text == "**") wrong("\"**\" is not among what chat templates may use here");
      left = make_of(Kind::binary, text, std::move(left), unary(true));
    }
    return left;
  }

  ExpressionPointer unary(bool with_filters) {
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

  ExpressionPointer constant(Value value) {
    ExpressionPointer made = make(Kind::constant);
    made->constant = std::move(value);
    take();
    return made;
  }

  ExpressionPointer primary() {
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
    if (take_symbol("(")) {
      if (is_symbol(")")) {
        ExpressionPointer made = make(Kind::tuple);
        take();
        return made;
      }
      ExpressionPointer made = tuple(true, true);
      need_symbol(")");
      return made;
    }
    if (take_symbol("[")) {
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
    if (take_symbol("{")) {
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
    unexpected("a value");
  }

  ExpressionPointer with_members(ExpressionPointer value) {
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
  ExpressionPointer item(ExpressionPointer value) {
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
  void arguments(Expression& of) {
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

  ExpressionPointer filtered(ExpressionPointer value) {
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

  ExpressionPointer tested(ExpressionPointer value) {
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

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;  // that enclose what is read now
};

}  // namespace

Statements parse(std::string_view source) { return Parser(tokens_of(source)).run(); }

}  // namespace llm::jinja
