#include "llm/base/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "llm/base/error.h"
#include "llm/base/mapped_file.h"

namespace llm {
namespace {

using nlohmann::ordered_json;

const char* kind_of(const Json& j) {
  return j.is_null()      ? "null"
         : j.is_boolean() ? "true or false"
         : j.is_number()  ? "a number"
         : j.is_string()  ? "a string"
         : j.is_array()   ? "a list"
                          : "an object";
}

// What the parser calls as it reads.
class Builder {
 public:
  Builder(size_t size, const std::string& where, const JsonLimits& limits)
      : size_(size), where_(where), limits_(limits) {}

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(int64_t value) { return add(value); }
  bool number_unsigned(uint64_t value) { return add(value); }
  bool number_float(double value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(ordered_json::binary_t&) { return false; }  // not in text
  bool start_object(size_t) { return open<Json::Members>(); }
  bool start_array(size_t) { return open<Json::List>(); }
  bool key(std::string& value) {
    return std::get<Json::Members>(open_.back()).emplace_back(std::move(value), Json()), true;
  }
  bool end_object() {
    if (limits_.keys_once) check_keys(std::get<Json::Members>(open_.back()));
    return close<Json::Members>();
  }
  bool end_array() { return close<Json::List>(); }
  bool parse_error(size_t byte, const std::string&, const nlohmann::json::exception& error) {
    constexpr int kOutOfRange = 406;
    if (error.id == kOutOfRange) fail(where_, ": not JSON, a number is out of range");
    fail(where_, ": not JSON in UTF-8, wrong at byte ", byte, " of ", size_);
  }

  Json take() { return std::move(root_); }

 private:
  bool add(Json value) {
    if (open_.empty())
      root_ = std::move(value);
    else if (auto* list = std::get_if<Json::List>(&open_.back()))
      list->push_back(std::move(value));
    else
      std::get<Json::Members>(open_.back()).back().second = std::move(value);
    return true;
  }
  template <class Kind>
  bool open() {
    if (static_cast<int>(open_.size()) == limits_.depth) fail(where_, ": the JSON is nested too deeply");
    open_.emplace_back(Kind());
    return true;
  }
  template <class Kind>
  bool close() {
    Json value(std::get<Kind>(std::move(open_.back())));
    open_.pop_back();
    return add(std::move(value));
  }
  void check_keys(const Json::Members& members) const {
    std::vector<std::string_view> keys;
    for (const auto& [key, value] : members) keys.push_back(key);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) fail(where_, ": the key ", shown(Json(*twice)), " is there twice");
  }

  size_t size_;
  const std::string& where_;
  JsonLimits limits_;
  Json root_;
  std::vector<std::variant<Json::List, Json::Members>> open_;  // what encloses the value that comes next
};

ordered_json library_value(const Json& j) {
  if (j.is_null()) return nullptr;
  if (j.is_boolean()) return j.get<bool>();
  if (j.is_number_unsigned()) return j.get<uint64_t>();
  if (j.is_number_integer()) return j.get<int64_t>();
  if (j.is_number()) return j.get<double>();
  if (j.is_string()) return j.string();
  if (j.is_array()) {
    ordered_json result = ordered_json::array();
    for (const Json& item : j) result.push_back(library_value(item));
    return result;
  }
  ordered_json::object_t members;
  // Its own emplace() looks first whether the key is there already, which takes long among many.
  auto& list = static_cast<ordered_json::object_t::Container&>(members);
  for (const auto& [key, value] : j.items()) list.emplace_back(key, library_value(value));
  return members;
}

// The text with quotation marks about NaN, Infinity and -Infinity.
std::string with_numbers_quoted(std::string_view text) {
  std::string result;
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    size_t length = 1;
    if (in_string) {
      if (text[i] == '\\') length = std::min<size_t>(2, text.size() - i);
    } else {
      for (const std::string_view name : {"NaN", "Infinity", "-Infinity"})
        if (text.substr(i).starts_with(name)) length = name.size();
    }
    if (text[i] == '"') in_string = !in_string;
    const bool quoted = length > 2;
    result += quoted ? "\"" : "";
    result += text.substr(i, length);
    result += quoted ? "\"" : "";
    i += length;
  }
  return result;
}

constexpr auto kReplace = ordered_json::error_handler_t::replace;

}  // namespace

Json::Json(std::nullptr_t) {}
Json::Json(double value) : value_(value) {}
Json::Json(const char* text) : value_(std::string(text)) {}
Json::Json(std::string text) : value_(std::move(text)) {}
Json::Json(std::string_view text) : value_(std::string(text)) {}
Json::Json(List items) : value_(std::move(items)) {}
Json::Json(Members members) : value_(std::move(members)) {}
Json::Json(const Json&) = default;
Json::Json(Json&&) noexcept = default;
Json& Json::operator=(const Json&) = default;
Json& Json::operator=(Json&&) noexcept = default;
Json::~Json() = default;

