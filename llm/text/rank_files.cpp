#include "llm/text/rank_files.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/mapped_file.h"
#include "llm/text/byte_level.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

constexpr int64_t kLargestVocabulary = int64_t{1} << 22;

struct Encoding {
  const char *name, *pattern;  // pattern: as --pattern names it
  size_t ranks;                // lines of its file
  std::vector<AddedToken> added;
};

const std::vector<Encoding>& encodings() {
  static const std::vector<Encoding> all = {
      {"gpt2", "gpt2", 50256, {{"<|endoftext|>", 50256}}},
      {"r50k_base", "gpt2", 50256, {{"<|endoftext|>", 50256}}},
      {"p50k_base", "gpt2", 50280, {{"<|endoftext|>", 50256}}},  // its ranks leave that one out
      {"cl100k_base",
       "cl100k_base",
       100256,
       {{"<|endoftext|>", 100257},
        {"<|fim_prefix|>", 100258},
        {"<|fim_middle|>", 100259},
        {"<|fim_suffix|>", 100260},
        {"<|endofprompt|>", 100276}}},
      {"o200k_base", "o200k_base", 199998, {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}}}};
  return all;
}

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// The next line, without its end; `text` goes on behind it.
std::string_view next_line(std::string_view& text) {
  const size_t end = text.find('\n');
  std::string_view line = text.substr(0, end);
  text.remove_prefix(end == text.npos ? text.size() : end + 1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

void find_byte_ids(BpeRules& bpe, const TokenMap& map) {
  for (size_t byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    bpe.byte_ids[byte] = map.find({&c, 1});
  }
}

const Encoding& choose_encoding(const std::string& path, const std::string& pattern, size_t ranks) {
  const std::string name = std::filesystem::path(path).filename().string();
  for (const Encoding& e : encodings())
    if (pattern.empty() ? name.find(e.name) != name.npos : pattern == e.pattern && ranks == e.ranks) return e;
  for (const Encoding& e : encodings())
    if (pattern.empty() ? ranks == e.ranks : pattern == e.pattern) return e;
  if (!pattern.empty()) split_pattern_named(pattern);  // throws and lists the known ones
  fail(path, ": neither its name nor its ", ranks,
       " tokens tell how text is split for it; give the pattern gpt2, cl100k_base or o200k_base");
}

}  // namespace

bool decode_base64(std::string_view text, std::string& bytes) {
  bytes.clear();
  while (text.ends_with('=')) text.remove_suffix(1);
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) return false;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes += static_cast<char>(bits >> count & 0xFF);
    }
  }
  return count < 6;
}

TokenizerParts read_gpt2_files(const std::string& merges, const std::string& vocabulary) {
  TokenizerParts parts;
  BpeRules bpe;
  parts.vocabulary.where = vocabulary;
  const Json ids = read_json(vocabulary);
  if (!ids.is_object() || ids.empty()) fail(vocabulary, ": not a vocabulary, which is an object {token: id}");
  std::vector<std::string> names;
  for (auto& [name, id] : ids.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(kLargestVocabulary))
      fail(vocabulary, ": the id of a token is not a whole number below ", kLargestVocabulary);
    const auto at = id.get<size_t>();
    if (at >= names.size()) names.resize(at + 1);
    if (!names[at].empty()) fail(vocabulary, ": two tokens have the id ", at);
    names[at] = name;
  }
  const TokenMap map({names.begin(), names.end()});

  const MappedFile file(merges);
  std::string_view text = text_of(file);
  for (int64_t number = 1; !text.empty(); ++number) {
    const std::string_view line = next_line(text);
    if (line.empty() || line.starts_with("#version")) continue;
    const size_t blank = line.find(' ');
    if (blank == line.npos || line.find(' ', blank + 1) != line.npos)
      fail(merges, ": line ", number, " is not a merge, which is two tokens and a blank between them");
    const std::string left(line.substr(0, blank)), right(line.substr(blank + 1));
    const int32_t a = map.find(left), b = map.find(right), c = map.find(left + right);
    if (a < 0 || b < 0 || c < 0) fail(merges, ": line ", number, " merges what is no token in ", vocabulary);
    bpe.merges.push_back({a, b, c, static_cast<int32_t>(bpe.merges.size())});
  }

  std::vector<AddedToken> added;
  if (const int32_t id = map.find(kEndOfText); id >= 0) added.push_back({std::string(kEndOfText), id});
  for (std::string& name : names) name = bytes_of_characters(name);
  parts.vocabulary.tokens = std::move(names);
  parts.added = AddedTokens(std::move(added));
  find_byte_ids(bpe, TokenMap(views(parts.vocabulary.tokens)));
  parts.model = std::move(bpe);
  parts.pre_tokenizers.push_back(isolated_split(split_pattern_named("gpt2"), vocabulary));
  return parts;
}

