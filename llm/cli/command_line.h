// From the words of a command line to the function that does what they say.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "llm/cli/option.h"

namespace llm {

struct CommandLine {
  const char *name, *summary, *footer;   // for --help
  std::function<std::string()> version;  // for --version
  std::function<void()> prepare;         // comes first; what it throws is told as a command's errors are
  std::vector<Command> commands;
};

// Runs the command that is named. Returns the exit status: 2 for a wrong command line and for UsageError, 1 for any other
// failure, after one line on standard error that says what was wrong.
int run_command_line(const CommandLine& line, int argc, char** argv);

}  // namespace llm
