#include <algorithm>
#include <deque>
#include <map>

#include "llm/base/error.h"
#include "llm/serve/jinja.h"
#include "llm/serve/jinja_library.h"
#include "llm/serve/jinja_operators.h"

namespace llm::jinja {
namespace {

using Variables = std::map<std::string, Value, std::less<>>;

const char* const kFunctions[] = {"raise_exception", "strftime_now", "range", "namespace", "dict"};

// An error with the line where it happened.
struct Located : Error {
  using Error::Error;
};

class Renderer {
 public:
  Renderer(Variables variables, const Template::TimeText& time_text, const Limits& limits)
      : time_text_(time_text), budget_(limits) {
    scopes_.push_back({std::move(variables), 0});
    scopes_.push_back({{}, 1});
  }

  std::string run(const Statements& statements) {
    run_all(statements);
    return std::move(out_);
  }

 private:
  enum class Flow { on, next, leave };  // on; to the loop's next item; out of the loop
  struct Scope {
    Variables variables;
    size_t enclosing;  // how many scopes, from the first one on, are seen behind this one
  };

  // Counts how deep the renderer is in itself.
  class Deeper {
   public:
    explicit Deeper(Renderer& renderer) : renderer_(renderer) {
      if (++renderer_.depth_ > 2 * Limits::depth) fail("macros call each other too deeply");
    }
    ~Deeper() { --renderer_.depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    Renderer& renderer_;
  };

  const Value* find(std::string_view name) const {
    for (size_t seen = scopes_.size(); seen > 0; seen = scopes_[seen - 1].enclosing) {
      const auto found = scopes_[seen - 1].variables.find(name);
      if (found != scopes_[seen - 1].variables.end()) return &found->second;
    }
    return nullptr;
  }
  void set(const std::string& name, Value value) { scopes_.back().variables.insert_or_assign(name, std::move(value)); }
  void print(const std::string& text) {
    budget_.make_bytes(text.size());
    out_ += text;
  }

  Flow run_all(const Statements& statements) {
    const Deeper deeper(*this);
    for (const Statement& statement : statements) {
      const Flow flow = run_located(statement);
      if (flow != Flow::on) return flow;
    }
    return Flow::on;
  }

  Flow run_located(const Statement& statement) {
    try {
      return run_one(statement);
    } catch (const Located&) {
      throw;
    } catch (const Raised&) {
      throw;
    } catch (const Error& e) {
      throw Located(concat("line ", statement.line, ": ", e.what()));
    }
  }

  Flow run_one(const Statement& statement) {
    budget_.step();
    switch (statement.kind) {
      case Statement::Kind::text: print(statement.text); break;
      case Statement::Kind::print: print(text_of(evaluate(*statement.expression), budget_)); break;
      case Statement::Kind::condition:
        return run_all(is_true(evaluate(*statement.expression)) ? statement.body : statement.otherwise);
      case Statement::Kind::loop: return loop(statement);
      case Statement::Kind::assignment: assign(statement.targets, evaluate(*statement.expression)); break;
      case Statement::Kind::member: set_member(statement); break;
      case Statement::Kind::capture: {
        std::string before = std::exchange(out_, "");
        scopes_.push_back({{}, scopes_.size()});
        const Flow flow = run_all(statement.body);
        scopes_.pop_back();
        std::swap(before, out_);
        if (flow != Flow::on) return flow;
        set(statement.targets[0], Value(std::move(before)));
        break;
      }
      case Statement::Kind::macro:
        if (scopes_.size() != 2) fail("the macro ", statement.text, " is inside a loop or another macro");
        set(statement.text, Value(Value::Function{&statement}));
        break;
      case Statement::Kind::group: return run_all(statement.body);
      case Statement::Kind::break_loop: return Flow::leave;
      case Statement::Kind::continue_loop: return Flow::next;
    }
    return Flow::on;
  }

  void assign(const std::vector<std::string>& targets, const Value& value) {
    if (targets.size() == 1) return set(targets[0], value);
    const Value::Items parts = items_of(value, budget_);
    if (parts.size() != targets.size()) fail("there are ", parts.size(), " values for ", targets.size(), " variables");
    for (size_t i = 0; i < parts.size(); ++i) set(targets[i], parts[i]);
  }

  void set_member(const Statement& statement) {
    const Value* space = find(statement.targets[0]);
    if (!space || !space->is_namespace())
      fail("\"", statement.targets[0], "\" is no namespace(), so its members cannot be set");
    const Value held = *space;
    Value value = evaluate(*statement.expression);
    if (value.is_namespace()) fail("a namespace cannot be inside another value");
    Value::Members& members = held.namespace_members();
    budget_.look_at_items(members.size());
    const auto found = std::find_if(members.begin(), members.end(),
                                    [&](const auto& member) { return member.first == statement.text; });
    if (found == members.end())
      members.emplace_back(statement.text, std::move(value));
    else
      found->second = std::move(value);
  }

