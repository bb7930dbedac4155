// The methods of strings and dicts that chat templates call, as Python's.
#include <algorithm>

#include "llm/base/error.h"
#include "llm/serve/jinja_lexer.h"
#include "llm/serve/jinja_library.h"
#include "llm/serve/jinja_text.h"
#include "llm/text/utf8.h"

namespace llm::jinja {
namespace {

const std::string& text_argument(const Arguments& arguments, size_t position, const char* name) {
  const Value& value = arguments.need(position, name);
  if (!value.is_string()) fail("the argument \"", name, "\" is ", value.kind(), ", not a string");
  return value.string();
}

// Whether the text begins, or ends, with the string or one of the strings.
bool is_at_end(const std::string& text, const Value& parts, bool at_begin) {
  if (parts.is_list())
    return std::any_of(parts.items().begin(), parts.items().end(), [&](const Value& part) {
      if (part.is_list()) fail("startswith and endswith take strings, not a list in a list");
      return is_at_end(text, part, at_begin);
    });
  if (!parts.is_string()) fail("startswith and endswith take strings, not ", parts.kind());
  return at_begin ? text.starts_with(parts.string()) : text.ends_with(parts.string());
}

Value split(const std::string& text, const Arguments& arguments, bool from_behind, Budget& budget) {
  const Value* separator = arguments.find(0, "sep");
  const Value* most = arguments.find(1, "maxsplit");
  if (most && !most->is_whole()) fail("maxsplit is ", most->kind());
  int64_t left = most && most->integer() >= 0 ? most->integer() : INT64_MAX;
  budget.make_bytes(text.size());
  std::vector<std::string_view> parts;
  std::string_view rest = text;
  if (!separator || separator->is_none()) {
    if (from_behind && most) fail("rsplit(maxsplit) without a separator is not among what chat templates may use here");
    for (rest = without_blanks_before(rest); !rest.empty(); rest = without_blanks_before(rest)) {
      size_t end = 0;
      while (end < rest.size() && !blank_length(rest.substr(end)))
        end += std::max<size_t>(1, utf8_length(rest.substr(end)));
      if (left-- == 0) end = rest.size();
      parts.push_back(rest.substr(0, end));
      rest.remove_prefix(end);
      if (left < 0) break;
    }
  } else {
    if (!separator->is_string() || separator->string().empty())
      fail("a text is split at ", separator->kind(), separator->is_string() ? " that is empty" : "");
    const std::string& at = separator->string();
    const auto next = [&] { return left-- > 0 ? from_behind ? rest.rfind(at) : rest.find(at) : rest.npos; };
    for (size_t found; (found = next()) != rest.npos;) {
      parts.push_back(from_behind ? rest.substr(found + at.size()) : rest.substr(0, found));
      rest = from_behind ? rest.substr(0, found) : rest.substr(found + at.size());
      budget.step();
    }
    parts.push_back(rest);
    if (from_behind) std::reverse(parts.begin(), parts.end());
  }
  budget.look_at_items(parts.size());
  Value::Items items;
  for (const std::string_view part : parts) items.emplace_back(std::string(part));
  return Value(std::move(items));
}

Value split_lines(const std::string& text, Budget& budget) {
  Value::Items lines;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    while (end < text.size() && text[end] != '\n' && text[end] != '\r') ++end;
    lines.emplace_back(text.substr(begin, end - begin));
    begin = end + (text.substr(end, 2) == "\r\n" ? 2 : 1);
    budget.step();
  }
  budget.make_bytes(text.size());
  return Value(std::move(lines));
}

constexpr std::string_view kOfStrings[] = {
    "strip",    "lstrip", "rstrip", "split",      "rsplit",  "splitlines",   "startswith",
    "endswith", "upper",  "lower",  "capitalize", "title",   "replace",      "find",
    "rfind",    "count",  "join",   "isdigit",    "isspace", "removeprefix", "removesuffix"};
constexpr std::string_view kOfDicts[] = {"items", "keys", "values", "get"};

Value call_on_string(const std::string& text, const std::string& name, const Arguments& arguments, Budget& budget) {
  budget.look_at_bytes(text.size());
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    arguments.check(1);
    const Value* characters = arguments.find(0, "chars");
    if (characters && characters->is_none()) characters = nullptr;
    return stripped(text, characters ? &text_argument(arguments, 0, "chars") : nullptr, name != "rstrip",
                    name != "lstrip", budget);
  }
  if (name == "split" || name == "rsplit") {
    arguments.check(2, {"sep", "maxsplit"});
    return split(text, arguments, name == "rsplit", budget);
  }
  if (name == "startswith" || name == "endswith") {
    arguments.check(1);
    return Value(is_at_end(text, arguments.need(0, "prefix"), name == "startswith"));
  }
  if (name == "replace") {
    arguments.check(3, {"count"});
    return replaced(text, text_argument(arguments, 0, "old"), text_argument(arguments, 1, "new"),
                    arguments.find(2, "count"), budget);
  }
  if (name == "find" || name == "rfind" || name == "count") {
    arguments.check(1);
    const std::string& part = text_argument(arguments, 0, "sub");
    if (name == "count") {
      if (part.empty()) return Value(length_of(text, budget) + 1);
      int64_t count = 0;
      for (size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++count;
      return Value(count);
    }
    const size_t at = name == "find" ? text.find(part) : text.rfind(part);
    return Value(at == text.npos ? int64_t{-1} : length_of(std::string_view(text).substr(0, at), budget));
  }
  if (name == "join") {
    arguments.check(1);
    const Value::Items items = items_of(arguments.need(0, "iterable"), budget);
    std::string all;
    for (const Value& item : items) {
      if (!item.is_string()) fail("join() of ", item.kind(), ", not of strings");
      budget.make_bytes(text.size() + item.string().size());
      all += (&item == items.data() ? "" : text) + item.string();
    }
    return Value(std::move(all));
  }
  if (name == "removeprefix" || name == "removesuffix") {
    arguments.check(1);
    const std::string& part = text_argument(arguments, 0, "prefix");
    budget.make_bytes(text.size());
    const bool prefix = name == "removeprefix";
    if (!(prefix ? text.starts_with(part) : text.ends_with(part))) return Value(text);
    return Value(prefix ? text.substr(part.size()) : text.substr(0, text.size() - part.size()));
  }
  arguments.check(0);
  if (name == "splitlines") return split_lines(text, budget);
  if (name == "isspace") return Value(!text.empty() && without_blanks_before(text).empty());
  if (name == "isdigit")
    return Value(!text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }));
  budget.make_bytes(text.size());
  return Value(name == "upper"   ? upper(text)
               : name == "lower" ? lower(text)
               : name == "title" ? python_title(text)
                                 : capitalized(text));
}

}  // namespace

