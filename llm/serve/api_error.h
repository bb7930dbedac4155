// What a client is told when a request cannot be answered, in the form of OpenAI's API:
// {"error": {"message", "type", "param", "code"}}.
#pragma once
#include <string>

#include "llm/base/error.h"
#include "llm/base/json.h"

namespace llm {

struct ApiError : Error {
  // `parameter`: the request's field that is wrong; empty: none. `name`: a word for programs; empty: none.
  ApiError(int http_status, const std::string& message, std::string parameter = "", std::string name = "")
      : Error(message), status(http_status), param(std::move(parameter)), code(std::move(name)) {}

  Json json() const {
    const auto or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
    const char* type = status == 401   ? "authentication_error"
                       : status == 429 ? "rate_limit_error"
                       : status >= 500 ? "server_error"
                                       : "invalid_request_error";
    return {{"error",
             {{"message", valid_text(what())}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}};
  }

  int status;
  std::string param, code;

 private:
  // A message may quote bytes of the request.
  static std::string valid_text(const std::string& text);
};

}  // namespace llm