  Flow loop(const Statement& statement) {
    Value::Items items = items_of(evaluate(*statement.expression), budget_);
    if (statement.condition) {
      scopes_.push_back({{}, scopes_.size()});
      std::erase_if(items, [&](const Value& item) {
        assign(statement.targets, item);
        return !is_true(evaluate(*statement.condition));
      });
      scopes_.pop_back();
    }
    const auto count = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < count; ++i) {
      budget_.step();
      const auto at = [&](int64_t index) {
        return index >= 0 && index < count ? items[static_cast<size_t>(index)] : Value();
      };
      scopes_.push_back({{}, scopes_.size()});
      Value::Members loop = {{"index", i + 1},        {"index0", i},
                             {"revindex", count - i}, {"revindex0", count - i - 1},
                             {"first", i == 0},       {"last", i + 1 == count},
                             {"length", count},       {"depth", int64_t{1}},
                             {"depth0", int64_t{0}}};
      if (!at(i - 1).is_namespace()) loop.emplace_back("previtem", at(i - 1));
      if (!at(i + 1).is_namespace()) loop.emplace_back("nextitem", at(i + 1));
      set("loop", Value(std::move(loop)));
      assign(statement.targets, at(i));
      const Flow flow = run_all(statement.body);
      scopes_.pop_back();
      if (flow == Flow::leave) break;
    }
    return items.empty() ? run_all(statement.otherwise) : Flow::on;
  }

  Value evaluate(const Expression& e) {
    const Deeper deeper(*this);
    budget_.step();
    const auto operand = [&](size_t i) { return evaluate(*e.operands[i]); };
    switch (e.kind) {
      case Expression::Kind::constant: return e.constant;
      case Expression::Kind::name: return variable(e.text);
      case Expression::Kind::list:
      case Expression::Kind::tuple: {
        Value::Items items;
        for (const ExpressionPointer& item : e.operands) items.push_back(evaluate(*item));
        return Value(std::move(items), e.kind == Expression::Kind::tuple);
      }
      case Expression::Kind::dict: return dict(e);
      case Expression::Kind::member: {
        const Value object = operand(0);
        if (object.is_namespace() || !is_method(object, e.text)) return member_of(object, e.text);
        fail("the method ", e.text, " is not called");
      }
      case Expression::Kind::item: {
        const Value object = operand(0);
        return item_of(object, operand(1), budget_);
      }
      case Expression::Kind::slice: return slice(e);
      case Expression::Kind::call: return call(e);
      case Expression::Kind::filter: {
        const Value value = operand(0);
        return apply_filter(e.text, value, arguments_of(e), budget_);
      }
      case Expression::Kind::test: {
        const Value value = operand(0);
        return Value(apply_test(e.text, value, arguments_of(e), budget_));
      }
      case Expression::Kind::unary: return apply_unary(e.text, operand(0));
      case Expression::Kind::binary: {
        const Value left = operand(0);
        if (e.text == "and") return is_true(left) ? operand(1) : left;
        if (e.text == "or") return is_true(left) ? left : operand(1);
        return apply_binary(e.text, left, operand(1), budget_);
      }
      case Expression::Kind::choice:
        if (is_true(operand(1))) return operand(0);
        return e.operands[2] ? operand(2) : Value();
    }
    return {};
  }

  Value variable(const std::string& name) const {
    if (const Value* found = find(name)) return *found;
    if (std::find(std::begin(kFunctions), std::end(kFunctions), name) != std::end(kFunctions))
      return Value(Value::Function{nullptr});
    return Value(Value::Undefined{&name});
  }

  Value dict(const Expression& e) {
    Value::Members members;
    for (size_t i = 0; i < e.operands.size(); i += 2) {
      const Value key = evaluate(*e.operands[i]);
      if (!key.is_string()) fail("a dict's key is ", key.kind(), ", not a string");
      members.emplace_back(key.string(), evaluate(*e.operands[i + 1]));
    }
    return with_each_key_once(std::move(members));
  }

  // Of several members of one key the last counts, in the place of the first.
  Value with_each_key_once(Value::Members members) {
    Value::Members once;
    for (auto& [key, value] : members) {
      budget_.look_at_items(once.size());
      const auto same =
          std::find_if(once.begin(), once.end(), [&key = key](const auto& member) { return member.first == key; });
      if (same == once.end())
        once.emplace_back(key, std::move(value));
      else
        same->second = std::move(value);
    }
    return Value(std::move(once));
  }

  Value slice(const Expression& e) {
    const Value object = evaluate(*e.operands[0]);
    Value parts[3];
    const Value* given[3] = {};
    for (size_t i = 0; i < 3; ++i)
      if (e.operands[i + 1]) {
        parts[i] = evaluate(*e.operands[i + 1]);
        if (!parts[i].is_none()) given[i] = &parts[i];
      }
    return slice_of(object, given[0], given[1], given[2], budget_);
  }

