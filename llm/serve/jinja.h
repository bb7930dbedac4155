// The part of the Jinja template language that chat templates use, as jinja2 renders it with transformers' settings
// (trim_blocks, lstrip_blocks, break and continue, {% generation %}). What Jinja has beyond it is refused by its name. A
// template comes from somebody else's files: it can reach nothing but the values it is given, and its work is limited.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llm/base/error.h"
#include "llm/serve/jinja_syntax.h"
#include "llm/serve/jinja_value.h"

namespace llm::jinja {

class Template {
 public:
  // Throws Error "line N: ...".
  explicit Template(std::string_view source);

  // Variables by name. The functions raise_exception, strftime_now, range, namespace and dict are there, too;
  // strftime_now(format) calls `time_text`. Throws Error: "line N: ...", or what the template handed to
  // raise_exception.
  using TimeText = std::function<std::string(const std::string& format)>;
  std::string render(std::vector<std::pair<std::string, Value>> variables, const TimeText& time_text,
                     const Limits& limits = {}) const;

 private:
  Statements statements_;
};

// An error that the template itself raised, for the person who wrote the messages.
struct Raised : Error {
  using Error::Error;
};

}  // namespace llm::jinja
