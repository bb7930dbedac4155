#include <algorithm>
#include <charconv>
#include <cmath>

#include "llm/base/error.h"
#include "llm/serve/jinja_lexer.h"
#include "llm/serve/jinja_library.h"
#include "llm/serve/jinja_text.h"
#include "llm/text/utf8.h"

namespace llm::jinja {
namespace {

bool flag(const Arguments& arguments, size_t position, const char* name) {
  const Value* value = arguments.find(position, name);
  return value && is_true(*value);
}

// "a.b" is the member b of the member a; a number is an item.
Value at_path(Value value, const Value& path, Budget& budget) {
  if (path.is_whole()) return item_of(value, path, budget);
  if (!path.is_string()) fail("an attribute's name is ", path.kind());
  std::string_view rest = path.string();
  for (;;) {
    const size_t point = rest.find('.');
    const std::string name(rest.substr(0, point));
    int64_t index = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
    const bool is_index = error == std::errc() && end == name.data() + name.size();
    value = item_of(value, is_index ? Value(index) : Value(name), budget);
    if (point == rest.npos) return value;
    rest.remove_prefix(point + 1);
  }
}

Value json(const Value& value, const Arguments& arguments, Budget& budget) {
  // The order of transformers' own filter.
  arguments.check(4, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = flag(arguments, 0, "ensure_ascii");
  style.sort_keys = flag(arguments, 3, "sort_keys");
  if (const Value* indent = arguments.find(1, "indent"); indent && !indent->is_none()) {
    if (!indent->is_whole() || indent->integer() < 0 || indent->integer() > 100)
      fail("tojson: the indent is no number from 0 to 100");
    style.indent = static_cast<int>(indent->integer());
    style.between_items = ",";
  }
  if (const Value* separators = arguments.find(2, "separators"); separators && !separators->is_none()) {
    const bool two = separators->is_list() && separators->items().size() == 2 && separators->items()[0].is_string() &&
                     separators->items()[1].is_string();
    if (!two) fail("tojson: separators are two strings");
    style.between_items = separators->items()[0].string(), style.after_key = separators->items()[1].string();
  }
  return Value(json_of(value, style, budget));
}

Value joined(const Value& value, const Arguments& arguments, Budget& budget) {
  arguments.check(2, {"d", "attribute"});
  const Value* between = arguments.find(0, "d");
  const Value* attribute = arguments.find(1, "attribute");
  const std::string separator = between ? text_of(*between, budget) : "";
  const Value::Items items = items_of(value, budget);
  std::string all;
  for (const Value& item : items) {
    if (&item != items.data()) all += separator;
    const std::string text = text_of(attribute ? at_path(item, *attribute, budget) : item, budget);
    budget.make_bytes(text.size() + separator.size());
    all += text;
  }
  return Value(std::move(all));
}

// select, reject, selectattr, rejectattr
Value chosen(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget) {
  const bool by_attribute = name.ends_with("attr"), keep = name.starts_with("select");
  const size_t skip = by_attribute ? 1 : 0;
  if (arguments.size() < skip) fail(name, " needs an attribute's name");
  Value::Items kept;
  const bool tests = arguments.size() > skip;
  if (tests && !arguments[skip].is_string()) fail(name, " needs a test's name, not ", arguments[skip].kind());
  for (const Value& item : items_of(value, budget)) {
    const Value looked_at = by_attribute ? at_path(item, arguments[0], budget) : item;
    const bool passes = tests
                            ? apply_test(arguments[skip].string(), looked_at, arguments.without_first(skip + 1), budget)
                            : is_true(looked_at);
    if (passes == keep) kept.push_back(item);
  }
  return Value(std::move(kept));
}

Value mapped(const Value& value, const Arguments& arguments, Budget& budget) {
  Value::Items items = items_of(value, budget);
  if (const Value* attribute = arguments.positional() ? nullptr : arguments.find(0, "attribute")) {
    arguments.check(0, {"attribute", "default"});
    const Value* otherwise = arguments.find(1, "default");
    for (Value& item : items) {
      item = at_path(item, *attribute, budget);
      if (item.is_undefined() && otherwise) item = *otherwise;
    }
    return Value(std::move(items));
  }
  if (!arguments.positional() || !arguments[0].is_string()) fail("map needs a filter's name, or attribute=");
  for (Value& item : items) item = apply_filter(arguments[0].string(), item, arguments.without_first(1), budget);
  return Value(std::move(items));
}

Value indented(const std::string& text, const Arguments& arguments, Budget& budget) {
  arguments.check(3, {"width", "first", "blank"});
  std::string blanks(4, ' ');
  if (const Value* width = arguments.find(0, "width")) {
    if (!width->is_string() && !(width->is_whole() && width->integer() >= 0 && width->integer() <= 1000))
      fail("indent: the width is no number from 0 to 1000");
    blanks = width->is_string() ? width->string() : std::string(static_cast<size_t>(width->integer()), ' ');
  }
  const bool first = flag(arguments, 1, "first"), blank = flag(arguments, 2, "blank");
  std::string out = first ? blanks : "";
  const std::string all = text + "\n";
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = all.find('\n', begin);
    if (begin > 0) {
      out += '\n';
      if (end > begin || blank) out += blanks;
    }
    budget.make_bytes(end - begin + blanks.size() + 1);
    out.append(all, begin, end - begin);
    begin = end + 1;
  }
  return Value(std::move(out));
}

Value whole_number(const Value& value, const Arguments& arguments) {
  arguments.check(1, {"default"});
  const Value* otherwise = arguments.find(0, "default");
  if (value.is_whole()) return Value(value.integer());
  if (value.is_real() && std::abs(value.real()) < 0x1p62) return Value(static_cast<int64_t>(value.real()));
  if (value.is_string()) {
    const std::string_view text = without_blanks_behind(without_blanks_before(value.string()));
    int64_t whole = 0;
    double real = 0;
    const char *begin = text.data() + (text.starts_with('+') ? 1 : 0), *end = text.data() + text.size();
    if (const auto read = std::from_chars(begin, end, whole); read.ec == std::errc() && read.ptr == end)
      return Value(whole);
    const auto read = std::from_chars(begin, end, real);
    if (read.ec == std::errc() && read.ptr == end && std::abs(real) < 0x1p62) return Value(static_cast<int64_t>(real));
  }
  return otherwise ? *otherwise : Value(int64_t{0});
}

Value real_number(const Value& value, const Arguments& arguments) {
  arguments.check(1, {"default"});
  const Value* otherwise = arguments.find(0, "default");
  if (value.is_number()) return Value(value.real());
  if (value.is_string()) {
    const std::string_view text = without_blanks_behind(without_blanks_before(value.string()));
    double real = 0;
    const char *begin = text.data() + (text.starts_with('+') ? 1 : 0), *end = text.data() + text.size();
    const auto read = std::from_chars(begin, end, real);
    if (read.ec == std::errc() && read.ptr == end) return Value(real);
  }
  return otherwise ? *otherwise : Value(0.0);
}

Value sorted(const Value& value, const Arguments& arguments, Budget& budget) {
  arguments.check(3, {"reverse", "case_sensitive", "attribute"});
  const bool reverse = flag(arguments, 0, "reverse"), exact = flag(arguments, 1, "case_sensitive");
  const Value* attribute = arguments.find(2, "attribute");
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items_of(value, budget)) {
    Value key = attribute ? at_path(item, *attribute, budget) : item;
    if (!exact && key.is_string()) key = Value(lower(key.string()));
    keyed.emplace_back(std::move(key), std::move(item));
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? compare(a.first, b.first, budget) > 0 : compare(a.first, b.first, budget) < 0;
  });
  Value::Items items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return Value(std::move(items));
}