  // What comes behind the first operand.
  Arguments arguments_of(const Expression& e) {
    std::vector<Value> values;
    for (size_t i = 1; i < e.operands.size(); ++i) values.push_back(evaluate(*e.operands[i]));
    return Arguments(std::move(values), e.keywords);
  }

  Value call(const Expression& e) {
    const Expression& callee = *e.operands[0];
    if (callee.kind == Expression::Kind::member) {
      const Value object = evaluate(*callee.operands[0]);
      if (object.is_undefined() && object.undefined_name()) fail("\"", *object.undefined_name(), "\" is undefined");
      return call_method(object, callee.text, arguments_of(e), budget_);
    }
    if (callee.kind != Expression::Kind::name) fail("only functions, macros and methods can be called");
    const Value function = variable(callee.text);
    if (!function.is_function())
      fail("\"", callee.text, "\" is no function that chat templates may call here, nor a macro");
    const Arguments arguments = arguments_of(e);
    return function.macro() ? call_macro(*function.macro(), arguments) : call_function(callee.text, arguments);
  }

  Value call_macro(const Statement& macro, const Arguments& arguments) {
    if (arguments.positional() > macro.targets.size())
      fail("the macro ", macro.text, " takes ", macro.targets.size(), " arguments, not ", arguments.positional());
    for (const std::string& keyword : arguments.keywords())
      if (std::find(macro.targets.begin(), macro.targets.end(), keyword) == macro.targets.end())
        fail("the macro ", macro.text, " has no parameter ", keyword);
    // A macro sees its parameters and the template's outermost variables.
    scopes_.push_back({{}, 2});
    for (size_t i = 0; i < macro.targets.size(); ++i) {
      const size_t with_default = macro.targets.size() - macro.defaults.size();
      const Value* given = arguments.find(i, macro.targets[i]);
      Value value = given               ? *given
                    : i >= with_default ? evaluate(*macro.defaults[i - with_default])
                                        : Value(Value::Undefined{&macro.targets[i]});
      set(macro.targets[i], std::move(value));
    }
    std::string before = std::exchange(out_, "");
    run_all(macro.body);
    scopes_.pop_back();
    std::swap(before, out_);
    return Value(std::move(before));
  }

  Value call_function(const std::string& name, const Arguments& arguments) {
    if (name == "raise_exception") {
      arguments.check(1, {"message"});
      throw Raised(text_of(arguments.need(0, "message"), budget_));
    }
    if (name == "strftime_now") {
      arguments.check(1, {"format"});
      const Value& format = arguments.need(0, "format");
      if (!format.is_string()) fail("strftime_now takes a string, not ", format.kind());
      std::string text = time_text_(format.string());
      budget_.make_bytes(text.size());
      return Value(std::move(text));
    }
    if (name == "range") return range(arguments);
    if (arguments.positional()) fail(name, "() takes arguments by name here");
    Value::Members members;
    for (size_t i = 0; i < arguments.size(); ++i) members.emplace_back(arguments.keywords()[i], arguments[i]);
    return name == "namespace" ? Value::new_namespace(std::move(members)) : with_each_key_once(std::move(members));
  }

  Value range(const Arguments& arguments) {
    arguments.check(3);
    int64_t numbers[3] = {0, 0, 1};
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (!arguments[i].is_whole()) fail("range() takes whole numbers, not ", arguments[i].kind());
      numbers[i] = arguments[i].integer();
    }
    if (!arguments.size()) fail("range() takes one to three numbers");
    if (arguments.size() == 1) numbers[1] = std::exchange(numbers[0], 0);
    if (numbers[2] == 0) fail("range() with a step of 0");
    constexpr size_t kMost = 100'000;  // as jinja2's sandbox
    Value::Items items;
    for (int64_t i = numbers[0]; numbers[2] > 0 ? i < numbers[1] : i > numbers[1];) {
      budget_.step();
      if (items.size() == kMost) fail("range() of more than ", kMost, " numbers");
      items.emplace_back(i);
      if (__builtin_add_overflow(i, numbers[2], &i)) break;
    }
    return Value(std::move(items));
  }

  const Template::TimeText& time_text_;
  Budget budget_;
  std::deque<Scope> scopes_;  // the caller's variables, the template's, and those of loops and macros that are running
  std::string out_;
  int depth_ = 0;
};

}  // namespace

Template::Template(std::string_view source) : statements_(parse(source)) {}

std::string Template::render(std::vector<std::pair<std::string, Value>> variables, const TimeText& time_text,
                             const Limits& limits) const {
  Variables all;
  for (auto& [name, value] : variables) all.insert_or_assign(std::move(name), std::move(value));
  return Renderer(std::move(all), time_text, limits).run(statements_);
}

}  // namespace llm::jinja
