#include "llm/base/bytes.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <string_view>

#include "llm/base/error.h"

namespace llm {
namespace {

// Not std::tolower, which depends on the locale.
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// The number of bytes in a unit, in lower case; 0 for an unknown unit.
double factor_of(std::string_view unit) {
  if (unit.empty() || unit == "b") return 1;
  const size_t power = std::string_view("kmgt").find(unit[0]) + 1;  // npos + 1 is 0
  if (power == 0) return 0;
  if (unit.substr(1) == "ib") return std::pow(1024.0, static_cast<double>(power));
  if (unit.substr(1) == "b") return std::pow(1000.0, static_cast<double>(power));
  return 0;
}

}  // namespace

size_t parse_bytes(const std::string& text) {
  constexpr char kHelp[] = " is not a size; write one like 20GiB, 512MiB or 1.5GB";
  double number = 0;
  const char *begin = text.data(), *end = begin + text.size();
  // No exponents: "1e9GiB" is more likely a slip than meant.
  const auto [after, error] = std::from_chars(begin, end, number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(number) || std::signbit(number)) fail_usage("\"", text, "\"", kHelp);
  std::string unit;
  for (const char* c = after; c != end; ++c)
    if (*c != ' ') unit += lower(*c);
  const double factor = factor_of(unit);
  if (factor == 0) fail_usage("\"", text, "\"", kHelp);
  const double bytes = std::floor(number * factor);
  if (bytes >= 0x1p63) fail_usage("\"", text, "\" is more than any machine's memory");
  return static_cast<size_t>(bytes);
}

std::string format_bytes(size_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto number = static_cast<double>(bytes);
  size_t unit = 0;
  for (; number >= 1024 && unit + 1 < std::size(kUnits); ++unit) number /= 1024;
  const int digits = unit == 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  char out[64];
  std::snprintf(out, sizeof out, "%.*f %s", digits, number, kUnits[unit]);
  return out;
}

}  // namespace llm
