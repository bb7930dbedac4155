// What chat templates may call: filters, tests, and the methods of strings and dicts.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llm/serve/jinja_value.h"

namespace llm::jinja {

// The arguments of a call, in their order, those with a name last.
class Arguments {
 public:
  Arguments(std::vector<Value> values, const std::vector<std::string>& keywords)
      : values_(std::move(values)), keywords_(keywords) {}

  size_t size() const { return values_.size(); }
  size_t positional() const { return values_.size() - keywords_.size(); }
  const std::vector<std::string>& keywords() const { return keywords_; }
  const Value& operator[](size_t i) const { return values_[i]; }
  // The argument at this position or of this name; null: it was not given.
  const Value* find(size_t position, std::string_view name) const;
  const Value& need(size_t position, std::string_view name) const;
  // Throws Error unless there are at most so many, and only these have names.
  void check(size_t most, std::initializer_list<std::string_view> names = {}) const;
  Arguments without_first(size_t count) const;

 private:
  std::vector<Value> values_;
  const std::vector<std::string>& keywords_;
};

// Each throws Error for a name that it does not know, and for values that it cannot take.
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget);
Value call_method(const Value& object, const std::string& name, const Arguments& arguments, Budget& budget);
// Whether object.name, without a call, would be a method in Python.
bool is_method(const Value& object, std::string_view name);

// object.name and object[index]; undefined where there is none.
Value member_of(const Value& object, const std::string& name);
Value item_of(const Value& object, const Value& index, Budget& budget);
// object[from:to:step], where null is what was left out.
Value slice_of(const Value& object, const Value* from, const Value* to, const Value* step, Budget& budget);
bool contains(const Value& container, const Value& item, Budget& budget);
// What a loop goes over: a list's items, a dict's keys, a string's characters. Throws Error for anything else.
Value::Items items_of(const Value& value, Budget& budget);
// Characters of a text.
int64_t length_of(std::string_view text, Budget& budget);

}  // namespace llm::jinja
