#include <algorithm>

#include "llm/base/error.h"
#include "llm/text/piece_model.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

void push_unknown(int32_t unknown, const Vocabulary& vocabulary, std::vector<int32_t>& ids) {
  if (unknown < 0) fail(vocabulary.where, ": the vocabulary has no token for a word of the text, and no \"unk_token\"");
  ids.push_back(unknown);
}

class WordPieceModel : public PieceModel {
 public:
  WordPieceModel(const Vocabulary& vocabulary, const WordPieceRules& rules)
      : vocabulary_(vocabulary), map_(views(vocabulary_.tokens), vocabulary_.more), rules_(rules) {}

  void encode(std::string_view piece, std::vector<int32_t>&, std::vector<int32_t>& ids) const override {
    const size_t before = ids.size();
    const auto characters = std::count_if(piece.begin(), piece.end(), [](char byte) { return !is_continuation(byte); });
    std::string name;
    for (size_t begin = 0; begin < piece.size();) {
      // A longer name than the longest token's is none.
      const std::string& prefix = begin > 0 ? rules_.prefix : kNone;
      size_t end = piece.size();
      int32_t id = -1;
      while (end > begin && static_cast<size_t>(characters) <= rules_.longest) {
        if (prefix.size() + (end - begin) <= map_.longest()) {
          name = prefix;
          name += piece.substr(begin, end - begin);
          if ((id = map_.find(name)) >= 0) break;
        }
        end = begin + last_character(piece.substr(begin, end - begin));
      }
      if (id < 0) {
        ids.resize(before);
        return push_unknown(rules_.unknown, vocabulary_, ids);
      }
      ids.push_back(id);
      begin = end;
    }
  }

 private:
  static inline const std::string kNone;
  const Vocabulary& vocabulary_;
  const TokenMap map_;
  const WordPieceRules& rules_;
};

class WordLevelModel : public PieceModel {
 public:
  WordLevelModel(const Vocabulary& vocabulary, const WordLevelRules& rules)
      : vocabulary_(vocabulary), map_(views(vocabulary_.tokens), vocabulary_.more), rules_(rules) {}

  void encode(std::string_view piece, std::vector<int32_t>&, std::vector<int32_t>& ids) const override {
    const int32_t id = map_.find(piece);
    id >= 0 ? ids.push_back(id) : push_unknown(rules_.unknown, vocabulary_, ids);
  }

 private:
  const Vocabulary& vocabulary_;
  const TokenMap map_;
  const WordLevelRules& rules_;
};

}  // namespace

std::unique_ptr<PieceModel> make_wordpiece_model(const Vocabulary& vocabulary, const WordPieceRules& rules) {
  return std::make_unique<WordPieceModel>(vocabulary, rules);
}

std::unique_ptr<PieceModel> make_word_level_model(const Vocabulary& vocabulary, const WordLevelRules& rules) {
  return std::make_unique<WordLevelModel>(vocabulary, rules);
}

}  // namespace llm
