// The values that a chat template computes with, as Python has them: what they print, when they are equal, and what
// working with them costs.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "llm/base/json.h"

namespace llm::jinja {

struct Statement;

// What rendering a template may use. A template comes from a model's files, so it may be made to take forever.
struct Limits {
  int64_t steps = 10'000'000;  // evaluations of an expression, and 16 bytes or one item that an operation looks at
  int64_t bytes = 64 << 20;    // of all strings that are made, the output among them
  static constexpr int depth = 200;  // of values inside each other, of a template's nesting, and of macros' calls
};

// What is left of the limits. Throws Error when it is used up.
class Budget {
 public:
  explicit Budget(const Limits& limits) : limits_(limits) {}
  void step() { use(1); }
  void look_at_items(size_t items) { use(static_cast<int64_t>(items)); }
  void look_at_bytes(size_t bytes) { use(1 + static_cast<int64_t>(bytes / 16)); }
  void make_bytes(size_t bytes);

 private:
  void use(int64_t steps);
  Limits limits_;
};

class Value {
 public:
  // Of a name or a member that is not there; `name` (or null) outlives the rendering.
  struct Undefined {
    const std::string* name;
  };
  struct None {};
  struct List;
  struct Dict;
  struct Namespace;
  // A macro, or, with none, a function of this library.
  struct Function {
    const Statement* macro;
  };
  using Items = std::vector<Value>;
  using Members = std::vector<std::pair<std::string, Value>>;

  Value() : held_(Undefined{nullptr}) {}
  Value(Undefined undefined) : held_(undefined) {}
  Value(None none) : held_(none) {}
  Value(bool truth) : held_(truth) {}
  Value(int64_t number) : held_(number) {}
  Value(double number) : held_(number) {}
  Value(std::string text) : held_(std::make_shared<const std::string>(std::move(text))) {}
  Value(const char* text) : Value(std::string(text)) {}
  Value(Function function) : held_(function) {}
  // Throws Error for values that are nested too deeply.
  Value(Items items, bool tuple = false);
  Value(Members members);
  explicit Value(const Json& json);
  // What `namespace()` makes: members that `set` may change.
  static Value new_namespace(Members members);

  bool is_undefined() const { return std::holds_alternative<Undefined>(held_); }
  bool is_none() const { return std::holds_alternative<None>(held_); }
  bool is_boolean() const { return std::holds_alternative<bool>(held_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(held_); }
  bool is_real() const { return std::holds_alternative<double>(held_); }
  bool is_number() const { return is_boolean() || is_integer() || is_real(); }  // in Python, booleans are
  bool is_string() const { return std::holds_alternative<std::shared_ptr<const std::string>>(held_); }
  bool is_list() const { return std::holds_alternative<std::shared_ptr<const List>>(held_); }
  bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(held_); }
  bool is_namespace() const { return std::holds_alternative<std::shared_ptr<Namespace>>(held_); }
  bool is_function() const { return std::holds_alternative<Function>(held_); }

  const std::string& string() const { return *std::get<std::shared_ptr<const std::string>>(held_); }
  const Items& items() const;
  bool is_tuple() const;           // a list that is printed as (1, 2) and equals no list
  const Members& members() const;  // of a dict or a namespace
  Members& namespace_members() const;
  const Statement* macro() const { return std::get<Function>(held_).macro; }
  const std::string* undefined_name() const { return std::get<Undefined>(held_).name; }
  // The member of a dict or a namespace; null: it has none of this name.
  const Value* member(std::string_view name) const;
  // true is 1. Only of numbers.
  double real() const;
  int64_t integer() const;  // of integers and booleans
  bool is_whole() const { return is_boolean() || is_integer(); }

  int depth() const;
  // "a string", for messages.
  const char* kind() const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, Function>
      held_;
};

struct Value::List {
  Items items;
  int depth;
  bool tuple;
};
struct Value::Dict {
  Members members;
  int depth;
};
struct Value::Namespace {
  Members members;
};

bool is_true(const Value& value);
bool equal(const Value& a, const Value& b, Budget& budget);
// Less than 0, 0, or more: of two numbers, strings or lists. Throws Error for anything else.
int compare(const Value& a, const Value& b, Budget& budget);

// What `{{ value }}` prints: Python's str().
std::string text_of(const Value& value, Budget& budget);

struct JsonStyle {
  int indent = -1;  // -1: on one line
  bool sort_keys = false, ascii = false;
  std::string between_items = ", ", after_key = ": ";
};
// Python's json.dumps(). Throws Error for what JSON has no value for.
std::string json_of(const Value& value, const JsonStyle& style, Budget& budget);

}  // namespace llm::jinja