Value reversed(const Value& value, Budget& budget) {
  Value::Items items = items_of(value, budget);
  std::reverse(items.begin(), items.end());
  if (!value.is_string()) return Value(std::move(items));
  std::string text;
  for (const Value& character : items) text += character.string();
  return Value(std::move(text));
}

// Filters of what is printed: anything is text to them.
Value text_filter(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget) {
  const std::string text = text_of(value, budget);
  budget.make_bytes(text.size());
  budget.look_at_bytes(text.size());
  if (name == "indent") return indented(text, arguments, budget);
  if (name == "trim") {
    arguments.check(1, {"chars"});
    const Value* characters = arguments.find(0, "chars");
    if (characters && !characters->is_string() && !characters->is_none())
      fail("trim takes a string, not ", characters->kind());
    return stripped(text, characters && characters->is_string() ? &characters->string() : nullptr, true, true, budget);
  }
  if (name == "replace") {
    arguments.check(3, {"old", "new", "count"});
    return replaced(text, text_of(arguments.need(0, "old"), budget), text_of(arguments.need(1, "new"), budget),
                    arguments.find(2, "count"), budget);
  }
  arguments.check(0);
  if (name == "upper") return Value(upper(text));
  if (name == "lower") return Value(lower(text));
  if (name == "capitalize") return Value(capitalized(text));
  return Value(text);  // string, safe
}

}  // namespace

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget) {
  budget.step();
  static constexpr std::string_view kOfText[] = {"trim",       "replace", "upper", "lower",
                                                 "capitalize", "string",  "safe",  "indent"};
  if (std::find(std::begin(kOfText), std::end(kOfText), name) != std::end(kOfText))
    return text_filter(name, value, arguments, budget);
  if (name == "tojson") return json(value, arguments, budget);
  if (name == "join") return joined(value, arguments, budget);
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr")
    return chosen(name, value, arguments, budget);
  if (name == "map") return mapped(value, arguments, budget);
  if (name == "int") return whole_number(value, arguments);
  if (name == "float") return real_number(value, arguments);
  if (name == "sort") return sorted(value, arguments, budget);
  if (name == "default" || name == "d") {
    arguments.check(2, {"default_value", "boolean"});
    const bool missing = value.is_undefined() || (flag(arguments, 1, "boolean") && !is_true(value));
    const Value* otherwise = arguments.find(0, "default_value");
    return !missing ? value : otherwise ? *otherwise : Value("");
  }
  static constexpr std::string_view kWithoutArguments[] = {"length", "count", "list",    "items",   "first",
                                                           "last",   "abs",   "reverse", "dictsort"};
  if (std::find(std::begin(kWithoutArguments), std::end(kWithoutArguments), name) == std::end(kWithoutArguments))
    fail("the filter \"", name, "\" is not among what chat templates may use here");
  arguments.check(0);
  if (name == "length" || name == "count") {
    if (value.is_string()) return Value(length_of(value.string(), budget));
    if (value.is_list()) return Value(static_cast<int64_t>(value.items().size()));
    if (value.is_dict()) return Value(static_cast<int64_t>(value.members().size()));
    if (value.is_undefined()) return Value(int64_t{0});
    fail(value.kind(), " has no length");
  }
  if (name == "list") return Value(items_of(value, budget));
  if (name == "items") {
    if (value.is_undefined()) return Value(Value::Items());
    if (!value.is_dict()) fail("the filter items of ", value.kind());
    return call_method(value, name, arguments, budget);
  }
  if (name == "first" || name == "last") {
    const Value::Items items = items_of(value, budget);
    return items.empty() ? Value() : name == "first" ? items.front() : items.back();
  }
  if (name == "reverse") return reversed(value, budget);
  if (name == "abs") {
    if (value.is_real()) return Value(std::abs(value.real()));
    if (!value.is_whole() || value.integer() == INT64_MIN) fail("the filter abs of ", value.kind());
    return Value(std::abs(value.integer()));
  }
  // dictsort
  if (!value.is_dict()) fail("the filter dictsort of ", value.kind());
  static const std::vector<std::string> kBy = {"attribute"};
  return sorted(call_method(value, "items", arguments, budget), Arguments({Value(int64_t{0})}, kBy), budget);
}

}  // namespace llm::jinja
