// The keys of a config.json, with errors that name the file, the key and what it holds.
#pragma once
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/names.h"

namespace llm {

// A JSON value for a message. A list or an object may be large or deep: only its kind is shown.
inline std::string described(const Json& value) {
  if (value.is_array() || value.is_object()) return value.is_array() ? "a list" : "an object";
  const std::string text = shown(value);
  return text.size() > 200 ? text.substr(0, 200) + "..." : text;
}

// The keys of a config.json. A key whose value is null counts as absent, as it does in transformers.
class Keys {
 public:
  Keys(const Json& values, const std::string& path) : values_(values), path_(path) {}

  bool has(const char* key) const { return !values_[key].is_null(); }
  bool says(const char* key) const { return values_.contains(key); }  // if only null
  const Json& at(const char* key) const {
    if (!has(key)) fail(path_, ": \"", key, "\" is missing");
    return values_[key];
  }
  const Json& at(const char* key, bool is_right, const char* expected) const {
    if (!is_right) fail(path_, ": \"", key, "\" is not ", expected, ": ", described(at(key)));
    return at(key);
  }

  int64_t count(const char* key, std::optional<int64_t> otherwise = {}) const {
    if (otherwise && !has(key)) return *otherwise;
    const Json& value = at(key);
    // Some writers print counts as 16.0.
    const double number = value.is_number() ? value.get<double>() : -1;
    at(key, number >= 0 && number < 0x1p48 && number == std::floor(number), "a count");
    return static_cast<int64_t>(number);
  }
  double number(const char* key, std::optional<double> otherwise = {}) const {
    return otherwise && !has(key) ? *otherwise : at(key, at(key).is_number(), "a number").get<double>();
  }
  std::vector<double> numbers(const char* key) const {
    std::vector<double> list;
    for (const Json& value : at(key, at(key).is_array(), "a list")) {
      at(key, value.is_number(), "a list of numbers");
      list.push_back(value.get<double>());
    }
    return list;
  }
  bool flag(const char* key, std::optional<bool> otherwise = {}) const {
    return otherwise && !has(key) ? *otherwise : at(key, at(key).is_boolean(), "true or false").get<bool>();
  }
  std::string text(const char* key, std::optional<std::string> otherwise = {}) const {
    return otherwise && !has(key) ? *otherwise : at(key, at(key).is_string(), "a string").get<std::string>();
  }
  template <HasNames Enum>
  Enum value(const char* key) const {
    const std::optional<Enum> found = find_value<Enum>(text(key));
    at(key, found.has_value(), "a value that it can have");
    return *found;
  }
  Keys object(const char* key) const { return Keys(at(key, at(key).is_object(), "an object"), path_); }

  // Throws Error unless the flag is absent or `value`, the only one that this model supports.
  void require(const char* key, bool value, const char* why) const {
    if (flag(key, value) != value) fail(path_, ": \"", key, "\": ", described(!value), " is not supported: ", why);
  }
  void require(const char* key, std::initializer_list<const char*> supported) const {
    const std::string value = text(key, *supported.begin());
    std::string known;
    for (const char* s : supported) {
      if (value == s) return;
      known += (known.empty() ? "" : ", ") + std::string(s);
    }
    fail(path_, ": \"", key, "\": ", described(value), " is not supported; supported: ", known);
  }
  const std::string& path() const { return path_; }

 private:
  const Json& values_;
  const std::string& path_;
};

}  // namespace llm