bool is_method(const Value& object, std::string_view name) {
  if (object.is_string()) return std::find(std::begin(kOfStrings), std::end(kOfStrings), name) != std::end(kOfStrings);
  return object.is_dict() && std::find(std::begin(kOfDicts), std::end(kOfDicts), name) != std::end(kOfDicts);
}

Value call_method(const Value& object, const std::string& name, const Arguments& arguments, Budget& budget) {
  if (!is_method(object, name))
    fail("the method ", name, "() of ", object.kind(), " is not among what chat templates may call here");
  if (object.is_string()) return call_on_string(object.string(), name, arguments, budget);
  budget.look_at_items(object.members().size());
  if (name == "get") {
    arguments.check(2);
    const Value& key = arguments.need(0, "key");
    const Value* found = key.is_string() ? object.member(key.string()) : nullptr;
    const Value* otherwise = arguments.find(1, "default");
    return found ? *found : otherwise ? *otherwise : Value(Value::None());
  }
  arguments.check(0);
  Value::Items all;
  for (const auto& [key, member] : object.members()) {
    if (name != "values") budget.make_bytes(key.size());
    all.push_back(name == "keys"     ? Value(key)
                  : name == "values" ? member
                                     : Value(Value::Items{Value(key), member}, true));
  }
  return Value(std::move(all));
}

}  // namespace llm::jinja
