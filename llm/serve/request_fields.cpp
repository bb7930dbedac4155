#include "llm/serve/request_fields.h"

#include <cmath>

#include "llm/serve/api_error.h"

namespace llm {
namespace {

Json object_of(std::string_view body) {
  if (body.empty()) throw ApiError(400, "the request has no body; it must be a JSON object");
  Json json;
  try {
    json = parse_json(body, "the request's body", {.depth = 64});
  } catch (const Error& e) {
    throw ApiError(400, e.what(), "", "invalid_json");
  }
  if (!json.is_object()) throw ApiError(400, "the request's body is no JSON object", "", "invalid_json");
  return json;
}

}  // namespace

std::optional<int64_t> whole_number(const Json& value) {
  if (value.is_number_integer()) {
    if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return {};
    return value.get<int64_t>();
  }
  if (!value.is_number()) return {};
  const auto number = value.get<double>();
  if (number != std::floor(number) || std::abs(number) >= 0x1p62) return {};
  return static_cast<int64_t>(number);
}

void wrong_field(const std::string& field, const std::string& must_be, const Json& found) {
  std::string text = shown(found);
  constexpr size_t kLongest = 60;
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  throw ApiError(400, concat(field, " must be ", must_be, ", not ", text), field, "invalid_value");
}

RequestFields::RequestFields(std::string_view body) : fields_(object_of(body)) {}

const Json& RequestFields::need(const char* name) const {
  if (!has(name))
    throw ApiError(400, concat("the field \"", name, "\" is missing"), name, "missing_required_parameter");
  return fields_[name];
}

bool RequestFields::boolean(const char* name, bool otherwise) const {
  if (!has(name)) return otherwise;
  if (!fields_[name].is_boolean()) wrong_field(name, "true or false", fields_[name]);
  return fields_[name].get<bool>();
}

std::string RequestFields::text(const char* name, const std::string& otherwise) const {
  if (!has(name)) return otherwise;
  if (!fields_[name].is_string()) wrong_field(name, "a string", fields_[name]);
  return fields_[name].string();
}

std::optional<int64_t> RequestFields::integer(const char* name, int64_t least, int64_t most) const {
  if (!has(name)) return {};
  const std::optional<int64_t> value = whole_number(fields_[name]);
  if (!value || *value < least || *value > most)
    wrong_field(name,
                most == INT64_MAX
                    ? least == INT64_MIN ? "a whole number" : concat("a whole number, ", least, " or more")
                    : concat("a whole number from ", least, " to ", most),
                fields_[name]);
  return value;
}

double RequestFields::number(const char* name, double least, double most, double otherwise) const {
  if (!has(name)) return otherwise;
  const Json& value = fields_[name];
  if (!value.is_number() || value.get<double>() < least || value.get<double>() > most)
    wrong_field(name, concat("a number from ", least, " to ", most), value);
  return value.get<double>();
}

}  // namespace llm
