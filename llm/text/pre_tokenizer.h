// How text is cut into the pieces that a model turns into tokens, each for itself: the pre_tokenizers of a tokenizer.json.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "llm/text/split_pattern.h"

namespace llm {

// What becomes of the matches of a pattern: pieces of their own; nothing; the end of the piece before; the beginning of the
// piece behind; a piece of all matches side by side, and another of what lies between.
enum class SplitBehavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

// One step. Text is changed first (`blank`, then `prefix`, then `byte_characters`), then cut.
struct PreTokenizer {
  std::string blank = " ";         // what a blank becomes: "▁" in SentencePiece's vocabularies
  std::string prefix;              // stands in front of a piece, unless it begins with it anyhow
  bool prefix_first_only = false;  // only in front of the text's first piece
  bool byte_characters = false;    // each byte becomes the character that GPT-2 writes for it (byte_character())

  std::optional<SplitPattern> pattern;  // none: the piece stays whole
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // what matches and what does not change places

  // Whether a text may be cut before a blank between two ASCII letters: no piece of this step reaches over that place.
  bool cuts_before_words = false;
  // Whether what matches is one character of some kind, or a run of them.
  bool by_character = false;

  bool changes_text() const { return blank != " " || !prefix.empty() || byte_characters; }
  // `first`: the text's first piece.
  std::string changed(std::string_view text, bool first) const;
};

// The pieces of `text` by a step of another behavior than isolated.
std::vector<std::string_view> pieces_of(const PreTokenizer& step, SplitPattern::Matcher& matcher,
                                        std::string_view text);

// Cuts `text`, well-formed UTF-8, by `matcher`, which is of `step.pattern`, and hands the pieces to take(piece) in order.
template <class Take>
void cut_by(const PreTokenizer& step, SplitPattern::Matcher& matcher, std::string_view text, Take&& take) {
  if (step.behavior != SplitBehavior::isolated) {
    for (const std::string_view piece : pieces_of(step, matcher, text)) take(piece);
    return;
  }
  size_t done = 0;
  matcher.start(text);
  for (size_t begin, end; matcher.next(begin, end); done = end) {
    if (begin > done) take(text.substr(done, begin - done));
    if (end > begin) take(text.substr(begin, end - begin));
  }
  if (done < text.size()) take(text.substr(done));
}

// The patterns of pre_tokenizers that have none of their own: Whitespace (\w+|[^\w\s]+, as Rust's regular expressions
// mean it), a mark of punctuation as Punctuation and BertPreTokenizer know it, a digit, a word's character.
extern const char kWhitespacePattern[], kPunctuationPattern[], kDigitPattern[], kWordPattern[];

}  // namespace llm
