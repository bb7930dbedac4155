#include "llm/text/tokenizer_parts.h"

#include <algorithm>
#include <charconv>
#include <deque>

#include "llm/base/error.h"
#include "llm/text/bytes.h"
#include "llm/text/piece_cache.h"
#include "llm/text/tokenizer_json.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

struct MakeModel {
  const Vocabulary& vocabulary;
  std::unique_ptr<PieceModel> operator()(const BpeRules& r) const { return make_bpe_model(vocabulary, r); }
  std::unique_ptr<PieceModel> operator()(const WordPieceRules& r) const { return make_wordpiece_model(vocabulary, r); }
  std::unique_ptr<PieceModel> operator()(const WordLevelRules& r) const { return make_word_level_model(vocabulary, r); }
  std::unique_ptr<PieceModel> operator()(const UnigramRules& r) const { return make_unigram_model(vocabulary, r); }
};

class PartsTokenizer : public Tokenizer {
 public:
  explicit PartsTokenizer(TokenizerParts parts)
      : p_(std::move(parts)), model_(std::visit(MakeModel{p_.vocabulary}, p_.model)), end_of_text_(find_end_of_text()) {
    words_ = model_takes_words();
    cuts_ = may_be_cut();
    decoded_ = p_.vocabulary.tokens;
    for (std::string& token : decoded_) decode(token);
    for (const AddedToken& t : p_.added.tokens()) {
      const auto id = static_cast<size_t>(t.id);
      if (id >= decoded_.size()) decoded_.resize(id + 1);
      decoded_[id] = t.name;
      if (!p_.keeps_added) decode(decoded_[id]);
    }
  }

  int64_t vocabulary() const override { return static_cast<int64_t>(decoded_.size()); }
  int32_t end_of_text() const override { return end_of_text_; }
  std::vector<int32_t> text_prefix() const override { return p_.prefix; }
  std::vector<int32_t> text_suffix() const override { return p_.suffix; }
  bool strips_leading_blank() const override { return p_.strip_leading_blank; }

  void encode(std::string_view text, bool special, std::vector<int32_t>& ids) const override {
    encode(text, special, true, ids);
  }
  void encode_rest(std::string_view text, bool special, std::vector<int32_t>& ids) const override {
    encode(text, special, false, ids);
  }

  std::string_view bytes_of(int32_t id) const override {
    if (id < 0 || id >= vocabulary()) fail("token ", id, " is outside the vocabulary of ", vocabulary());
    return decoded_[static_cast<size_t>(id)];
  }

  size_t safe_cut(std::string_view text, size_t from) const override {
    if (!cuts_ || text.empty()) return text.size();
    for (size_t at = std::max<size_t>(1, from); at + 1 < text.size(); ++at)
      if (text[at] == ' ' && is_letter(text[at - 1]) && is_letter(text[at + 1]) &&
          !p_.added.in_text().straddles(text, at) && !p_.added.in_normalized().straddles(text, at))
        return at;
    return text.size();
  }

  std::string json() const override { return p_.json.empty() ? tokenizer_json(p_) : p_.json; }

 private:
  // What is needed while a text is encoded.
  struct Work {
    PieceCache cache;
    std::vector<SplitPattern::Matcher> matchers;  // one for each pre-tokenizer with a pattern
    std::vector<int32_t> room;
    std::deque<std::string> changed;  // texts that are not parts of the whole: what the cache's pieces point into
    std::vector<int32_t>& ids;
  };

  void decode(std::string& token) const {
    for (const auto& step : p_.decoders) step(token);
  }

  int32_t find_end_of_text() const {
    for (const std::string_view name : {kEndOfText, std::string_view("<|end_of_text|>"), std::string_view("</s>")})
      if (const int32_t id = p_.added.id_of(name); id >= 0) return id;
    return -1;
  }

  // Whether a text that nothing cuts can be handed to the model word by word, each with the blanks before it, which is much
  // faster: no token goes on behind such a blank, and an unknown character before it is not one with unknown ones behind.
  bool model_takes_words() const {
    const auto* bpe = std::get_if<BpeRules>(&p_.model);
    if (!bpe || bpe->byte_level || bpe->whole_pieces || !bpe->continuing_prefix.empty() || !bpe->word_suffix.empty())
      return false;
    bool blank_is_token = false;
    for (const std::string& token : p_.vocabulary.tokens) {
      blank_is_token |= token == p_.blank;
      for (size_t at = 0; (at = token.find(p_.blank, at)) != std::string::npos; at += p_.blank.size())
        if (at > 0 && token.compare(at - std::min(at, p_.blank.size()), p_.blank.size(), p_.blank) != 0) return false;
    }
    return blank_is_token;
  }