TokenizerParts read_tiktoken(const std::string& path, const std::string& pattern) {
  TokenizerParts parts;
  BpeRules bpe;
  parts.vocabulary.where = path;
  std::vector<std::string>& tokens = parts.vocabulary.tokens;
  const MappedFile file(path);
  std::string_view text = text_of(file);
  std::string bytes;
  size_t ranks = 0;
  for (int64_t number = 1; !text.empty(); ++number) {
    const std::string_view line = next_line(text);
    if (line.empty()) continue;
    const size_t blank = line.find(' ');
    int64_t rank = -1;
    const bool is_rank = blank != line.npos && [&] {
      const auto [end, error] = std::from_chars(line.data() + blank + 1, line.data() + line.size(), rank);
      return error == std::errc() && end == line.data() + line.size() && rank >= 0 && rank < kLargestVocabulary;
    }();
    if (!is_rank || !decode_base64(line.substr(0, blank), bytes) || bytes.empty())
      fail(path, ": not a tiktoken rank file, line ", number, " is not a token in base64, a blank and its rank");
    const auto at = static_cast<size_t>(rank);
    if (at >= tokens.size()) tokens.resize(at + 1);
    if (!tokens[at].empty()) fail(path, ": line ", number, ": another token has the rank ", rank);
    tokens[at] = bytes;
    ++ranks;
  }
  if (ranks == 0) fail(path, ": not a tiktoken rank file, it is empty");
  const Encoding& encoding = choose_encoding(path, pattern, ranks);
  const TokenMap map(views(tokens));
  for (size_t id = 0; id < tokens.size(); ++id)
    if (!tokens[id].empty() && map.find(tokens[id]) != static_cast<int32_t>(id))
      fail(path, ": the tokens ", map.find(tokens[id]), " and ", id, " are the same bytes");
  std::vector<int32_t> order(tokens.size());
  std::iota(order.begin(), order.end(), 0);
  bpe.merges = merges_of_ranks(views(tokens), map, order);
  find_byte_ids(bpe, map);

  // Of a file with other ranks than OpenAI's, only <|endoftext|> is known, behind the last rank.
  std::vector<AddedToken> added = encoding.added;
  const auto is_rank = [&](const AddedToken& t) {
    return static_cast<size_t>(t.id) < tokens.size() && !tokens[static_cast<size_t>(t.id)].empty();
  };
  if (ranks != encoding.ranks || std::any_of(added.begin(), added.end(), is_rank))
    added = {{std::string(kEndOfText), static_cast<int32_t>(tokens.size())}};
  parts.added = AddedTokens(std::move(added));
  parts.pre_tokenizers.push_back(isolated_split(split_pattern_named(encoding.pattern), path));
  bpe.whole_pieces = true;
  parts.model = std::move(bpe);
  return parts;
}

