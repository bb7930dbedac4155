// The statements of a chat template: the tags of jinja2/parser.py that chat templates use.
#include <utility>

#include "llm/base/error.h"
#include "llm/serve/jinja_expressions.h"

namespace llm::jinja {
namespace {

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;
  Statements run() { return statements({}); }

 private:
  void need_end() {
    if (token().kind != Token::Kind::block_end) unexpected("%}");
    take();
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

  int loops_ = 0;  // that enclose what is read now
};

}  // namespace

Statements parse(std::string_view source) { return Parser(tokens_of(source)).run(); }

}  // namespace llm::jinja