  // Whether text may be cut between a letter and a blank that a letter follows.
  bool may_be_cut() const {
    bool allowed = true, prepends = false;
    for (const Normalizer& n : p_.normalizers) {
      allowed = allowed && n.allows_cuts;
      prepends |= n.prepends;
    }
    bool between_words = p_.pre_tokenizers.empty() && words_;
    for (const PreTokenizer& p : p_.pre_tokenizers)
      if ((between_words = p.cuts_before_words) || !p.by_character) break;
    allowed = allowed && between_words;
    // Behind an added token that ends in a letter there would be a prefix, or the blank would belong to the token. A name
    // with a blank behind a letter is found only where it is written as safe_cut() reads it.
    for (const AddedToken& t : p_.added.tokens()) {
      const bool blank_inside =
          t.name.find(' ', 1) != std::string::npos || t.name.find(p_.blank, 1) != std::string::npos;
      const bool only_blanks = t.name.find_first_not_of(" " + p_.blank) == std::string::npos;
      allowed = allowed && !((prepends || t.strip_right) && is_letter(t.name.back())) &&
                !(t.normalized && !p_.normalizers.empty() && blank_inside && !only_blanks);
    }
    return allowed;
  }

  // `beginning`: of a text, not of a part of one.
  void encode(std::string_view text, bool special, bool beginning, std::vector<int32_t>& ids) const {
    Work work{PieceCache(text.size()), {}, {}, {}, ids};
    for (const PreTokenizer& step : p_.pre_tokenizers)
      if (step.pattern) work.matchers.emplace_back(*step.pattern);
    p_.added.in_text().split(text, special, [&](std::string_view part, const AddedToken* token) {
      if (token) return ids.push_back(token->id);
      const bool rest = part.data() == text.data() && !beginning;
      bool first = part.data() == text.data() && beginning;
      if (p_.normalizers.empty()) return split_at_normalized(part, first, special, work);
      std::string& changed = work.changed.emplace_back(part);
      for (const Normalizer& n : p_.normalizers) {
        const size_t size = changed.size();
        n.apply(changed, rest);
        first = first && !(n.strips_left && changed.size() < size);
      }
      split_at_normalized(changed, first, special, work);
    });
  }

  void split_at_normalized(std::string_view text, bool first, bool special, Work& work) const {
    if (p_.added.in_normalized().empty()) return cut(text, first, 0, 0, work);
    p_.added.in_normalized().split(text, special, [&](std::string_view part, const AddedToken* token) {
      if (token) return work.ids.push_back(token->id);
      cut(part, first && part.data() == text.data(), 0, 0, work);
    });
  }

  // Hands the pieces of `text` after pre-tokenizer number `step` on, whose pattern has the matcher number `matcher`; at the
  // end the model gets them. `first`: it begins the whole text.
  void cut(std::string_view text, bool first, size_t step, size_t matcher, Work& work) const {
    if (text.empty()) return;
    if (step == p_.pre_tokenizers.size()) return words_ ? encode_words(text, work) : encode_piece(text, work);
    const PreTokenizer& p = p_.pre_tokenizers[step];
    if (p.changes_text()) text = work.changed.emplace_back(p.changed(text, first));
    if (!p.pattern) return cut(text, first, step + 1, matcher, work);
    // Bytes that are no UTF-8 are pieces of their own.
    for (const char* begin = text.data(); !text.empty();) {
      const std::string_view good = text.substr(0, utf8_prefix(text));
      cut_by(p, work.matchers[matcher], good,
             [&](std::string_view piece) { cut(piece, first && piece.data() == begin, step + 1, matcher + 1, work); });
      size_t bad = good.size();
      while (bad < text.size() && utf8_length(text.substr(bad)) == 0) ++bad;
      if (bad > good.size()) encode_piece(text.substr(good.size(), bad - good.size()), work);
      text.remove_prefix(bad);
    }
  }

  void encode_words(std::string_view text, Work& work) const {
    const std::string& blank = p_.blank;
    for (size_t begin = 0; begin < text.size();) {
      size_t end = begin;
      while (text.compare(end, blank.size(), blank) == 0) end += blank.size();
      end = std::min(text.find(blank, end), text.size());
      encode_piece(text.substr(begin, end - begin), work);
      begin = end;
    }
  }

  void encode_piece(std::string_view piece, Work& work) const {
    if (work.cache.find(piece, work.ids)) return;
    const size_t first = work.ids.size();
    model_->encode(piece, work.room, work.ids);
    work.cache.remember(piece, work.ids.data() + first, work.ids.size() - first);
  }

  TokenizerParts p_;
  std::unique_ptr<PieceModel> model_;
  int32_t end_of_text_;
  bool words_ = false, cuts_ = false;
  std::vector<std::string> decoded_;  // what each id stands for
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerParts parts) {
  return std::make_unique<PartsTokenizer>(std::move(parts));
}

std::vector<Normalizer> sentencepiece_normalizers(const std::string& blank, bool prefix) {
  std::vector<Normalizer> steps;
  if (prefix) steps.push_back(prepend_normalizer(" "));
  steps.push_back(replace_normalizer(SplitPattern(" ", "a blank"), blank));
  return steps;
}

PreTokenizer isolated_split(const std::string& pattern, const std::string& where) {
  PreTokenizer step;
  step.pattern.emplace(pattern, where);
  step.cuts_before_words = step.pattern->cuts_before_words();
  return step;
}

std::function<void(std::string&)> replacing_decoder(const std::string& from, const std::string& to) {
  return [from, to](std::string& token) {
    if (!from.empty()) token = with_replaced(token, from, to);
  };
}

void decode_byte_token(std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return;
  unsigned byte = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  if (error == std::errc() && end == token.data() + 5) token.assign(1, static_cast<char>(byte));
}

}  // namespace llm
