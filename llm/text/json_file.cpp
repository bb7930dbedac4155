#include "llm/text/json_file.h"

#include <nlohmann/json.hpp>

#include "llm/base/error.h"
#include "llm/base/mapped_file.h"

namespace llm {

nlohmann::json read_json(const std::string& path) {
  const MappedFile file(path);
  const char* text = reinterpret_cast<const char*>(file.bytes().data());
  const size_t size = file.bytes().size();
  if (size == 0) fail(path, ": not JSON, the file is empty");
  try {
    return nlohmann::json::parse(text, text + size);
  } catch (const nlohmann::json::parse_error& error) {
    fail(path, ": not JSON in UTF-8, wrong at byte ", error.byte, " of ", size);
  } catch (const nlohmann::json::exception&) {
    fail(path, ": not JSON, a number is out of range");
  }
}

int64_t integer_member(const nlohmann::json& object, const char* key, int64_t smallest, const std::string& path) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  // Numbers of 2^63 and more come out negative.
  if (found == object.end() || !found->is_number_integer() || found->get<int64_t>() < smallest)
    fail(path, ": no \"", key, "\" that is a whole number, ", smallest, " or more");
  return found->get<int64_t>();
}

std::string json_text(const nlohmann::json& value) {
  return value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace llm
