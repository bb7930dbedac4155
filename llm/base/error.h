// Errors travel as exceptions up to main(), which prints one line: what was wrong, where, what would help.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace llm {

// A failure of what was asked for: exit status 1.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A wrong command line, or a value that cannot be meant: exit status 2.
struct UsageError : Error {
  using Error::Error;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(concat(parts...));
}

template <class... Parts>
[[noreturn]] void fail_usage(const Parts&... parts) {
  throw UsageError(concat(parts...));
}

}  // namespace llm
