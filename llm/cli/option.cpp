#include "llm/cli/option.h"

#include "llm/base/error.h"

namespace llm {

namespace {

constexpr char kNone[] = "auto";

}  // namespace

std::string NamedValue::text() const {
  const std::optional<size_t> index = index_(value_);
  return index ? names_[*index] : kNone;
}

std::string NamedValue::wrong(const std::string& text) const {
  if (find_name(names_, text) || (may_be_none_ && text == kNone)) return "";
  std::string known = may_be_none_ ? kNone : "";
  for (const char* name : names_) known += concat(known.empty() ? "" : ", ", name);
  return concat("\"", text, "\" is not known; known: ", known);
}

void NamedValue::set(const std::string& text) const { set_(value_, find_name(names_, text)); }

void append(Options& options, const Options& rows, const char* group) {
  for (Option row : rows) {
    if (*group) row.group = group;
    options.push_back(std::move(row));
  }
}

}  // namespace llm
