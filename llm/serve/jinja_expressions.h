// Reads the expressions of a chat template: the part of jinja2/parser.py's grammar that chat templates use.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "llm/serve/jinja_lexer.h"
#include "llm/serve/jinja_syntax.h"

namespace llm::jinja {

// The tokens, one after another, and what is wrong with them.
class TokenReader {
 public:
  using Names = std::initializer_list<std::string_view>;
  explicit TokenReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  // Counts how deep the parser is in itself.
  class Deeper {
   public:
    explicit Deeper(TokenReader& reader) : reader_(reader) {
      if (++reader_.depth_ > Limits::depth) reader_.wrong("the template is nested too deeply");
    }
    ~Deeper() { --reader_.depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    TokenReader& reader_;
  };

  static bool among(std::string_view text, Names names);
  [[noreturn]] void wrong(const std::string& what) const;
  [[noreturn]] void unexpected(std::string_view wanted) const;

  const Token& token() const { return tokens_[at_]; }
  const Token& next_token() const;
  Token take();  // the last token, which is the end, stays
  bool is_name(std::string_view text) const { return token().kind == Token::Kind::name && token().text == text; }
  bool is_symbol(std::string_view text) const { return token().kind == Token::Kind::symbol && token().text == text; }
  bool take_name(std::string_view text) { return is_name(text) && (take(), true); }
  bool take_symbol(std::string_view text) { return is_symbol(text) && (take(), true); }
  void need_symbol(std::string_view text);
  std::string need_name(std::string_view what = "a name");

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

class ExpressionParser : public TokenReader {
 public:
  using TokenReader::TokenReader;

 protected:
  // a if b else c
  ExpressionPointer expression();
  // The same without "if".
  ExpressionPointer disjunction();
  // Expressions separated by commas are a tuple, one alone is itself.
  ExpressionPointer tuple(bool with_choice = true, bool in_parentheses = false);

 private:
  ExpressionPointer make(Expression::Kind kind, std::string text = "") const;
  void add(Expression& to, ExpressionPointer operand) const;
  template <class... Operands>
  ExpressionPointer make_of(Expression::Kind kind, std::string text, Operands... operands) const;

  ExpressionPointer conjunction();
  ExpressionPointer negation();
  ExpressionPointer comparison();
  std::string comparison_symbol();
  ExpressionPointer sum();
  ExpressionPointer concatenation();
  ExpressionPointer product();
  ExpressionPointer unary(bool with_filters);
  ExpressionPointer constant(Value value);
  ExpressionPointer primary();
  ExpressionPointer parenthesis();  // "(" is taken, and so on
  ExpressionPointer list();
  ExpressionPointer dict();
  ExpressionPointer with_members(ExpressionPointer value);
  ExpressionPointer item(ExpressionPointer value);
  void arguments(Expression& of);
  ExpressionPointer filtered(ExpressionPointer value);
  ExpressionPointer tested(ExpressionPointer value);
};

}  // namespace llm::jinja
