#include <algorithm>

#include "llm/base/error.h"
#include "llm/text/piece_model.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

class BpeModel : public PieceModel {
 public:
  BpeModel(const Vocabulary& vocabulary, const BpeRules& rules)
      : vocabulary_(vocabulary),
        map_(views(vocabulary_.tokens), vocabulary_.more),
        rules_(rules),
        merges_(rules.merges) {}

  void encode(std::string_view piece, std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const override {
    if (const int32_t whole = rules_.whole_pieces ? map_.find(piece) : -1; whole >= 0) return ids.push_back(whole);
    symbols.clear();
    rules_.byte_level ? push_bytes(piece, symbols) : push_characters(piece, symbols);
    merges_.merge(symbols, ids);
  }

 private:
  void push_bytes(std::string_view piece, std::vector<int32_t>& symbols) const {
    for (const char c : piece)
      if (const int32_t id = rules_.byte_ids[static_cast<unsigned char>(c)]; id >= 0) {
        symbols.push_back(id);
      } else if (has_unknown() && !(rules_.fuse_unknown && !symbols.empty() && symbols.back() == rules_.unknown)) {
        symbols.push_back(rules_.unknown);
      }
  }

  // Whether there is a token for what is unknown.
  bool has_unknown() const {
    if (!rules_.missing_unknown.empty())
      fail(vocabulary_.where, ": the text has a character that is no token, and the unk_token, ",
           rules_.missing_unknown, ", is none either");
    return rules_.unknown >= 0;
  }

  // What is unknown waits: `tokenizers` writes it down only before the next character that is a token, behind the bytes of
  // those between that are none.
  void push_characters(std::string_view piece, std::vector<int32_t>& symbols) const {
    bool waits = false;
    std::string name;
    const bool affixes = !rules_.continuing_prefix.empty() || !rules_.word_suffix.empty();
    for (size_t at = 0, length = 0; at < piece.size(); at += length) {
      length = std::max<size_t>(1, utf8_length(piece.substr(at)));
      std::string_view character = piece.substr(at, length);
      if (affixes) {
        name = at > 0 ? rules_.continuing_prefix : "";
        name += character;
        if (at + length == piece.size()) name += rules_.word_suffix;
        character = name;
      }
      if (const int32_t id = map_.find(character); id >= 0) {
        if (waits) symbols.push_back(rules_.unknown);
        waits = false;
        symbols.push_back(id);
      } else if (!push_byte_tokens(rules_.byte_ids, character, symbols) && has_unknown()) {
        if (waits && !rules_.fuse_unknown) symbols.push_back(rules_.unknown);
        waits = true;
      }
    }
    if (waits) symbols.push_back(rules_.unknown);
  }

  const Vocabulary& vocabulary_;
  const TokenMap map_;
  const BpeRules& rules_;
  const MergeTable merges_;
};

}  // namespace

std::unique_ptr<PieceModel> make_bpe_model(const Vocabulary& vocabulary, const BpeRules& rules) {
  return std::make_unique<BpeModel>(vocabulary, rules);
}

}  // namespace llm
