#include "llm/text/nfc.h"

#include <algorithm>
#include <iterator>
#include <unordered_map>
#include <vector>

#include "llm/text/nfc_table.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

// Hangul syllables are composed by arithmetic (The Unicode Standard, section 3.12).
constexpr uint32_t kSyllable = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
constexpr uint32_t kLeads = 19, kVowels = 21, kTails = 28, kSyllables = kLeads * kVowels * kTails;

uint8_t combining_class(uint32_t code) {
  if (code < 0x300) return 0;
  const auto* found = std::lower_bound(std::begin(kCombiningClasses), std::end(kCombiningClasses), code,
                                       [](const CombiningClass& c, uint32_t value) { return c.last < value; });
  return found != std::end(kCombiningClasses) && found->first <= code ? found->value : 0;
}

void decompose(uint32_t code, std::vector<uint32_t>& out) {
  if (code - kSyllable < kSyllables) {
    const uint32_t index = code - kSyllable;
    out.push_back(kLead + index / (kVowels * kTails));
    out.push_back(kVowel + index % (kVowels * kTails) / kTails);
    if (index % kTails) out.push_back(kTail + index % kTails);
    return;
  }
  const auto* found = code < 0xC0
                          ? std::end(kDecompositions)
                          : std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code,
                                             [](const Decomposition& d, uint32_t value) { return d.code < value; });
  if (found == std::end(kDecompositions) || found->code != code) return out.push_back(code);
  decompose(found->first, out);
  if (found->second) decompose(found->second, out);
}

// The character that the two make up, 0: none.
uint32_t compose(uint32_t first, uint32_t second) {
  if (first - kLead < kLeads && second - kVowel < kVowels)
    return kSyllable + ((first - kLead) * kVowels + (second - kVowel)) * kTails;
  if (first - kSyllable < kSyllables && (first - kSyllable) % kTails == 0 && second - kTail - 1 < kTails - 1)
    return first + (second - kTail);
  static const auto pairs = [] {
    std::unordered_map<uint64_t, uint32_t> map;
    for (const Decomposition& d : kDecompositions)
      if (d.composes) map.emplace(uint64_t{d.first} << 32 | d.second, d.code);
    return map;
  }();
  const auto found = pairs.find(uint64_t{first} << 32 | second);
  return found == pairs.end() ? 0 : found->second;
}

// A stretch of characters that ends before a starter, or with the text.
void compose_stretch(std::vector<uint32_t>& codes, std::string& out) {
  // Canonical order: marks by their class, each run of them for itself.
  for (size_t begin = 0; begin < codes.size();) {
    size_t end = begin;
    while (end < codes.size() && combining_class(codes[end])) ++end;
    std::stable_sort(codes.begin() + static_cast<std::ptrdiff_t>(begin),
                     codes.begin() + static_cast<std::ptrdiff_t>(end),
                     [](uint32_t a, uint32_t b) { return combining_class(a) < combining_class(b); });
    begin = end + 1;
  }
  size_t starter = codes.size(), kept = 0;
  uint8_t last = 0;  // the class of the character kept last after the starter
  for (size_t i = 0; i < codes.size(); ++i) {
    const uint8_t now = combining_class(codes[i]);
    const bool adjacent = kept > 0 && starter == kept - 1;
    if (starter < codes.size() && (adjacent || last < now)) {
      if (const uint32_t joined = compose(codes[starter], codes[i]); joined && (adjacent || last != 0)) {
        codes[starter] = joined;
        continue;
      }
    }
    if (now == 0) starter = kept;
    last = now;
    codes[kept++] = codes[i];
  }
  for (size_t i = 0; i < kept; ++i) append_utf8(codes[i], out);
  codes.clear();
}

}  // namespace

std::string nfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  std::vector<uint32_t> codes;
  while (!text.empty()) {
    // Below U+0300 nothing changes, unless a mark follows.
    const size_t length = utf8_length(text);
    if (length == 0) {
      compose_stretch(codes, out);
      out += text[0];
      text.remove_prefix(1);
      continue;
    }
    const uint32_t code = utf8_code(text, length);
    // An ASCII character can begin a composition, but never end one.
    if (code < 0x80 && !codes.empty()) compose_stretch(codes, out);
    decompose(code, codes);
    text.remove_prefix(length);
  }
  compose_stretch(codes, out);
  return out;
}

}  // namespace llm
