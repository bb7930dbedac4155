#include "llm/serve/jinja_library.h"

#include <algorithm>

#include "llm/base/error.h"
#include "llm/text/utf8.h"

namespace llm::jinja {

const Value* Arguments::find(size_t position, std::string_view name) const {
  if (position < positional()) return &values_[position];
  for (size_t i = 0; i < keywords_.size(); ++i)
    if (keywords_[i] == name) return &values_[positional() + i];
  return nullptr;
}

const Value& Arguments::need(size_t position, std::string_view name) const {
  const Value* found = find(position, name);
  if (!found) fail("the argument \"", name, "\" is missing");
  return *found;
}

void Arguments::check(size_t most, std::initializer_list<std::string_view> names) const {
  if (positional() > most) fail("there are ", positional(), " arguments, ", most, " at most are taken");
  for (const std::string& keyword : keywords_)
    if (std::find(names.begin(), names.end(), keyword) == names.end())
      fail("the argument \"", keyword, "\" is not among what chat templates may use here");
}

Arguments Arguments::without_first(size_t count) const {
  return Arguments(std::vector<Value>(values_.begin() + static_cast<ptrdiff_t>(count), values_.end()), keywords_);
}

int64_t length_of(std::string_view text, Budget& budget) {
  budget.look_at_bytes(text.size());
  return std::count_if(text.begin(), text.end(), [](char c) { return !is_continuation(c); });
}

Value::Items items_of(const Value& value, Budget& budget) {
  Value::Items items;
  if (value.is_list()) {
    items = value.items();
  } else if (value.is_dict()) {
    for (const auto& [key, member] : value.members()) items.emplace_back(key), budget.make_bytes(key.size());
  } else if (value.is_string()) {
    budget.look_at_items(value.string().size());
    budget.make_bytes(value.string().size());
    std::string_view rest = value.string();
    while (!rest.empty()) {
      const size_t length = std::max<size_t>(1, utf8_length(rest));
      items.emplace_back(std::string(rest.substr(0, length)));
      rest.remove_prefix(length);
    }
  } else if (!value.is_undefined()) {
    fail(value.kind(), " has no items to go over");
  }
  budget.look_at_items(items.size());
  return items;
}

Value member_of(const Value& object, const std::string& name) {
  if (object.is_undefined()) {
    if (object.undefined_name()) fail("\"", *object.undefined_name(), "\" is undefined");
    fail("what \"", name, "\" is looked up in is undefined");
  }
  const Value* found = object.member(name);
  return found ? *found : Value(Value::Undefined{&name});
}

Value item_of(const Value& object, const Value& index, Budget& budget) {
  if (object.is_undefined()) {
    if (object.undefined_name()) fail("\"", *object.undefined_name(), "\" is undefined");
    fail("what an item is taken from is undefined");
  }
  if (object.is_dict()) {
    if (!index.is_string()) return {};
    budget.look_at_items(object.members().size());
    const Value* found = object.member(index.string());
    return found ? *found : Value();
  }
  if (!index.is_whole() || !(object.is_list() || object.is_string())) return {};
  const int64_t count =
      object.is_list() ? static_cast<int64_t>(object.items().size()) : length_of(object.string(), budget);
  const int64_t at = index.integer() < 0 ? index.integer() + count : index.integer();
  if (at < 0 || at >= count) return {};
  if (object.is_list()) return object.items()[static_cast<size_t>(at)];
  std::string_view rest = object.string();
  for (int64_t i = 0; i < at; ++i) rest.remove_prefix(std::max<size_t>(1, utf8_length(rest)));
  return Value(std::string(rest.substr(0, std::max<size_t>(1, utf8_length(rest)))));
}

Value slice_of(const Value& object, const Value* from, const Value* to, const Value* step, Budget& budget) {
  if (!object.is_list() && !object.is_string()) fail("a part of ", object.kind());
  for (const Value* number : {from, to, step})
    if (number && !number->is_whole()) fail("a part that begins or ends at ", number->kind());
  const int64_t by = step ? step->integer() : 1;
  if (by == 0) fail("a part by steps of 0");
  const Value::Items items = items_of(object, budget);
  const auto count = static_cast<int64_t>(items.size());
  // As Python does: counted from the end where negative, then brought to where there is something.
  const auto place = [&](const Value* number, int64_t otherwise) {
    if (!number) return otherwise;
    const int64_t at = number->integer() < 0 ? std::max(number->integer(), -count - 1) + count : number->integer();
    return by > 0 ? std::clamp<int64_t>(at, 0, count) : std::clamp<int64_t>(at, -1, count - 1);
  };
  const int64_t begin = place(from, by > 0 ? 0 : count - 1), end = place(to, by > 0 ? count : -1);
  Value::Items part;
  for (int64_t i = begin; by > 0 ? i < end : i > end;) {
    part.push_back(items[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, by, &i)) break;
  }
  if (object.is_list()) return Value(std::move(part), object.is_tuple());
  std::string text;
  for (const Value& character : part) text += character.string();
  budget.make_bytes(text.size());
  return Value(std::move(text));
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (container.is_string()) {
    if (!item.is_string()) fail("\"in\" looks for ", item.kind(), " in a string");
    budget.look_at_bytes(container.string().size());
    return container.string().find(item.string()) != std::string::npos;
  }
  if (container.is_dict()) {
    budget.look_at_items(container.members().size());
    return item.is_string() && container.member(item.string());
  }
  if (container.is_undefined()) return false;
  if (!container.is_list()) fail("\"in\" looks into ", container.kind());
  return std::any_of(container.items().begin(), container.items().end(),
                     [&](const Value& other) { return equal(other, item, budget); });
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget) {
  const auto other = [&]() -> const Value& { return arguments.need(0, "other"); };
  static constexpr std::string_view kOfTwo[] = {"equalto", "eq", "==", "ne",       "!=", "in", "gt", "greaterthan", ">",
                                                "ge",      ">=", "lt", "lessthan", "<",  "le", "<=", "divisibleby"};
  const bool of_two = std::find(std::begin(kOfTwo), std::end(kOfTwo), name) != std::end(kOfTwo);
  arguments.check(of_two ? 1 : 0, {"other"});
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is_none();
  if (name == "string") return value.is_string();
  if (name == "number") return value.is_number();
  if (name == "integer") return value.is_integer();
  if (name == "float") return value.is_real();
  if (name == "boolean") return value.is_boolean();
  if (name == "true") return value.is_boolean() && is_true(value);
  if (name == "false") return value.is_boolean() && !is_true(value);
  if (name == "mapping") return value.is_dict();
  if (name == "iterable" || name == "sequence")
    return value.is_list() || value.is_dict() || value.is_string() || value.is_undefined();
  if (name == "callable") return value.is_function();
  if (name == "equalto" || name == "eq" || name == "==") return equal(value, other(), budget);
  if (name == "ne" || name == "!=") return !equal(value, other(), budget);
  if (name == "in") return contains(other(), value, budget);
  if (name == "gt" || name == "greaterthan" || name == ">") return compare(value, other(), budget) > 0;
  if (name == "ge" || name == ">=") return compare(value, other(), budget) >= 0;
  if (name == "lt" || name == "lessthan" || name == "<") return compare(value, other(), budget) < 0;
  if (name == "le" || name == "<=") return compare(value, other(), budget) <= 0;
  if (name == "odd" || name == "even" || name == "divisibleby") {
    const Value by = of_two ? other() : Value(int64_t{2});
    if (!value.is_whole() || !by.is_whole() || by.integer() == 0) fail("the test ", name, " of ", value.kind());
    const bool divides = by.integer() == -1 || value.integer() % by.integer() == 0;
    return name == "odd" ? !divides : divides;
  }
  fail("the test \"is ", name, "\" is not among what chat templates may use here");
}

}  // namespace llm::jinja