Json::Json(std::initializer_list<Json> items) {
  const bool pairs = std::all_of(items.begin(), items.end(), [](const Json& item) {
    return item.is_array() && item.size() == 2 && item[0].is_string();
  });
  if (!pairs) {
    value_ = List(items);
    return;
  }
  Members members;
  for (const Json& item : items) members.emplace_back(item[0].string(), item[1]);
  value_ = std::move(members);
}

Json Json::array(std::initializer_list<Json> items) { return Json(List(items)); }
Json Json::object() { return Json(Members()); }

bool Json::boolean() const {
  if (!is_boolean()) fail(kind_of(*this), " is not true or false");
  return std::get<bool>(value_);
}

int64_t Json::integer(int64_t smallest, uint64_t largest) const {
  if (!is_number_integer()) fail(is_number() ? shown(*this) : kind_of(*this), " is not a whole number");
  const uint64_t* count = std::get_if<uint64_t>(&value_);
  const int64_t value = count ? static_cast<int64_t>(*count) : std::get<int64_t>(value_);
  if (count ? *count > largest : value < smallest) fail("the number ", shown(*this), " is out of range");
  return value;
}

double Json::number() const {
  if (const double* value = std::get_if<double>(&value_)) return *value;
  if (!is_number()) fail(kind_of(*this), " is not a number");
  return is_number_unsigned() ? static_cast<double>(std::get<uint64_t>(value_))
                              : static_cast<double>(std::get<int64_t>(value_));
}

const std::string& Json::string() const {
  if (!is_string()) fail(kind_of(*this), " is not a string");
  return std::get<std::string>(value_);
}

void Json::push_back(Json item) { std::get<List>(value_).push_back(std::move(item)); }

const Json::Members& Json::items() const {
  static const Members none;
  return is_object() ? std::get<Members>(value_) : none;
}

size_t Json::size() const { return is_array() ? std::get<List>(value_).size() : items().size(); }

const Json* Json::find(std::string_view key) const {
  const Members& all = items();
  const auto found = std::find_if(all.rbegin(), all.rend(), [&](const auto& member) { return member.first == key; });
  return found == all.rend() ? nullptr : &found->second;
}

const Json& Json::operator[](const char* key) const {
  static const Json null;
  const Json* found = find(key);
  return found ? *found : null;
}

const Json& Json::at(std::string_view key) const {
  const Json* found = find(key);
  if (!found) fail("\"", key, "\" is missing");
  return *found;
}

Json& Json::operator[](const std::string& key) {
  if (is_null()) value_ = Members();
  if (const Json* found = find(key)) return const_cast<Json&>(*found);
  return std::get<Members>(value_).emplace_back(key, Json()).second;
}

void Json::update(const Json& object) {
  for (const auto& [key, value] : object.items()) (*this)[key] = value;
}

bool operator==(const Json& a, const Json& b) {
  if (a.is_number_integer() && b.is_number_integer())
    return a.is_number_unsigned() == b.is_number_unsigned() && a.value_ == b.value_;
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (!a.is_object() || !b.is_object()) return a.value_ == b.value_;
  return a.size() == b.size() && std::all_of(a.items().begin(), a.items().end(), [&](const auto& member) {
           const Json* other = b.find(member.first);
           return other && *other == member.second;
         });
}

std::string Json::dump(int indent) const {
  try {
    return library_value(*this).dump(indent);
  } catch (const nlohmann::json::exception&) {
    fail("cannot write as JSON: a string is not UTF-8");
  }
}

Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits) {
  if (text.empty()) fail(where, ": not JSON, the file is empty");
  const std::string quoted = limits.python_numbers ? with_numbers_quoted(text) : "";
  if (limits.python_numbers) text = quoted;
  Builder builder(text.size(), where, limits);
  ordered_json::sax_parse(text, &builder);
  return builder.take();
}

Json json_or_null(std::string_view text) {
  try {
    return parse_json(text, "");
  } catch (const Error&) {
    return nullptr;
  }
}

Json read_json(const std::string& path) {
  const MappedFile file(path);
  return parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path);
}

std::string json_text(const Json& value) { return library_value(value).dump(2, ' ', false, kReplace) + "\n"; }

std::string shown(const Json& value) { return library_value(value).dump(-1, ' ', true, kReplace); }

int64_t integer_member(const Json& object, const char* key, int64_t smallest, const std::string& path) {
  const Json& found = object[key];
  // Numbers of 2^63 and more do not fit.
  const bool whole =
      found.is_number_integer() && (!found.is_number_unsigned() || found.get<uint64_t>() <= uint64_t{INT64_MAX});
  if (!whole || found.get<int64_t>() < smallest)
    fail(path, ": no \"", key, "\" that is a whole number, ", smallest, " or more");
  return found.get<int64_t>();
}

}  // namespace llm