TokenizerParts sentencepiece_bpe(std::vector<std::string> tokens, const std::vector<float>& scores,
                                 std::vector<AddedToken> added, std::vector<int32_t> prefix, int32_t unknown,
                                 bool prefixed, const std::string& where) {
  constexpr char blank[] = "\u2581";
  TokenizerParts parts;
  BpeRules bpe;
  bpe.byte_level = false;
  bpe.byte_ids.fill(-1);
  const size_t V = tokens.size();
  if (V > static_cast<size_t>(kLargestVocabulary)) fail(where, ": a vocabulary of ", V);
  for (size_t id = 0; id < V; ++id) {
    if (utf8_prefix(tokens[id]) != tokens[id].size()) fail(where, ": token ", id, " is not UTF-8");
    const std::string& name = tokens[id];
    unsigned byte = 0;
    if (name.size() == 6 && name.starts_with("<0x") && name[5] == '>' &&
        std::from_chars(name.data() + 3, name.data() + 5, byte, 16).ptr == name.data() + 5)
      bpe.byte_ids[byte] = static_cast<int32_t>(id);
  }
  // The higher the score the sooner.
  std::vector<float> sorted = scores;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  std::vector<int32_t> ranks(V);
  for (size_t id = 0; id < V; ++id)
    ranks[id] = static_cast<int32_t>(std::lower_bound(sorted.begin(), sorted.end(), scores[id], std::greater<>()) -
                                     sorted.begin());
  parts.vocabulary.where = where;
  parts.vocabulary.tokens = std::move(tokens);
  const auto names = views(parts.vocabulary.tokens);
  bpe.merges = merges_of_ranks(names, TokenMap(names), ranks);
  parts.added = AddedTokens(std::move(added));
  parts.prefix = std::move(prefix);
  bpe.unknown = unknown;
  bpe.fuse_unknown = true;
  parts.model = std::move(bpe);
  parts.normalizers = sentencepiece_normalizers(blank, prefixed);
  parts.blank = blank;
  parts.decoders = {replacing_decoder(blank, " "), decode_byte_token};
  parts.strip_leading_blank = prefixed;
  return parts;
}

TokenizerParts read_llama2c_tokenizer(const std::string& path) {
  std::vector<std::string> tokens;
  const MappedFile file(path);
  std::string_view rest = text_of(file);
  const auto take = [&](void* to, size_t bytes) {
    if (rest.size() < bytes)
      fail(path, ": not a tokenizer of llama2.c, or truncated: it ends inside token ", tokens.size());
    std::memcpy(to, rest.data(), bytes);
    rest.remove_prefix(bytes);
  };
  int32_t longest = 0;
  take(&longest, sizeof longest);
  if (longest < 1 || longest > 1 << 16)
    fail(path, ": not a tokenizer of llama2.c, its longest token has ", longest, " bytes");
  std::vector<float> scores;
  while (!rest.empty()) {
    float score = 0;
    int32_t length = 0;
    take(&score, sizeof score);
    take(&length, sizeof length);
    if (length < 0 || length > longest || !std::isfinite(score))
      fail(path, ": not a tokenizer of llama2.c, token ", tokens.size(), " has ", length, " bytes, score ", score);
    std::string token(static_cast<size_t>(length), '\0');
    take(token.data(), token.size());
    if (utf8_prefix(token) != token.size())
      fail(path, ": not a tokenizer of llama2.c, token ", tokens.size(), " is not UTF-8");
    tokens.push_back(std::move(token));
    scores.push_back(score);
  }
  const size_t V = tokens.size();
  // unk, bos, eos, then the bytes.
  if (V < 3 + 256 || V > static_cast<size_t>(kLargestVocabulary) || tokens[3] != "<0x00>" || tokens[258] != "<0xFF>")
    fail(path, ": not a tokenizer of llama2.c, its ", V, " tokens do not have the bytes at 3 to 258");
  // The names of Llama's tokenizer.json; llama2.c writes line breaks around them, and SentencePiece's blank as a blank.
  for (size_t id = 0; id < V; ++id)
    tokens[id] = id < 3 ? (id == 0 ? "<unk>" : id == 1 ? "<s>" : "</s>") : with_replaced(tokens[id], " ", "\u2581");
  return sentencepiece_bpe(std::move(tokens), scores, {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}}, {1}, 0, true, path);
}

}  // namespace llm
