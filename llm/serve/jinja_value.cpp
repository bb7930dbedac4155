#include "llm/serve/jinja_value.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "llm/base/error.h"
#include "llm/text/utf8.h"

namespace llm::jinja {
namespace {

template <class Parts, class ValueOf>
int depth_of(const Parts& parts, ValueOf&& value_of) {
  int deepest = 0;
  for (const auto& part : parts) {
    const Value& value = value_of(part);
    // A namespace could come to be inside itself.
    if (value.is_namespace()) fail("a namespace cannot be inside another value");
    deepest = std::max(deepest, value.depth());
  }
  if (deepest >= Limits::depth) fail("values are nested more than ", Limits::depth, " deep");
  return deepest + 1;
}

// As Python prints it: the fewest digits that read back as the same number.
std::string number_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  char digits[40];
  const double size = std::abs(number);
  const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto end = std::to_chars(digits, digits + sizeof digits, number,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  std::string text(digits, end);
  if (plain && text.find('.') == text.npos) text += ".0";
  return text;
}

// As Python's str.isprintable() says.
bool is_printable(uint32_t code) {
  if (code == ' ') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    default: return true;
  }
}

std::string quoted(const std::string& text) {
  const bool single = text.find('\'') != text.npos, with_double = single && text.find('"') == text.npos;
  const char mark = with_double ? '"' : '\'';
  std::string out(1, mark);
  for (size_t i = 0; i < text.size();) {
    const std::string_view rest = std::string_view(text).substr(i);
    const size_t length = std::max<size_t>(1, utf8_length(rest));
    const uint32_t code = utf8_code(rest, length);
    const char c = text[i];
    if (c == mark || c == '\\') {
      out += '\\', out += c;
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (is_printable(code)) {
      out.append(text, i, length);
    } else {
      char escape[16];
      std::snprintf(escape, sizeof escape, code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x", code);
      out += escape;
    }
    i += length;
  }
  return out += mark;
}

// Python's repr(): strings have quotation marks.
void append_shown(const Value& value, Budget& budget, std::string& out) {
  budget.step();
  const size_t before = out.size();
  if (value.is_string()) {
    out += quoted(value.string());
  } else if (value.is_list()) {
    out += value.is_tuple() ? '(' : '[';
    for (const Value& item : value.items()) {
      if (&item != value.items().data()) out += ", ";
      append_shown(item, budget, out);
    }
    if (value.is_tuple() && value.items().size() == 1) out += ',';
    out += value.is_tuple() ? ')' : ']';
  } else if (value.is_dict()) {
    out += '{';
    for (const auto& [key, member] : value.members()) {
      if (out.back() != '{') out += ", ";
      out += quoted(key) + ": ";
      append_shown(member, budget, out);
    }
    out += '}';
  } else if (value.is_undefined()) {
    out += "Undefined";
  } else {
    out += text_of(value, budget);
  }
  // Of a list, its items were counted already.
  if (!value.is_list() && !value.is_dict()) budget.make_bytes(out.size() - before);
}

void append_json_string(const std::string& text, bool ascii, std::string& out) {
  out += '"';
  for (size_t i = 0; i < text.size();) {
    const std::string_view rest = std::string_view(text).substr(i);
    const size_t length = std::max<size_t>(1, utf8_length(rest));
    const auto byte = static_cast<unsigned char>(text[i]);
    char escape[16];
    static constexpr std::string_view kShort = "\"\\\n\r\t\f\b", kLetters = "\"\\nrtfb";
    if (const size_t at = kShort.find(text[i]); at != kShort.npos) {
      out += '\\', out += kLetters[at];
    } else if (byte < 0x20 || (byte == 0x7F && ascii)) {
      if (byte == 0x7F) {
        out += text[i];
      } else {
        std::snprintf(escape, sizeof escape, "\\u%04x", byte);
        out += escape;
      }
    } else if (length == 1 || !ascii) {
      out.append(text, i, length);
    } else {
      const uint32_t code = utf8_code(rest, length);
      if (code < 0x10000)
        std::snprintf(escape, sizeof escape, "\\u%04x", code);
      else
        std::snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xD7C0 + (code >> 10), 0xDC00 + (code & 0x3FF));
      out += escape;
    }
    i += length;
  }
  out += '"';
}

void append_json(const Value& value, const JsonStyle& style, int level, Budget& budget, std::string& out) {
  budget.step();
  const auto new_line = [&](int deep) {
    if (style.indent < 0) return;
    const auto blanks = static_cast<size_t>(style.indent) * static_cast<size_t>(deep);
    budget.make_bytes(blanks);
    out += '\n';
    out.append(blanks, ' ');
  };
  const size_t before = out.size();
  if (value.is_string()) {
    append_json_string(value.string(), style.ascii, out);
  } else if (value.is_list()) {
    out += '[';
    for (const Value& item : value.items()) {
      if (&item != value.items().data()) out += style.between_items;
      new_line(level + 1);
      append_json(item, style, level + 1, budget, out);
    }
    if (!value.items().empty()) new_line(level);
    out += ']';
  } else if (value.is_dict()) {
    std::vector<const Value::Members::value_type*> members;
    for (const auto& member : value.members()) members.push_back(&member);
    if (style.sort_keys)
      std::sort(members.begin(), members.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
    out += '{';
    for (const auto* member : members) {
      if (member != members.front()) out += style.between_items;
      new_line(level + 1);
      append_json_string(member->first, style.ascii, out);
      out += style.after_key;
      append_json(member->second, style, level + 1, budget, out);
    }
    if (!members.empty()) new_line(level);
    out += '}';
  } else if (value.is_none()) {
    out += "null";
  } else if (value.is_boolean()) {
    out += is_true(value) ? "true" : "false";
  } else if (value.is_real() && !std::isfinite(value.real())) {
    out += std::isnan(value.real()) ? "NaN" : value.real() < 0 ? "-Infinity" : "Infinity";
  } else if (value.is_number()) {
    out += text_of(value, budget);
  } else {
    fail(value.kind(), " has no JSON");
  }
  if (!value.is_list() && !value.is_dict()) budget.make_bytes(out.size() - before);
}

template <class Number>
int order(Number a, Number b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

}  // namespace

void Budget::use(int64_t steps) {
  limits_.steps -= steps;
  if (limits_.steps < 0) fail("it takes too many steps");
}

void Budget::make_bytes(size_t bytes) {
  limits_.bytes -= static_cast<int64_t>(bytes);
  if (limits_.bytes < 0) fail("it makes too much text");
}

Value::Value(Items items, bool tuple) {
  const int depth = depth_of(items, [](const Value& item) -> const Value& { return item; });
  held_ = std::make_shared<const List>(List{std::move(items), depth, tuple});
}

Value::Value(Members members) {
  const int depth = depth_of(members, [](const auto& member) -> const Value& { return member.second; });
  held_ = std::make_shared<const Dict>(Dict{std::move(members), depth});
}

Value::Value(const Json& json) {
  if (json.is_null()) {
    held_ = None();
  } else if (json.is_boolean()) {
    held_ = json.get<bool>();
  } else if (json.is_number_integer() && (!json.is_number_unsigned() || json.get<uint64_t>() <= INT64_MAX)) {
    held_ = json.get<int64_t>();
  } else if (json.is_number()) {
    held_ = json.get<double>();
  } else if (json.is_string()) {
    *this = Value(json.string());
  } else if (json.is_array()) {
    Items items;
    for (const Json& item : json) items.emplace_back(Value(item));
    *this = Value(std::move(items));
  } else {
    Members members;
    for (const auto& [key, member] : json.items()) {
      // Of two members of one key the last counts, in the place of the first, as in Python.
      const auto same =
          std::find_if(members.begin(), members.end(), [&key = key](const auto& m) { return m.first == key; });
      if (same == members.end())
        members.emplace_back(key, Value(member));
      else
        same->second = Value(member);
    }
    *this = Value(std::move(members));
  }
}

Value Value::new_namespace(Members members) {
  depth_of(members, [](const auto& member) -> const Value& { return member.second; });
  Value value;
  value.held_ = std::make_shared<Namespace>(Namespace{std::move(members)});
  return value;
}

const Value::Items& Value::items() const { return std::get<std::shared_ptr<const List>>(held_)->items; }

bool Value::is_tuple() const { return is_list() && std::get<std::shared_ptr<const List>>(held_)->tuple; }

const Value::Members& Value::members() const {
  return is_dict() ? std::get<std::shared_ptr<const Dict>>(held_)->members : namespace_members();
}

Value::Members& Value::namespace_members() const { return std::get<std::shared_ptr<Namespace>>(held_)->members; }

const Value* Value::member(std::string_view name) const {
  if (!is_dict() && !is_namespace()) return nullptr;
  for (const auto& [key, value] : members())
    if (key == name) return &value;
  return nullptr;
}

double Value::real() const {
  if (const double* number = std::get_if<double>(&held_)) return *number;
  return static_cast<double>(integer());
}

int64_t Value::integer() const {
  if (const bool* truth = std::get_if<bool>(&held_)) return *truth ? 1 : 0;
  return std::get<int64_t>(held_);
}

int Value::depth() const {
  if (is_list()) return std::get<std::shared_ptr<const List>>(held_)->depth;
  if (is_dict()) return std::get<std::shared_ptr<const Dict>>(held_)->depth;
  return 0;
}

const char* Value::kind() const {
  static constexpr const char* kKinds[] = {"an undefined value", "none",      "true or false", "a whole number",
                                           "a number",           "a string",  "a list",        "a dict",
                                           "a namespace",        "a function"};
  return kKinds[held_.index()];
}

bool is_true(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_number()) return value.real() != 0;
  if (value.is_string()) return !value.string().empty();
  if (value.is_list()) return !value.items().empty();
  if (value.is_dict()) return !value.members().empty();
  return true;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_whole() && b.is_whole()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.real() == b.real();
  if (a.is_string() && b.is_string()) {
    budget.look_at_bytes(std::min(a.string().size(), b.string().size()));
    return a.string() == b.string();
  }
  if (a.is_list() && b.is_list())
    return a.is_tuple() == b.is_tuple() &&
           std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(),
                      [&](const Value& x, const Value& y) { return equal(x, y, budget); });
  if (a.is_dict() && b.is_dict())
    return a.members().size() == b.members().size() &&
           std::all_of(a.members().begin(), a.members().end(), [&](const auto& member) {
             budget.look_at_items(b.members().size());
             const Value* other = b.member(member.first);
             return other && equal(member.second, *other, budget);
           });
  if (a.is_namespace() && b.is_namespace()) return &a.members() == &b.members();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

int compare(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_whole() && b.is_whole()) return order(a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return order(a.real(), b.real());
  if (a.is_string() && b.is_string()) {
    budget.look_at_bytes(std::min(a.string().size(), b.string().size()));
    return a.string().compare(b.string());
  }
  if (!a.is_list() || !b.is_list()) fail("cannot tell whether ", a.kind(), " is less than ", b.kind());
  for (size_t i = 0; i < std::min(a.items().size(), b.items().size()); ++i)
    if (!equal(a.items()[i], b.items()[i], budget)) return compare(a.items()[i], b.items()[i], budget);
  return order(a.items().size(), b.items().size());
}

std::string text_of(const Value& value, Budget& budget) {
  if (value.is_string()) return value.string();
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (value.is_boolean()) return is_true(value) ? "True" : "False";
  if (value.is_integer()) return std::to_string(value.integer());
  if (value.is_real()) return number_text(value.real());
  if (!value.is_list() && !value.is_dict()) fail("cannot print ", value.kind());
  std::string out;
  append_shown(value, budget, out);
  return out;
}

std::string json_of(const Value& value, const JsonStyle& style, Budget& budget) {
  std::string out;
  append_json(value, style, 0, budget, out);
  return out;
}

}  // namespace llm::jinja
