#include "llm/text/added_tokens.h"

#include <algorithm>
#include <cstring>

#include "llm/text/normalizer.h"
#include "llm/text/pre_tokenizer.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

// The last character before `end`, and the first one at `begin`; empty at the ends of the text.
std::string_view character_before(std::string_view text, size_t end) {
  const std::string_view before = text.substr(end - std::min<size_t>(end, 4), std::min<size_t>(end, 4));
  return before.empty() ? before : before.substr(last_character(before));
}
std::string_view character_at(std::string_view text, size_t begin) {
  return text.substr(begin, std::max<size_t>(1, utf8_length(text.substr(begin))));
}

bool is_space(std::string_view character) {
  return !character.empty() && utf8_length(character) == character.size() &&
         is_white_space(utf8_code(character, character.size()));
}

bool is_word(std::string_view character) {
  static const SplitPattern pattern(kWordPattern, "a word's character");
  if (character.empty() || utf8_length(character) != character.size()) return false;
  SplitPattern::Matcher matcher(pattern);
  matcher.start(character);
  size_t begin, end;
  return matcher.next(begin, end);
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens, std::vector<std::string> names)
    : tokens_(std::move(tokens)), names_(std::move(names)), map_({names_.begin(), names_.end()}) {
  for (const std::string& name : names_) {
    if (name.empty()) continue;
    std::vector<size_t>& lengths = lengths_[static_cast<unsigned char>(name[0])];
    if (std::find(lengths.begin(), lengths.end(), name.size()) == lengths.end()) lengths.push_back(name.size());
  }
  for (std::vector<size_t>& lengths : lengths_) std::sort(lengths.rbegin(), lengths.rend());
  const auto begins = [](const std::vector<size_t>& lengths) { return !lengths.empty(); };
  if (std::count_if(lengths_.begin(), lengths_.end(), begins) == 1)
    only_first_ = static_cast<int>(std::find_if(lengths_.begin(), lengths_.end(), begins) - lengths_.begin());
}

int32_t AddedTokenFinder::match(std::string_view text, size_t at) const {
  for (const size_t length : lengths_[static_cast<unsigned char>(text[at])]) {
    if (length > text.size() - at) continue;
    if (const int32_t found = map_.find(text.substr(at, length)); found >= 0) return found;
  }
  return -1;
}

size_t AddedTokenFinder::next_candidate(std::string_view text, size_t from) const {
  if (only_first_ >= 0 && from < text.size()) {
    const void* found = std::memchr(text.data() + from, only_first_, text.size() - from);
    return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : text.size();
  }
  while (from < text.size() && lengths_[static_cast<unsigned char>(text[from])].empty()) ++from;
  return from;
}

void AddedTokenFinder::split(std::string_view text, bool special, const Take& take) const {
  size_t done = 0;
  if (!empty()) {
    for (size_t at = next_candidate(text, 0); at < text.size(); at = next_candidate(text, at)) {
      const int32_t found = match(text, at);
      if (found < 0) {
        ++at;
        continue;
      }
      // A name that does not count is passed over as a whole, as `tokenizers` does.
      const AddedToken& token = tokens_[static_cast<size_t>(found)];
      size_t begin = at, end = at += names_[static_cast<size_t>(found)].size();
      if ((token.special && !special) ||
          (token.single_word && (is_word(character_before(text, begin)) || is_word(character_at(text, end)))))
        continue;
      for (std::string_view c; token.strip_left && begin > done && is_space(c = character_before(text, begin));)
        begin = std::max(done, begin - c.size());
      for (std::string_view c; token.strip_right && is_space(c = character_at(text, end));) end += c.size();
      if (begin > done) take(text.substr(done, begin - done), nullptr);
      take(text.substr(begin, end - begin), &token);
      done = end;
    }
  }
  if (done < text.size()) take(text.substr(done), nullptr);
}

bool AddedTokenFinder::straddles(std::string_view text, size_t at) const {
  for (const std::string& name : names_) {
    if (name.size() < 2) continue;
    const size_t reach = name.size() - 1, begin = at > reach ? at - reach : 0;
    if (text.substr(begin, at + reach - begin).find(name) != text.npos) return true;
  }
  return false;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens,
                         const std::function<std::string(const std::string&)>& normalize)
    : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& t) { return t.name.empty(); });
  std::vector<AddedToken> plain, normalized;
  std::vector<std::string> plain_names, normalized_names;
  for (const AddedToken& t : tokens_) {
    (t.normalized ? normalized : plain).push_back(t);
    if (t.normalized) {
      normalized_names.push_back(normalize ? normalize(t.name) : t.name);
    } else {
      plain_names.push_back(t.name);
    }
  }
  in_text_ = AddedTokenFinder(std::move(plain), std::move(plain_names));
  in_normalized_ = AddedTokenFinder(std::move(normalized), std::move(normalized_names));
}

int32_t AddedTokens::id_of(std::string_view name) const {
  for (const AddedToken& t : tokens_)
    if (t.name == name) return t.id;
  return -1;
}

}  // namespace llm
