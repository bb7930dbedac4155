#include "llm/cli/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <new>

#include "llm/base/bytes.h"
#include "llm/base/error.h"

namespace llm {
namespace {

// What is wrong with a number, as the parser's checks say it; empty: nothing. That it is one is checked here, too: the
// parser itself would come later, and with fewer words.
template <class Number>
std::string wrong_number(const std::string& text, const Option& option) {
  Number value = 0;
  constexpr bool whole = std::is_integral_v<Number>;
  if (!CLI::detail::lexical_cast(text, value) || !std::isfinite(static_cast<double>(value)))
    return concat("must be a ", whole ? "whole " : "", "number, not ", text);
  const auto number = static_cast<double>(value);
  if (number >= option.low && number <= option.high) return "";
  const auto said = [](double bound) {
    return bound == std::floor(bound) && std::fabs(bound) < 0x1p53 ? std::to_string(static_cast<int64_t>(bound))
                                                                   : concat(bound);
  };
  if (option.high == kNoLimit && number < option.low)
    return concat("must be ", said(option.low), " or more, not ", text);
  return concat("must be from ", said(option.low), " to ", said(option.high), ", not ", text);
}

CLI::Option* add(CLI::App& app, const Option& option, bool*& value) {
  return app.add_flag(option.name, *value, option.help);
}

CLI::Option* add(CLI::App& app, const Option& option, std::optional<bool>*& value) {
  return app.add_flag_function(
      option.name, [value](int64_t count) { *value = count > 0; }, option.help);
}

CLI::Option* add(CLI::App& app, const Option& option, MemorySize& value) {
  CLI::Option* added = app.add_option_function<std::string>(
      option.name, [bytes = value.bytes](const std::string& text) { *bytes = parse_bytes(text); }, option.help);
  added->check([](const std::string& text) {
    try {
      parse_bytes(text);
      return std::string();
    } catch (const Error& e) {
      return std::string(e.what());
    }
  });
  return added;
}

CLI::Option* add(CLI::App& app, const Option& option, NamedValue& value) {
  CLI::Option* added = app.add_option_function<std::string>(
      option.name, [value](const std::string& text) { value.set(text); }, option.help);
  added->check([value](const std::string& text) { return value.wrong(text); });
  if (option.shows_default) added->default_str(value.text());
  return added;
}

// A text whose value may be left out, "--flag{value without one}", takes one only behind "=".
CLI::Option* add(CLI::App& app, const Option& option, std::string*& value) {
  return option.name.ends_with('}') ? app.add_flag(option.name, *value, option.help)
                                    : app.add_option(option.name, *value, option.help);
}

template <class Value>
CLI::Option* add(CLI::App& app, const Option& option, Value*& value) {
  CLI::Option* added = app.add_option(option.name, *value, option.help);
  if constexpr (std::is_arithmetic_v<Value>)
    added->check([&option](const std::string& text) { return wrong_number<Value>(text, option); });
  return added;
}

CLI::Option* add(CLI::App& app, const Option& option) {
  CLI::Option* added = std::visit([&](auto value) { return add(app, option, value); }, option.value);
  if (!option.choices.empty()) added->check(CLI::IsMember(option.choices));
  if (!option.group.empty()) added->group(option.group);
  if (option.shows_default && !std::holds_alternative<NamedValue>(option.value)) added->capture_default_str();
  if (option.required) added->required();
  if (!option.excluded.empty()) added->excludes(app.get_option(option.excluded));
  return added;
}

void add(CLI::App& app, const Command& command) {
  CLI::App* added = app.add_subcommand(command.name, command.summary);
  for (const Option& option : command.options)
    if (option.is_flag) add(*added, option);
  added->footer(command.footer);
  added->callback([added, run = command.run] {
    Given given;
    for (const CLI::Option* option : added->get_options())
      if (option->count()) given.insert(option->get_name());
    run(given);
  });
}

// The message of a value that is wrong, with the flag in place of its name where the command has one.
std::string message_of(const UsageError& error, const CLI::App& app) {
  std::string flag = "--" + error.value;
  std::replace(flag.begin(), flag.end(), ' ', '-');
  const auto commands = app.get_subcommands();
  const bool has_flag = !error.value.empty() && !commands.empty() && commands[0]->get_option_no_throw(flag);
  return has_flag ? flag + std::string(error.what()).substr(error.value.size()) : error.what();
}

}  // namespace

int run_command_line(const CommandLine& line, int argc, char** argv) {
  const auto failed = [](int status, const std::string& why) {
    std::cerr << "train_gpt: " << why << "\n";
    return status;
  };
  CLI::App app(line.summary, line.name);
  app.set_version_flag("--version", line.version);
  app.require_subcommand(1);
  app.footer(line.footer);
  try {
    line.prepare();
    for (const Command& command : line.commands) add(app, command);
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help, --version
    return failed(2, std::string(e.what()) + " (see train_gpt --help)");
  } catch (const LostRank& e) {
    return e.status;  // the other rank says it
  } catch (const UsageError& e) {
    return failed(2, message_of(e, app));
  } catch (const std::bad_alloc&) {
    return failed(1, "out of memory; lower --batch or choose a smaller model");
  } catch (const std::exception& e) {
    return failed(1, e.what());
  }
}

}  // namespace llm
