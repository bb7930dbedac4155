// JSON values, with the names that nlohmann::json has for the same. Members keep the order in which a file has them or a
// program sets them. json.cpp alone includes that library, which parses and prints: it is slow to compile.
#pragma once
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace llm {

class Json {
 public:
  using List = std::vector<Json>;
  using Members = std::vector<std::pair<std::string, Json>>;

  Json(std::nullptr_t = nullptr);
  template <std::same_as<bool> Bool>
  Json(Bool value) : value_(value) {}
  template <std::integral Integer>
  requires(!std::same_as<Integer, bool>) Json(Integer value) {
    if (value < 0)
      value_ = static_cast<int64_t>(value);
    else
      value_ = static_cast<uint64_t>(value);
  }
  Json(double value);
  Json(const char* text);
  Json(std::string text);
  Json(std::string_view text);
  Json(List items);
  explicit Json(Members members);
  template <class Item>
  Json(const std::vector<Item>& items) : Json(List(items.begin(), items.end())) {}
  // {{"a", 1}, {"b", 2}} is an object, any other list a list.
  Json(std::initializer_list<Json> items);
  Json(const Json&);
  Json(Json&&) noexcept;
  Json& operator=(const Json&);
  Json& operator=(Json&&) noexcept;
  ~Json();
  static Json array(std::initializer_list<Json> items = {});
  static Json object();

  bool is_null() const { return value_.index() == 0; }
  bool is_boolean() const { return std::holds_alternative<bool>(value_); }
  bool is_number_unsigned() const { return std::holds_alternative<uint64_t>(value_); }  // a whole number, 0 or more
  bool is_number_integer() const { return is_number_unsigned() || std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_number_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<List>(value_); }
  bool is_object() const { return std::holds_alternative<Members>(value_); }

  // As bool, a whole number, double or std::string. Throws Error for another kind of value, and for a number that does not
  // fit.
  template <class Value>
  Value get() const {
    if constexpr (std::same_as<Value, bool>) {
      return boolean();
    } else if constexpr (std::integral<Value>) {
      return static_cast<Value>(integer(static_cast<int64_t>(std::numeric_limits<Value>::min()),
                                        static_cast<uint64_t>(std::numeric_limits<Value>::max())));
    } else if constexpr (std::floating_point<Value>) {
      return static_cast<Value>(number());
    } else {
      return string();
    }
  }
  const std::string& string() const;

  // Of arrays; any other value has no items.
  const Json* begin() const { return is_array() ? std::get<List>(value_).data() : nullptr; }
  const Json* end() const { return is_array() ? begin() + size() : nullptr; }
  template <std::integral Index>
  const Json& operator[](Index index) const {
    return begin()[index];
  }
  const Json& back() const { return std::get<List>(value_).back(); }
  void push_back(Json item);
  // Of objects, in their order; any other value has no members.
  const Members& items() const;
  size_t size() const;  // of items or members
  bool empty() const { return size() == 0; }

  // Null where there is no such member. Of two members of one key in a file the last counts.
  const Json& operator[](const char* key) const;
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  const Json& at(std::string_view key) const;  // throws Error that names the key where there is no such member
  // Added at the end where there is none; null becomes an object.
  Json& operator[](const std::string& key);
  Json& operator[](const char* key) { return (*this)[std::string(key)]; }
  void update(const Json& object);  // sets its members here

  // Numbers are equal by value, objects whatever the order of their members.
  friend bool operator==(const Json& a, const Json& b);

  // On one line, or with each member on a line of its own, so many blanks deeper than what it is in. Numbers that are not finite
  // become null. Throws Error for a string that is not UTF-8.
  std::string dump(int indent = -1) const;

 private:
  const Json* find(std::string_view key) const;
  bool boolean() const;
  int64_t integer(int64_t smallest, uint64_t largest) const;
  double number() const;

  std::variant<std::nullptr_t, bool, int64_t, uint64_t, double, std::string, List, Members> value_;
};

// What a file's text may be.
struct JsonLimits {
  int depth = 100;         // arrays and objects inside each other
  bool keys_once = false;  // a key that an object has twice is an error
  bool python_numbers =
      false;  // NaN, Infinity and -Infinity, as Python's json writes them, are strings with these letters
};
// Throws Error "WHERE: not JSON ..." with the byte where it is wrong.
Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits = {});
Json json_or_null(std::string_view text);  // null for what is not JSON
Json read_json(const std::string& path);

// A file's text; bytes in strings (names of files) that are not UTF-8 become U+FFFD.
std::string json_text(const Json& value);
// On one line of ASCII, for messages.
std::string shown(const Json& value);

// The member `key` of `object`, a whole number in [smallest, 2^63), smallest >= 0. Throws Error "PATH: no ..." when it is
// not there.
int64_t integer_member(const Json& object, const char* key, int64_t smallest, const std::string& path);

}  // namespace llm
