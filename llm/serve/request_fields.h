// The fields of a request's JSON object, read by name and checked. A field that is null counts as not there.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "llm/base/json.h"

namespace llm {

class RequestFields {
 public:
  // Throws ApiError for what is no JSON object.
  explicit RequestFields(std::string_view body);

  bool has(const char* name) const { return !fields_[name].is_null(); }
  const Json& operator[](const char* name) const { return fields_[name]; }
  const Json& need(const char* name) const;

  // Each throws ApiError that names the field, for another type and for what is out of range. A number with nothing
  // behind its point is a whole number.
  bool boolean(const char* name, bool otherwise) const;
  std::string text(const char* name, const std::string& otherwise = "") const;
  std::optional<int64_t> integer(const char* name, int64_t least, int64_t most) const;
  double number(const char* name, double least, double most, double otherwise) const;

 private:
  Json fields_;
};

// The whole number that a JSON number is; none: it is no such number, or too large.
std::optional<int64_t> whole_number(const Json& value);
// Throws ApiError "FIELD must be ..., not ...".
[[noreturn]] void wrong_field(const std::string& field, const std::string& must_be, const Json& found);

}  // namespace llm
