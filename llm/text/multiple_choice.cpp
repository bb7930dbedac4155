#include "llm/text/multiple_choice.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/mapped_file.h"

namespace llm {

Choice parse_choice(std::string_view line, const std::string& where) {
  const Json j = json_or_null(line);
  if (line.starts_with("\x1F\x8B")) fail(where, ": packed by gzip; unpack it: gunzip FILE");
  if (line.starts_with('['))
    fail(where, ": a JSON list, not a JSON object a line; unpack it: jq -c '.[]' FILE > TASKS");
  if (!j.is_object()) fail(where, ": not a JSON object in UTF-8");
  for (const char* key : {"ctx", "endings", "label"})
    if (!j.contains(key)) fail(where, ": no \"", key, "\"");
  if (!j["ctx"].is_string()) fail(where, ": \"ctx\" is not a string");
  if (!j["endings"].is_array() || j["endings"].size() < 2) fail(where, ": \"endings\" is not a list of two or more");
  Choice choice{.context = j["ctx"].get<std::string>(), .endings = {}};
  for (const Json& ending : j["endings"]) {
    if (!ending.is_string() || ending.string().empty()) fail(where, ": an ending is not a string, or empty");
    choice.endings.push_back(ending.get<std::string>());
  }
  // Some copies have the label as a string.
  choice.label = -1;
  if (j["label"].is_number()) {
    const double label = j["label"].get<double>();
    if (label == std::floor(label) && std::fabs(label) < 0x1p53) choice.label = static_cast<int64_t>(label);
  } else if (j["label"].is_string()) {
    const std::string& text = j["label"].string();
    std::from_chars(text.data(), text.data() + text.size(), choice.label);
  }
  if (choice.label < 0 || choice.label >= static_cast<int64_t>(choice.endings.size()))
    fail(where, ": \"label\" is not the number of an ending, 0 to ", choice.endings.size() - 1);
  return choice;
}

std::vector<Choice> read_choices(const std::string& path) {
  const MappedFile file(path);
  std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  std::vector<Choice> choices;
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(text.size(), end + 1));
    if (line.find_first_not_of(" \t\r") != line.npos)
      choices.push_back(parse_choice(line, concat(path, ": line ", number)));
  }
  if (choices.empty()) fail(path, ": no multiple-choice task in it, it is empty");
  return choices;
}

}  // namespace llm
