#include "llm/text/bpe_tokenizer.h"

#include <algorithm>
#include <deque>
#include <functional>

#include "llm/base/error.h"
#include "llm/text/bytes.h"
#include "llm/text/nfc.h"
#include "llm/text/tokenizer_json.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

std::vector<std::string_view> views(const std::vector<std::string>& strings) {
  return {strings.begin(), strings.end()};
}

// What the pieces of one text have become: most words come again and again.
class PieceCache {
 public:
  explicit PieceCache(size_t text_bytes) {
    if (text_bytes >= 4096) slots_.resize(text_bytes >= size_t{1} << 18 ? 1 << 16 : 1 << 12);
  }

  // Appends the ids of `piece` if it is known. If not, remember() may be called with the same piece next.
  bool find(std::string_view piece, std::vector<int32_t>& ids) {
    slot_ = nullptr;
    if (slots_.empty() || piece.size() > 64) return false;
    const uint64_t hash = std::hash<std::string_view>()(piece);
    for (uint64_t at = hash & (slots_.size() - 1), tries = 0; tries < 8; ++tries, at = (at + 1) & (slots_.size() - 1)) {
      Slot& slot = slots_[at];
      if (slot.count == 0) {
        slot_ = &slot;
        return false;
      }
      if (slot.piece == piece) {
        const auto first = ids_.begin() + static_cast<std::ptrdiff_t>(slot.first);
        ids.insert(ids.end(), first, first + slot.count);
        return true;
      }
    }
    return false;
  }
  // `piece` must stay where it is as long as the cache.
  void remember(std::string_view piece, const int32_t* ids, size_t count) {
    if (!slot_ || count == 0) return;
    *slot_ = {piece, ids_.size(), static_cast<uint32_t>(count)};
    ids_.insert(ids_.end(), ids, ids + count);
  }

 private:
  struct Slot {
    std::string_view piece;
    size_t first = 0;
    uint32_t count = 0;
  };
  std::vector<Slot> slots_;
  std::vector<int32_t> ids_;
  Slot* slot_ = nullptr;
};

