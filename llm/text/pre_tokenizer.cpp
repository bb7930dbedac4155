#include "llm/text/pre_tokenizer.h"

#include <algorithm>

#include "llm/text/byte_level.h"
#include "llm/text/utf8.h"

namespace llm {

// Oniguruma's \w has Latin-1's raised digits and fractions and lacks the two joiners; Rust's is the other way round.
#define WORD R"([\w\x{200c}\x{200d}&&[^\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}]])"
const char kWordPattern[] = WORD;
const char kWhitespacePattern[] = WORD R"(+|[^\w\s\x{200c}\x{200d}]+|[\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}]+)";
#undef WORD
// The library's table is Unicode 8's: what was added later, and two marks that have changed sides, are listed.
const char kPunctuationPattern[] =
    R"([!-/:-@\[-`{-~\x{166d}\x{111c9}[\p{P}&&[^\x{61d}\x{9fd}\x{a76}\x{c77}\x{c84}\x{1b4e}\x{1b4f}\x{1b7d}-\x{1b7f})"
    R"(\x{2e43}-\x{2e4f}\x{2e52}-\x{2e5d}\x{10d6e}\x{10ead}\x{10f55}-\x{10f59}\x{10f86}-\x{10f89}\x{113d4}-\x{113d8})"
    R"(\x{1144b}-\x{1144f}\x{1145a}-\x{1145d}\x{11660}-\x{1166c}\x{116b9}\x{1183b}\x{11944}-\x{11946}\x{119e2})"
    R"(\x{11a3f}-\x{11a46}\x{11a9a}-\x{11aa2}\x{11b00}-\x{11b09}\x{11be1}\x{11c41}-\x{11c45}\x{11c70}\x{11c71})"
    R"(\x{11ef7}\x{11ef8}\x{11f43}-\x{11f4f}\x{11fff}\x{12ff1}\x{12ff2}\x{16d6d}-\x{16d6f}\x{16e97}-\x{16e9a}\x{16fe2})"
    R"(\x{1e5ff}\x{1e95e}\x{1e95f}]]])";
// Unicode 17's as well.
const char kDigitPattern[] = R"([\p{N}\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}])";

std::string PreTokenizer::changed(std::string_view text, bool first) const {
  std::string out = blank == " " ? std::string(text) : with_replaced(text, " ", blank);
  if (!prefix.empty() && (first || !prefix_first_only) && !out.starts_with(prefix)) out.insert(0, prefix);
  return byte_characters ? characters_of_bytes(out) : out;
}

namespace {

struct Part {
  size_t begin, end;
  bool match;
};

// All of `text`, cut before and behind each match. A match of no length is a part, too.
std::vector<Part> parts_of(SplitPattern::Matcher& matcher, std::string_view text, bool invert) {
  std::vector<Part> parts;
  size_t done = 0;
  matcher.start(text);
  for (size_t begin, end; matcher.next(begin, end); done = end) {
    if (begin > done) parts.push_back({done, begin, invert});
    parts.push_back({begin, end, !invert});
  }
  if (done < text.size()) parts.push_back({done, text.size(), invert});
  return parts;
}

// Whether `part` goes on with the piece of the part before it (of the part behind it, where the parts are read backwards).
bool joins(SplitBehavior behavior, const Part& before, const Part& part) {
  return behavior == SplitBehavior::contiguous ? part.match == before.match : part.match && !before.match;
}

}  // namespace

std::vector<std::string_view> pieces_of(const PreTokenizer& step, SplitPattern::Matcher& matcher,
                                        std::string_view text) {
  std::vector<Part> parts = parts_of(matcher, text, step.invert), pieces;
  const bool backwards = step.behavior == SplitBehavior::merged_with_next;
  if (backwards) std::reverse(parts.begin(), parts.end());
  for (size_t i = 0; i < parts.size(); ++i) {
    if (step.behavior == SplitBehavior::removed) {
      if (!parts[i].match) pieces.push_back(parts[i]);
    } else if (i == 0 || !joins(step.behavior, parts[i - 1], parts[i])) {
      pieces.push_back(parts[i]);
    } else if (backwards) {
      pieces.back().begin = parts[i].begin;
    } else {
      pieces.back().end = parts[i].end;
    }
  }
  if (backwards) std::reverse(pieces.begin(), pieces.end());
  std::vector<std::string_view> result;
  for (const Part& piece : pieces)
    if (piece.end > piece.begin) result.push_back(text.substr(piece.begin, piece.end - piece.begin));
  return result;
}

}  // namespace llm
