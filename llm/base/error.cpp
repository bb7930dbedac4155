#include "llm/base/error.h"

#include <cstdio>

namespace llm {

void Part::append_to(std::string& message) const {
  switch (kind_) {
    case Kind::text: message += text_; break;
    case Kind::character: message += static_cast<char>(integer_); break;
    case Kind::integer: message += std::to_string(integer_); break;
    case Kind::count: message += std::to_string(static_cast<unsigned long long>(integer_)); break;
    case Kind::real: {
      char digits[32];
      std::snprintf(digits, sizeof digits, "%g", real_);
      message += digits;
    }
  }
}

std::string join(std::initializer_list<Part> parts) {
  std::string message;
  for (const Part& part : parts) part.append_to(message);
  return message;
}

void throw_error(std::initializer_list<Part> parts) { throw Error(join(parts)); }
void throw_usage_error(std::initializer_list<Part> parts, const char* value) { throw UsageError(join(parts), value); }

}  // namespace llm
