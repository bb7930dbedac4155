#include "llm/text/added_tokens.h"

#include <algorithm>
#include <cstring>

namespace llm {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& t) { return t.name.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.name.size() > b.name.size(); });
  for (const AddedToken& t : tokens_) begins_[static_cast<unsigned char>(t.name[0])] = true;
  if (std::count(begins_.begin(), begins_.end(), true) == 1)
    only_first_ = static_cast<int>(std::find(begins_.begin(), begins_.end(), true) - begins_.begin());
}

AddedTokens::Found AddedTokens::find(std::string_view text, size_t from, bool special) const {
  if (tokens_.empty()) return {};
  for (size_t at = from; at < text.size(); ++at) {
    if (only_first_ >= 0) {
      const void* found = std::memchr(text.data() + at, only_first_, text.size() - at);
      if (!found) return {};
      at = static_cast<size_t>(static_cast<const char*>(found) - text.data());
    } else if (!begins_[static_cast<unsigned char>(text[at])]) {
      continue;
    }
    for (const AddedToken& t : tokens_) {
      if ((t.special && !special) || text.compare(at, t.name.size(), t.name) != 0) continue;
      Found found{at, at + t.name.size(), &t};
      while (t.strip_left && found.begin > from && is_space(text[found.begin - 1])) --found.begin;
      while (t.strip_right && found.end < text.size() && is_space(text[found.end])) ++found.end;
      return found;
    }
  }
  return {};
}

bool AddedTokens::straddles(std::string_view text, size_t at) const {
  for (const AddedToken& t : tokens_) {
    const size_t reach = t.name.size() - 1, begin = at > reach ? at - reach : 0;
    if (text.substr(begin, at + reach - begin).find(t.name) != text.npos) return true;
  }
  return false;
}

int32_t AddedTokens::id_of(std::string_view name) const {
  for (const AddedToken& t : tokens_)
    if (t.name == name) return t.id;
  return -1;
}

}  // namespace llm
