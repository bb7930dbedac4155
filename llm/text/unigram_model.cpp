#include <algorithm>
#include <limits>
#include <numeric>

#include "llm/base/error.h"
#include "llm/text/piece_model.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

// SentencePiece's: what a character that is no token costs more than the rarest token.
constexpr double kUnknownPenalty = 10;

class UnigramModel : public PieceModel {
 public:
  UnigramModel(const Vocabulary& vocabulary, const UnigramRules& rules) : vocabulary_(vocabulary), rules_(rules) {
    for (size_t id = 0; id < vocabulary_.tokens.size(); ++id) {
      if (id < rules_.scores.size()) lowest_ = std::min(lowest_, rules_.scores[id]);
      if (!vocabulary_.tokens[id].empty()) sorted_.push_back({vocabulary_.tokens[id], static_cast<int32_t>(id)});
    }
    // Of two equal tokens the later one counts.
    std::sort(sorted_.begin(), sorted_.end(),
              [](const Entry& a, const Entry& b) { return a.token != b.token ? a.token < b.token : a.id > b.id; });
    sorted_.erase(
        std::unique(sorted_.begin(), sorted_.end(), [](const Entry& a, const Entry& b) { return a.token == b.token; }),
        sorted_.end());
    for (size_t byte = 0; byte <= 256; ++byte)
      first_[byte] = static_cast<size_t>(
          std::partition_point(sorted_.begin(), sorted_.end(),
                               [&](const Entry& e) { return static_cast<unsigned char>(e.token[0]) < byte; }) -
          sorted_.begin());
  }

  void encode(std::string_view piece, std::vector<int32_t>&, std::vector<int32_t>& ids) const override {
    // The best way to each place in the piece: the token that ends there, and where it begins (Viterbi).
    struct Way {
      double score = 0;
      size_t begin = std::string_view::npos;
      int32_t id = 0;
    };
    std::vector<Way> ways(piece.size() + 1);
    const auto offer = [&](size_t begin, size_t end, int32_t id, double score) {
      Way& way = ways[end];
      if (way.begin == std::string_view::npos || ways[begin].score + score > way.score)
        way = {ways[begin].score + score, begin, id};
    };
    for (size_t at = 0, length = 0; at < piece.size(); at += length) {
      length = std::max<size_t>(1, utf8_length(piece.substr(at)));
      bool alone = false;
      for_prefixes(piece.substr(at), [&](size_t bytes, int32_t id) {
        offer(at, at + bytes, id, rules_.scores[static_cast<size_t>(id)]);
        alone |= bytes == length;
      });
      if (!alone) offer(at, at + length, -1, lowest_ - kUnknownPenalty);
    }
    std::vector<std::pair<size_t, int32_t>> tokens;  // where each begins, the last first
    for (size_t end = piece.size(); end > 0; end = ways[end].begin) {
      const bool unknown = ways[end].id == rules_.unknown || ways[end].id < 0;
      if (unknown && !tokens.empty() && tokens.back().second < 0) tokens.pop_back();  // one for all of them
      tokens.emplace_back(ways[end].begin, unknown ? -1 : ways[end].id);
    }
    for (size_t i = tokens.size(); i-- > 0;) {
      const auto [begin, id] = tokens[i];
      const size_t end = i > 0 ? tokens[i - 1].first : piece.size();
      id >= 0 ? ids.push_back(id) : push_unknown(piece.substr(begin, end - begin), ids);
    }
  }

 private:
  struct Entry {
    std::string_view token;
    int32_t id;
  };

  // Hands the length and the id of each token that `text` begins with to take(), the shortest first.
  template <class Take>
  void for_prefixes(std::string_view text, Take&& take) const {
    const size_t byte = static_cast<unsigned char>(text[0]);
    auto begin = sorted_.begin() + static_cast<std::ptrdiff_t>(first_[byte]);
    auto end = sorted_.begin() + static_cast<std::ptrdiff_t>(first_[byte + 1]);
    for (size_t depth = 1; begin != end; ++depth) {
      if (begin->token.size() == depth) take(depth, begin->id), ++begin;
      if (depth == text.size()) return;
      const auto at = [&](const Entry& e) { return static_cast<unsigned char>(e.token[depth]); };
      const auto next = static_cast<unsigned char>(text[depth]);
      begin = std::partition_point(begin, end, [&](const Entry& e) { return at(e) < next; });
      end = std::partition_point(begin, end, [&](const Entry& e) { return at(e) == next; });
    }
  }

  void push_unknown(std::string_view text, std::vector<int32_t>& ids) const {
    const auto found = std::lower_bound(sorted_.begin(), sorted_.end(), text,
                                        [](const Entry& e, std::string_view value) { return e.token < value; });
    if (found != sorted_.end() && found->token == text) return ids.push_back(found->id);
    if (push_byte_tokens(rules_.byte_ids, text, ids)) return;
    if (rules_.unknown < 0)
      fail(vocabulary_.where, ": the vocabulary has no token for a character of the text (its first byte is ",
           static_cast<int>(static_cast<unsigned char>(text[0])), "), and no \"unk_id\"");
    ids.push_back(rules_.unknown);
  }

  const Vocabulary& vocabulary_;
  const UnigramRules& rules_;
  double lowest_ = std::numeric_limits<double>::infinity();
  std::vector<Entry> sorted_;        // by their bytes
  std::array<size_t, 257> first_{};  // of those that begin with that byte or a greater one
};

}  // namespace

std::unique_ptr<PieceModel> make_unigram_model(const Vocabulary& vocabulary, const UnigramRules& rules) {
  return std::make_unique<UnigramModel>(vocabulary, rules);
}

}  // namespace llm
