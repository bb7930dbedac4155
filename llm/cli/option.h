// A command line as data: one table of options for each subcommand. What a flag is called, where its value goes, what it
// may be and how --help explains it stand in one row; the parser (command_line.cpp) and a run's settings (settings.cpp) read
// the same rows.
#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace llm {

// Where a value goes. A bool is a flag without a value.
using OptionValue = std::variant<bool*, std::optional<bool>*, int*, int64_t*, uint64_t*, double*, std::string*,
                                 std::vector<std::string>*>;

// What no count of anything reaches.
inline constexpr double kNoLimit = 0x1p50;

// A row. Its functions add to it what few rows have: Option("--steps", &o.steps, "Optimizer steps").between(1, 100).
struct Option {
  // `name`: "--flag", "--flag,!--no-flag" for one that can be said either way, or a positional argument's "NAME".
  Option(const char* name, OptionValue value, std::string help) : name(name), value(value), help(std::move(help)) {}

  // Numbers in [low, high]. (That a number is finite is always checked.)
  Option between(double least, double most) && { return low = least, high = most, std::move(*this); }
  Option at_least(double least) && { return low = least, high = kNoLimit, std::move(*this); }
  // One of these texts.
  Option among(std::vector<std::string> texts) && { return choices = std::move(texts), std::move(*this); }
  // --help shows the value that it has before the command line is read.
  Option with_default() && { return shows_default = true, std::move(*this); }
  Option needed() && { return required = true, std::move(*this); }
  Option not_with(const char* flag) && { return excluded = flag, std::move(*this); }

  std::string name;
  OptionValue value;
  std::string help;
  std::string group;  // its heading in --help; empty: none
  double low = std::numeric_limits<double>::lowest(), high = std::numeric_limits<double>::max();
  std::vector<std::string> choices;
  bool shows_default = false, required = false;
  std::string excluded;
};
using Options = std::vector<Option>;

// Appends `rows` under the heading `group`.
inline void append(Options& options, const Options& rows, const char* group = "") {
  for (Option row : rows) {
    if (*group) row.group = group;
    options.push_back(std::move(row));
  }
}

// The names of the options that a command line gave.
using Given = std::set<std::string>;

struct Command {
  const char *name, *summary;
  Options options;
  std::string footer;  // of --help
  std::function<void(const Given&)> run;
};

}  // namespace llm
