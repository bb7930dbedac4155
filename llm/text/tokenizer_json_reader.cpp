#include "llm/text/tokenizer_json_reader.h"

#include "llm/base/json.h"

namespace llm {

const Json& JsonReader::list(const Json& object, const char* key) const {
  const Json& value = object[key];
  if (!value.is_array()) wrong("not a tokenizer.json, it has no proper \"", key, "\"");
  return value;
}

bool JsonReader::flag(const Json& object, const char* key, bool otherwise) const {
  const Json& value = object[key];
  if (value.is_null()) return otherwise;
  if (!value.is_boolean()) wrong("\"", key, "\" is not true or false");
  return value.get<bool>();
}

std::string JsonReader::text(const Json& object, const char* key) const {
  const Json& value = object[key];
  if (value.is_null()) return "";
  if (!value.is_string()) wrong("\"", key, "\" is not a string");
  return value.get<std::string>();
}

size_t JsonReader::count(const Json& object, const char* key, size_t otherwise) const {
  const Json& value = object[key];
  if (value.is_null()) return otherwise;
  if (!value.is_number_unsigned()) wrong("\"", key, "\" is not a count");
  return value.get<size_t>();
}

std::string JsonReader::type(const Json& object) const {
  return object.is_null() ? "" : object["type"].is_string() ? text(object, "type") : "?";
}

int32_t JsonReader::id(const Json& value, const std::string& of) const {
  if (!value.is_number_unsigned() || value.get<uint64_t>() >= static_cast<uint64_t>(kLargestVocabulary))
    wrong("the id of token ", shown(of), " is not a whole number below ", kLargestVocabulary);
  return value.get<int32_t>();
}

std::string JsonReader::shown(const std::string& text) { return llm::shown(text.substr(0, 100)); }

std::vector<const Json*> JsonReader::steps(const Json& object, const char* key) const {
  std::vector<const Json*> all;
  const auto add = [&](const Json& step, int depth, const auto& again) -> void {
    if (step.is_null()) return;
    if (type(step) != "Sequence") return all.push_back(&step);
    if (depth == 4) wrong("a Sequence in a Sequence, four times");
    for (const Json& part : list(step, key)) again(part, depth + 1, again);
  };
  add(object, 0, add);
  return all;
}

SplitPattern JsonReader::pattern(const Json& object) const {
  const Json& pattern = object["pattern"];
  if (!pattern["Regex"].is_string() && !pattern["String"].is_string()) wrong("a ", type(object), " has no pattern");
  return {pattern["Regex"].is_string() ? text(pattern, "Regex") : literal_pattern(text(pattern, "String")), path};
}

}  // namespace llm