class BpeTokenizer : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeParts parts)
      : p_(std::move(parts)), map_(views(p_.tokens)), merges_(p_.merges), end_of_text_(find_end_of_text()) {
    check_words();
    check_cuts();
    decoded_ = p_.tokens;
    for (const AddedToken& t : p_.added.tokens()) decoded_[static_cast<size_t>(t.id)] = t.name;
    if (!p_.byte_level) {
      for (size_t byte = 0; byte < 256; ++byte)
        if (const int32_t id = p_.byte_ids[byte]; id >= 0)
          decoded_[static_cast<size_t>(id)] = std::string(1, static_cast<char>(byte));
      const std::string& blank = p_.normalization.blank;
      for (size_t id = 0; blank != " " && id < decoded_.size(); ++id)
        for (size_t at = 0; (at = decoded_[id].find(blank, at)) != std::string::npos; ++at)
          decoded_[id].replace(at, blank.size(), " ");
    }
  }

  int64_t vocabulary() const override { return static_cast<int64_t>(p_.tokens.size()); }
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
      if (text[at] == ' ' && is_letter(text[at - 1]) && is_letter(text[at + 1]) && !p_.added.straddles(text, at))
        return at;
    return text.size();
  }

  std::string json() const override { return p_.json.empty() ? tokenizer_json(p_) : p_.json; }

 private:
  struct Work {
    PieceCache cache;
    std::vector<SplitPattern::Matcher> matchers;
    std::vector<int32_t> symbols;
    std::deque<std::string> normalized;  // what the cache's pieces point into
  };

  // `beginning`: of a text, not of a part of one.
  void encode(std::string_view text, bool special, bool beginning, std::vector<int32_t>& ids) const {
    Work work{PieceCache(text.size()), {}, {}, {}};
    for (const SplitPattern& split : p_.splits) work.matchers.emplace_back(split);
    for (size_t at = 0; at < text.size();) {
      const AddedTokens::Found found = p_.added.find(text, at, special);
      const std::string_view between = text.substr(at, found.token ? found.begin - at : text.npos);
      if (!p_.normalization.changes_text()) {
        split(between, 0, work, ids);
      } else if (!between.empty()) {
        work.normalized.push_back(normalize(between, at == 0 && beginning, at == 0 && !beginning));
        split(work.normalized.back(), 0, work, ids);
      }
      if (!found.token) break;
      ids.push_back(found.token->id);
      at = found.end;
    }
  }

  int32_t find_end_of_text() const {
    for (const std::string_view name : {kEndOfText, std::string_view("<|end_of_text|>"), std::string_view("</s>")})
      if (const int32_t id = p_.added.id_of(name); id >= 0) return id;
    return -1;
  }

  // Where no token has a blank after anything but blanks, words can be merged one by one: much faster than a text.
  void check_words() {
    const std::string& blank = p_.normalization.blank;
    words_ = !p_.byte_level;
    for (const std::string& token : p_.tokens)
      for (size_t at = 0; words_ && (at = token.find(blank, at)) != std::string::npos; at += blank.size())
        words_ = at == 0 || token.compare(at - std::min(at, blank.size()), blank.size(), blank) == 0;
  }

  // Whether text may be cut between a letter and a blank that a letter follows. Behind an added token that ends in a letter
  // there would be a prefix.
  void check_cuts() {
    const Normalization& n = p_.normalization;
    const bool prefixed = n.prefix != Normalization::Prefix::none;
    if (p_.splits.empty()) {
      cuts_ = words_;
    } else {
      cuts_ = (n.blank == " " && p_.splits[0].cuts_before_words()) ||
              (p_.splits.size() == 1 && p_.splits[0].text() == blank_split(n));
    }
    for (const AddedToken& t : p_.added.tokens()) cuts_ = cuts_ && !(prefixed && is_letter(t.name.back()));
  }

  // `first`: it begins the whole text. `rest`: it goes on with what another call has begun.
  std::string normalize(std::string_view text, bool first, bool rest) const {
    const Normalization& n = p_.normalization;
    std::string composed;
    if (n.nfc && ascii_prefix(text) != text.size()) text = composed = nfc(text);
    const bool prefixed =
        !rest &&
        (n.prefix == Normalization::Prefix::always ||
         (n.prefix == Normalization::Prefix::if_missing && !text.starts_with(' ') && !text.starts_with(n.blank))) &&
        (first || !n.prefix_first_only);
    std::string out = prefixed ? n.blank : "";
    if (n.blank == " ") return out.append(text);
    out.reserve(text.size() + text.size() / 2);
    for (const char c : text) {
      if (c == ' ') {
        out += n.blank;
      } else {
        out += c;
      }
    }
    return out;
  }

  // Hands the pieces of `text` after split number `step` on; at the end there are no more splits.
  void split(std::string_view text, size_t step, Work& work, std::vector<int32_t>& ids) const {
    if (text.empty()) return;
    if (step == work.matchers.size()) return words_ ? encode_words(text, work, ids) : encode_piece(text, work, ids);
    // Bytes that are no UTF-8 are pieces of their own.
    while (!text.empty()) {
      const size_t good = utf8_prefix(text);
      const std::string_view part = text.substr(0, good);
      size_t done = 0;
      for (size_t begin, end; work.matchers[step].next(part, done, begin, end); done = end) {
        if (begin > done) split(part.substr(done, begin - done), step + 1, work, ids);
        split(part.substr(begin, end - begin), step + 1, work, ids);
      }
      if (done < good) split(part.substr(done), step + 1, work, ids);
      size_t bad = good;
      while (bad < text.size() && utf8_length(text.substr(bad)) == 0) ++bad;
      if (bad > good) encode_piece(text.substr(good, bad - good), work, ids);
      text.remove_prefix(bad);
    }
  }

  void encode_words(std::string_view text, Work& work, std::vector<int32_t>& ids) const {
    const std::string& blank = p_.normalization.blank;
    for (size_t begin = 0; begin < text.size();) {
      size_t end = begin;
      while (text.compare(end, blank.size(), blank) == 0) end += blank.size();
      end = std::min(text.find(blank, end), text.size());
      encode_piece(text.substr(begin, end - begin), work, ids);
      begin = end;
    }
  }

  void encode_piece(std::string_view piece, Work& work, std::vector<int32_t>& ids) const {
    if (work.cache.find(piece, ids)) return;
    const size_t first = ids.size();
    if (const int32_t whole = p_.whole_pieces ? map_.find(piece) : -1; whole >= 0) {
      ids.push_back(whole);
    } else {
      work.symbols.clear();
      p_.byte_level ? bytes_of_piece(piece, work.symbols) : characters_of_piece(piece, work.symbols);
      merges_.merge(work.symbols, ids);
    }
    work.cache.remember(piece, ids.data() + first, ids.size() - first);
  }

  void bytes_of_piece(std::string_view piece, std::vector<int32_t>& symbols) const {
    for (const char c : piece) push_byte(static_cast<unsigned char>(c), symbols);
  }

  void push_byte(unsigned char byte, std::vector<int32_t>& symbols) const {
    if (const int32_t id = p_.byte_ids[byte]; id >= 0) {
      symbols.push_back(id);
    } else if (p_.unknown < 0) {
      fail(p_.where, ": the vocabulary has no token for the byte ", static_cast<int>(byte), ", which is in the text");
    } else if (!p_.fuse_unknown || symbols.empty() || symbols.back() != p_.unknown) {
      symbols.push_back(p_.unknown);
    }
  }

  void characters_of_piece(std::string_view piece, std::vector<int32_t>& symbols) const {
    while (!piece.empty()) {
      const size_t length = std::max<size_t>(1, utf8_length(piece));
      const std::string_view character = piece.substr(0, length);
      if (const int32_t id = map_.find(character); id >= 0) {
        symbols.push_back(id);
      } else if (std::all_of(character.begin(), character.end(),
                             [&](char c) { return p_.byte_ids[static_cast<unsigned char>(c)] >= 0; })) {
        bytes_of_piece(character, symbols);
      } else {
        if (p_.unknown < 0)
          fail(p_.where, ": the vocabulary has no token for a character of the text (its first byte is ",
               static_cast<int>(static_cast<unsigned char>(character[0])), ")");
        if (!p_.fuse_unknown || symbols.empty() || symbols.back() != p_.unknown) symbols.push_back(p_.unknown);
      }
      piece.remove_prefix(length);
    }
  }

  BpeParts p_;
  TokenMap map_;
  MergeTable merges_;
  int32_t end_of_text_;
  bool words_ = false, cuts_ = false;
  std::vector<std::string> decoded_;  // what each id stands for
};

}  // namespace

std::string blank_split(const Normalization& n) { return concat(n.blank, "[^", n.blank, "]*"); }

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeParts parts) {
  return std::make_unique<BpeTokenizer>(std::move(parts));
}

}  // namespace llm
