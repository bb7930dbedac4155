// A command line as data: one table of options for each subcommand. What a flag is called, where its value goes, what it
// may be and how --help explains it stand in one row; the parser (command_line.cpp) and the files that keep a run's settings
// (settings.cpp) read the same rows.
#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "llm/base/names.h"

namespace llm {

// An enum, by the name of its value. One that may be none is given as "auto".
class NamedValue {
 public:
  template <HasNames Enum>
  NamedValue(Enum* value)
      : names_(kNames<Enum>),
        value_(value),
        index_([](const void* from) { return std::optional(static_cast<size_t>(*static_cast<const Enum*>(from))); }),
        set_([](void* to, std::optional<size_t> index) { *static_cast<Enum*>(to) = static_cast<Enum>(*index); }) {}
  template <HasNames Enum>
  NamedValue(std::optional<Enum>* value)
      : names_(kNames<Enum>),
        may_be_none_(true),
        value_(value),
        index_([](const void* from) {
          const auto& held = *static_cast<const std::optional<Enum>*>(from);
          return held ? std::optional(static_cast<size_t>(*held)) : std::nullopt;
        }),
        set_([](void* to, std::optional<size_t> index) {
          auto& held = *static_cast<std::optional<Enum>*>(to);
          index ? held = static_cast<Enum>(*index) : held = std::nullopt;
        }) {}

  std::string text() const;                     // "auto" for none
  std::string wrong(const std::string&) const;  // why this cannot be its text; empty: it can
  void set(const std::string& text) const;      // which it can be

 private:
  std::span<const char* const> names_;
  bool may_be_none_ = false;
  void* value_;
  std::optional<size_t> (*index_)(const void*);
  void (*set_)(void*, std::optional<size_t>);
};

// Bytes, as "20GiB"; in files a number.
struct MemorySize {
  uint64_t* bytes;
};

// Where a value goes. A bool is a flag without a value.
using OptionValue = std::variant<bool*, std::optional<bool>*, int*, int64_t*, uint64_t*, double*, std::string*,
                                 std::vector<std::string>*, MemorySize, NamedValue>;

// What no count of anything reaches.
inline constexpr double kNoLimit = 0x1p50;

// A row. Its functions add to it what few rows have: Option("--steps", &o.steps, "Optimizer steps").between(1, 100).
struct Option {
  // `flag`: "--flag", "--flag,!--no-flag" for one that can be said either way, "--flag{text}" for a text that is "text"
  // where the flag is given alone and another by "--flag=other", or a positional argument's "NAME".
  Option(const char* flag, OptionValue place, std::string text) : name(flag), value(place), help(std::move(text)) {}

  // Numbers in [least, most]. (That a number is finite is always checked.)
  Option between(double least, double most) && { return low = least, high = most, std::move(*this); }
  Option at_least(double least) && { return low = least, high = kNoLimit, std::move(*this); }
  // One of these texts.
  Option among(std::vector<std::string> texts) && { return choices = std::move(texts), std::move(*this); }
  // --help shows the value that it has before the command line is read.
  Option with_default() && { return shows_default = true, std::move(*this); }
  Option needed() && { return required = true, std::move(*this); }
  Option not_with(const char* flag) && { return excluded = flag, std::move(*this); }

  // Of a run's settings: resuming the run may change it.
  Option for_a_resume() && { return may_change = true, std::move(*this); }
  // Its value in files of runs from before there was a choice.
  Option once(const char* text) && { return before = text, std::move(*this); }
  // Its key in files, where that is not the flag's name.
  Option kept_as(const char* name_in_files) && { return key = name_in_files, std::move(*this); }
  // Only in files: no flag of its own.
  Option without_flag() && { return is_flag = false, std::move(*this); }

  std::string name;
  OptionValue value;
  std::string help;
  std::string group;  // its heading in --help; empty: none
  double low = std::numeric_limits<double>::lowest(), high = std::numeric_limits<double>::max();
  std::vector<std::string> choices;
  std::string excluded, key;
  std::optional<std::string> before;
  bool shows_default = false, required = false, may_change = false, is_flag = true;
};
using Options = std::vector<Option>;

// Appends `rows` under the heading `group`.
void append(Options& options, const Options& rows, const char* group = "");

// The names of the options that a command line gave.
using Given = std::set<std::string>;

struct Command {
  const char *name, *summary;
  Options options;
  std::string footer;  // of --help
  std::function<void(const Given&)> run;
};

}  // namespace llm
