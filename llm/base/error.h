// Errors travel as exceptions up to main(), which prints one line: what was wrong, where, what would help.
#pragma once
#include <concepts>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace llm {

// A failure of what was asked for: exit status 1.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Another rank of the run has failed, and with it what this rank was doing. That rank says why; `status` is its exit
// status.
struct LostRank : Error {
  explicit LostRank(const std::string& message, int exit_status = 1) : Error(message), status(exit_status) {}
  int status;
};

// A wrong command line, or a value that cannot be meant: exit status 2. `value` is the name of the value that is wrong,
// with which the message then begins; a command line puts its flag there.
struct UsageError : Error {
  explicit UsageError(const std::string& message, std::string value_name = "")
      : Error(message), value(std::move(value_name)) {}
  std::string value;
};

// Text or a number in a message. (Not a stream: each message would be a long function of its own.)
class Part {
 public:
  Part(const char* text) : text_(text) {}
  Part(std::string_view text) : text_(text) {}
  Part(const std::string& text) : text_(text) {}
  Part(char character) : Part(static_cast<long long>(character), Kind::character) {}
  Part(double number) : kind_(Kind::real), real_(number) {}
  template <std::integral Integer>
  Part(Integer number)
      : Part(static_cast<long long>(number), std::unsigned_integral<Integer> ? Kind::count : Kind::integer) {}
  void append_to(std::string& message) const;

 private:
  enum class Kind { text, character, integer, count, real };
  Part(long long integer, Kind kind) : kind_(kind), integer_(integer) {}

  Kind kind_ = Kind::text;
  std::string_view text_;
  long long integer_ = 0;
  double real_ = 0;
};

std::string join(std::initializer_list<Part> parts);
[[noreturn]] void throw_error(std::initializer_list<Part> parts);
[[noreturn]] void throw_usage_error(std::initializer_list<Part> parts, const char* value = "");

template <class... Parts>
std::string concat(const Parts&... parts) {
  return join({Part(parts)...});
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw_error({Part(parts)...});
}

template <class... Parts>
[[noreturn]] void fail_usage(const Parts&... parts) {
  throw_usage_error({Part(parts)...});
}

// "VALUE ...": fail_value("head size", " cannot be ", size).
template <class... Parts>
[[noreturn]] void fail_value(const char* value, const Parts&... parts) {
  throw_usage_error({Part(value), Part(parts)...}, value);
}

}  // namespace llm
