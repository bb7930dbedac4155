// What is done to text before it is cut into pieces: the normalizers of a tokenizer.json.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "llm/text/split_pattern.h"

namespace llm {

// One step. `rest`: the text goes on with what another call has begun.
struct Normalizer {
  std::function<void(std::string& text, bool rest)> apply;
  // Whether a text may be cut before a blank between two ASCII letters, each part be normalized for itself, and joined again.
  bool allows_cuts = true;
  bool prepends = false;     // puts something in front of each text
  bool strips_left = false;  // takes white space in front away: what is left does not begin the whole text any more
};

// Unicode Standard Annex 15's forms. Bytes that are no UTF-8 stay as they are, here and below.
enum class NormalForm { nfc, nfd, nfkc, nfkd };
std::string normal_form(std::string_view text, NormalForm form);
Normalizer normal_form_normalizer(NormalForm form);

Normalizer lowercase_normalizer();
Normalizer strip_accents_normalizer();               // all marks, which must stand for themselves (NFD) to be found
Normalizer strip_normalizer(bool left, bool right);  // white space at the ends
Normalizer prepend_normalizer(const std::string& prefix);  // in front of text that is not empty
Normalizer replace_normalizer(SplitPattern pattern, const std::string& content);
Normalizer nmt_normalizer();  // controls go, odd blanks become plain ones
struct BertNormalization {
  bool clean_text = true, handle_chinese_chars = true, strip_accents = true, lowercase = true;
};
Normalizer bert_normalizer(const BertNormalization& what);

// Whether `code` is white space (Unicode's White_Space).
bool is_white_space(uint32_t code);

}  // namespace llm
