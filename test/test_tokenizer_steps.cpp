// The steps of a tokenizer.json: how they change text and cut it, added tokens, models. What is expected is what Hugging Face's
// `tokenizers` 0.23 makes of the same.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "llm/base/random.h"
#include "llm/text/stand_ins.h"
#include "llm/text/tokenizer_json.h"
#include "llm/text/tokenizer_parts.h"
#include "llm/text/utf8.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;
using nlohmann::json;

namespace {

using Ids = std::vector<int32_t>;
using Pieces = std::vector<std::string>;

std::unique_ptr<Tokenizer> from_json(const json& document) {
  return make_tokenizer(parse_tokenizer_json(parse_json(document.dump(), "tokenizer.json"), "tokenizer.json"));
}

Ids encode(const Tokenizer& tokenizer, std::string_view text, bool special = true) {
  Ids ids;
  tokenizer.encode(text, special, ids);
  return ids;
}

std::vector<std::string> characters_of(std::string_view text) {
  std::vector<std::string> characters;
  for (size_t length = 0; !text.empty(); text.remove_prefix(length))
    characters.emplace_back(text.substr(0, length = utf8_length(text)));
  return characters;
}

// Checks the pieces that the two steps make of `text`. The model has a token for each character at the beginning of a piece
// and another for it elsewhere, so the ids tell where pieces begin.
void check_pieces(const json& normalizer, const json& pre_tokenizer, const std::string& text, const Pieces& expected) {
  const std::string what = normalizer.dump() + pre_tokenizer.dump() + text;
  INFO(what);
  json vocab;
  std::vector<std::string> names;
  // The characters of the text as well, so that one which ought to be gone shows.
  Pieces all = expected;
  all.push_back(text);
  for (const std::string& piece : all)
    for (const std::string& c : characters_of(piece))
      for (const char* prefix : {"", "+"})
        if (!vocab.contains(prefix + c)) vocab[prefix + c] = names.size(), names.push_back(prefix + c);
  const auto tokenizer = from_json(
      {{"normalizer", normalizer},
       {"pre_tokenizer", pre_tokenizer},
       {"model", {{"type", "BPE"}, {"continuing_subword_prefix", "+"}, {"vocab", vocab}, {"merges", json::array()}}}});
  Pieces pieces;
  for (const int32_t id : encode(*tokenizer, text)) {
    const std::string& name = names[static_cast<size_t>(id)];
    if (name.size() > 1 && name[0] == '+') {
      REQUIRE(!pieces.empty());
      pieces.back() += name.substr(1);
    } else {
      pieces.push_back(name);
    }
  }
  CHECK(pieces == expected);
}

json split(const std::string& pattern, const char* behavior = "Isolated", bool invert = false) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}, {"invert", invert}};
}

json metaspace(const char* scheme, bool cut = true) {
  return {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", scheme}, {"split", cut}};
}

json added(const char* name, const std::vector<std::string>& flags = {}) {
  json token = {{"id", 0}, {"content", name}, {"special", true}};
  for (const std::string& flag : flags) token[flag] = flag != "special";
  return token;
}

}  // namespace

TEST_CASE("tokenizer steps: split patterns mean what Oniguruma means by them") {
  check_pieces({}, split(R"(\w+|[^\w\s]+)"), "a\u0301b c\u203fd 2\u00bd e\u00b2f x-y",
               {"a\u0301b", " ", "c\u203fd", " ", "2\u00bd", " ", "e\u00b2f", " ", "x", "-", "y"});
  check_pieces({}, split(R"(\b)"), "ab, c\u203fd e\u0301f", {"ab", ", ", "c\u203fd", " ", "e\u0301f"});
  check_pieces({}, split(R"((?=\p{Lu}))"), "aPascalCase, x", {"a", "Pascal", "Case, x"});
  check_pieces({}, split(R"([\p{Han}]+)"), "\u4f60\u597d\u3002\u4e16\u754c\u3001\u30ab\u3005 x",
               {"\u4f60\u597d", "\u3002", "\u4e16\u754c", "\u3001\u30ab", "\u3005", " x"});
  check_pieces({}, split(R"(\h+|\H)"), "abgx F1", {"ab", "g", "x", " ", "F1"});
  check_pieces({}, split(R"([^\S\n]+|[\s\d])"),
               "a \t\u3000b\n\xC2\x85"
               "3c",
               {"a", " \t\u3000", "b", "\n", "\xC2\x85", "3", "c"});
  check_pieces({}, split(R"([a-z&&[^aeiou]]+|[^\w&&[^_]])"), "hello_world, x",
               {"h", "e", "ll", "o", "_", "w", "o", "rld", ",", " ", "x"});
  check_pieces({}, split("a(?i)b|c"), "aB C ab c", {"aB", " C ", "ab", " c"});
  check_pieces({}, split("x{1,2}+|y"), "xxxxx xy", {"xxxxx", " ", "x", "y"});
  check_pieces({}, split("[[:punct:][:digit:]]+"), "a$1.b,c\u0663d", {"a", "$1.", "b", ",", "c", "\u0663", "d"});
  check_pieces({}, split("[^[:^punct:]]"), "a$b", {"a", "$", "b"});
  check_pieces({}, split("^.|.$"), "ab\ncd\n", {"a", "b", "\n", "c", "d", "\n"});
  check_pieces({}, split("b*"), "abba c", {"a", "bb", "a", " ", "c"});
  check_pieces({}, split("(?<=[.!?]) +"), "One. Two!  x y", {"One.", " ", "Two!", "  ", "x y"});
  check_pieces({}, split("(?i)ss"), "Stra\u00dfe SS", {"Stra", "\u00df", "e ", "SS"});
}

TEST_CASE("tokenizer steps: characters that are newer than the engines' tables") {
  // Nag Mundari and an ideograph of Unicode 15.0, a digit, a Cyrillic letter of 16.0.
  check_pieces({}, split(R"(\p{L}+|\p{N}+)"), "a\U0001e4d0b\U00031350 1\U0001e4f12 \u1c89c",
               {"a\U0001e4d0b\U00031350", " ", "1\U0001e4f12", " ", "\u1c89c"});
  check_pieces({}, {{"type", "ByteLevel"}, {"add_prefix_space", false}}, "x\U0001e4d0,",
               {"x\u00f0\u0140\u0135\u0132", ","});
  std::string room;
  const std::string old = "plain \u00e9 \u4f60 \xFF";
  CHECK(with_stand_ins(old, room).data() == old.data());
  const std::string newer = "a\u1c89\U0001e4d0\xFF";
  const std::string_view stand_ins = with_stand_ins(newer, room);
  CHECK(stand_ins.size() == newer.size());
  CHECK(stand_ins != newer);
}

TEST_CASE("tokenizer steps: long runs do not fail, whatever the pattern") {
  std::string run;
  for (int i = 0; i < 120'000; ++i) run += "\u7e7f";
  for (const char* pattern : {R"((?:\p{L}|\p{M})+(?:'s)?|\s+)", R"([^\r\n\p{L}\p{N}]?\p{L}+|\s)"}) {
    const SplitPattern compiled(pattern, "test");
    SplitPattern::Matcher matcher(compiled);
    size_t begin = 1, end = 0;
    matcher.start(run);
    CHECK(matcher.next(begin, end));
    CHECK(begin == 0);
    CHECK(end == run.size());
    CHECK_FALSE(matcher.next(begin, end));
  }
  for (const char* name : {"gpt2", "cl100k_base", "o200k_base"}) {
    const SplitPattern known(split_pattern_named(name), "test");
    SplitPattern::Matcher matcher(known);
    size_t begin = 1, end = 0;
    matcher.start(run);
    CHECK(matcher.next(begin, end));
    CHECK(end == run.size());
  }
}

// The patterns that PCRE2 matches, against Oniguruma: the same pattern in a group is not known.
TEST_CASE("tokenizer steps: the fast engine and Oniguruma cut alike") {
  const char* alphabet[] = {"a",      "B",      "s",      "'s",         "'LL",        "'\u017f", "\u00e9", "e\u0301",
                            "1",      "\u00bd", "\u0663", " ",          " ",          "  ",      "\n",     "\r",
                            "\t",     "\u00a0", "\u3000", "\u0085",     "\u180e",     "\u200b",  ".",      "/",
                            "\u2014", "\u4f60", "\u3002", "\U0001f600", "\U0001e4d0", "\u01c5",  "\u02b0", "\u0e31"};
  for (const char* name : {"gpt2", "cl100k_base", "o200k_base"}) {
    const std::string pattern = split_pattern_named(name);
    const SplitPattern fast(pattern, "test"), slow("(?:" + pattern + ")", "test");
    CHECK(fast.cuts_before_words());
    CHECK_FALSE(slow.cuts_before_words());
    SplitPattern::Matcher a(fast), b(slow);
    const Random random(5, 3);
    for (uint64_t i = 0, draw = 0; i < 500; ++i) {
      std::string text;
      for (uint64_t n = random.bits(draw++) % 40; n > 0; --n)
        text += alphabet[random.bits(draw++) % std::size(alphabet)];
      INFO(text);
      a.start(text), b.start(text);
      size_t begin[2], end[2];
      for (bool more = true; more;) {
        more = a.next(begin[0], end[0]);
        REQUIRE(more == b.next(begin[1], end[1]));
        if (more) REQUIRE((begin[0] == begin[1] && end[0] == end[1]));
      }
    }
  }
}

TEST_CASE("tokenizer steps: what becomes of a Split's matches") {
  const std::string text = "a..b.c.";
  for (const bool invert : {false, true}) {
    check_pieces({}, split(R"(\.)", "Isolated", invert), text, {"a", ".", ".", "b", ".", "c", "."});
    check_pieces({}, split(R"(\.)", "Contiguous", invert), text, {"a", "..", "b", ".", "c", "."});
    const Pieces previous = {"a.", ".", "b.", "c."}, next = {"a", ".", ".b", ".c", "."};
    check_pieces({}, split(R"(\.)", "MergedWithPrevious", invert), text, invert ? next : previous);
    check_pieces({}, split(R"(\.)", "MergedWithNext", invert), text, invert ? previous : next);
  }
  check_pieces({}, split(R"(\.)", "Removed"), text, {"a", "b", "c"});
  check_pieces({}, split(R"(\w+)", "Removed", true), "don't stop, now", {"don", "t", "stop", "now"});
  check_pieces({}, {{"type", "Split"}, {"pattern", {{"String", "."}}}, {"behavior", "removed"}}, text, {"a", "b", "c"});
}

TEST_CASE("tokenizer steps: pre-tokenizers") {
  check_pieces({}, {{"type", "Whitespace"}}, "Hello, wor\u0301ld! x\u00b2y a\u200db \u00bd",
               {"Hello", ",", "wor\u0301ld", "!", "x", "\u00b2", "y", "a\u200db", "\u00bd"});
  check_pieces({}, {{"type", "WhitespaceSplit"}}, "a b\u3000c\u00a0\n d.", {"a", "b", "c", "d."});
  check_pieces({}, {{"type", "Punctuation"}}, "a,b\u00bfc$d\u2014e\u2e52f",
               {"a", ",", "b", "\u00bf", "c", "$", "d", "\u2014", "e\u2e52f"});
  check_pieces({}, {{"type", "Punctuation"}, {"behavior", "MergedWithPrevious"}}, "Hi!? you.", {"Hi!", "?", " you."});
  check_pieces({}, {{"type", "Digits"}, {"individual_digits", true}}, "a12\u0663b\u00bd",
               {"a", "1", "2", "\u0663", "b", "\u00bd"});
  check_pieces({}, {{"type", "Digits"}}, "a12\u0663b\u00bd", {"a", "12\u0663", "b", "\u00bd"});
  check_pieces({}, {{"type", "BertPreTokenizer"}}, "Hi, you:there  x", {"Hi", ",", "you", ":", "there", "x"});
  check_pieces({}, {{"type", "CharDelimiterSplit"}, {"delimiter", "-"}}, "a-b--c", {"a", "b", "c"});
  check_pieces({}, {{"type", "FixedLength"}, {"length", 2}}, "a\nb\u00e9c", {"a\n", "b\u00e9", "c"});
  check_pieces({}, metaspace("always"), " a b  c", {"\u2581a", "\u2581b", "\u2581", "\u2581c"});
  check_pieces({}, metaspace("never"), "a b", {"a", "\u2581b"});
  check_pieces({}, metaspace("always", false), "a b", {"\u2581a\u2581b"});
  check_pieces({}, {{"type", "Sequence"}, {"pretokenizers", {{{"type", "WhitespaceSplit"}}, metaspace("first")}}},
               "a b", {"\u2581a", "b"});
  // Bytes are characters to the steps behind ByteLevel.
  check_pieces({},
               {{"type", "Sequence"},
                {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}, {"individual_digits", true}}}}},
               "\u00e9 b12", {"\u0120\u00c3\u00a9", "\u0120b", "1", "2"});
  // Gemma's: no blank is left to split at.
  check_pieces({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}},
               {{"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "MergedWithPrevious"}}, "a b  c",
               {"a\u2581b\u2581\u2581c"});
}

TEST_CASE("tokenizer steps: normalizers") {
  const auto check = [](const json& normalizer, const std::string& text, const std::string& expected) {
    check_pieces(normalizer, {}, text, {expected});
  };
  check({{"type", "NFC"}}, "a\u0307\u0323b\u212b\u0958", "\u1ea1\u0307b\u00c5\u0915\u093c");
  check({{"type", "NFD"}}, "\u00e9\u1ea1\ud55c\ufb01", "e\u0301a\u0323\u1112\u1161\u11ab\ufb01");
  check({{"type", "NFKC"}}, "\ufb01\u2460\uff21\u1ea1e\u0301\u3000x", "fi1A\u1ea1\u00e9 x");
  check({{"type", "NFKD"}}, "\ufb01\u00e9\u00bd", "fie\u03011\u20442");
  check({{"type", "Lowercase"}}, "\u00c0\u0130\u03a3\u1e9eA", "\u00e0i\u0307\u03c3\u00dfa");
  check({{"type", "Sequence"}, {"normalizers", {{{"type", "NFD"}}, {{"type", "StripAccents"}}}}},
        "\u00e9\u00c5n\u0303x", "eAnx");
  check({{"type", "Strip"}, {"strip_left", true}, {"strip_right", false}}, "\u3000 a ", "a ");
  check({{"type", "Strip"}}, "\u3000 a \u2028", "a");
  check({{"type", "Prepend"}, {"prepend", "\u2581"}}, "ab", "\u2581ab");
  check({{"type", "Replace"}, {"pattern", {{"Regex", R"(\s+)"}}}, {"content", " "}}, "a \n\u3000b", "a b");
  check({{"type", "Replace"}, {"pattern", {{"String", "a."}}}, {"content", "x"}}, "a.ab", "xab");
  check({{"type", "Nmt"}},
        "a\x01"
        "b\tc\u200bd\ufeff",
        "ab c d ");
  check({{"type", "BertNormalizer"}}, "\u00c9a\u200b\u4f60 b\t\u00c7", "ea \u4f60  b c");
  check({{"type", "BertNormalizer"}, {"clean_text", false}, {"handle_chinese_chars", false}, {"lowercase", false}},
        "\u00c9a\t\u4f60", "\u00c9a\t\u4f60");
  check({{"type", "ByteLevel"}}, "\u00e9 a", "\u00c3\u00a9\u0120a");
}

// Rules that say "A" becomes "bc": the array's units at its root, at "A" and at the leaf behind it.
TEST_CASE("tokenizer steps: SentencePiece's rules") {
  std::vector<uint32_t> units(256, 0);
  units[0] = 1 << 10;
  units[1 ^ 'A'] = 'A' | 1 << 8 | 2 << 10;
  units[1 ^ 'A' ^ 2] = 1u << 31;
  std::string bytes(4, '\0');
  bytes[1] = 4;  // 1,024 bytes of units
  bytes.append(reinterpret_cast<const char*>(units.data()), 1024).append("bc", 3);
  constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string base64;
  for (size_t bit = 0; bit < bytes.size() * 8; bit += 6) {
    unsigned value = 0;
    for (size_t i = bit; i < bit + 6; ++i)
      value = value << 1 | (i / 8 < bytes.size() ? static_cast<unsigned char>(bytes[i / 8]) >> (7 - i % 8) & 1 : 0);
    base64 += digits[value];
  }
  check_pieces({{"type", "Precompiled"}, {"precompiled_charsmap", base64}}, {}, "aAA\u00e9A\u0301", {"abcbc\u00e9bc"});
}

TEST_CASE("tokenizer steps: added tokens") {
  const json model = {{"type", "BPE"},
                      {"vocab", {{"a", 0}, {"b", 1}, {"c", 2}, {" ", 3}, {"ab", 4}}},
                      {"merges", {"#version: 0.2", "a b"}}};
  const auto with = [&](const json& tokens, const json& normalizer = {}) {
    return from_json({{"added_tokens", tokens}, {"normalizer", normalizer}, {"model", model}});
  };
  const auto t =
      with({added("foo", {"single_word"}), added("<m>", {"lstrip", "rstrip"}), added("\u00c9", {"normalized"})},
           {{"type", "Lowercase"}});
  CHECK(encode(*t, "a foo") == Ids{0, 3, 5});
  CHECK(encode(*t, "foo.") == Ids{5});
  for (const char* part : {"afoo", "foob", "foo_", "foo\u0301", "\u00e9\u0301foo"}) CHECK(encode(*t, part) != Ids{5});
  CHECK(encode(*t, "afoo") == Ids{0});
  CHECK(encode(*t, "a\u3000\u2028<m>\u00a0\tb") == Ids{0, 6, 1});      // Unicode's white space
  CHECK(encode(*t, "A \u00c9 \u00e9 a") == Ids{0, 3, 7, 3, 7, 3, 0});  // by the normalized name, in the normalized text
  CHECK(encode(*t, "foo", false).empty());
  // The ids that the file gives do not count: a token of the model has its own, another the next one.
  CHECK(encode(*with({added("<x>"), added("<y>"), added("b")}), "a<y>b<x>") == Ids{0, 6, 1, 5});
  // Names that are not looked for in normalized text come first, wherever they are.
  json blanks = added("  ", {"normalized"});
  CHECK(encode(*with({added("[M]", {"lstrip"}), blanks}), "a  [M]  b") == Ids{0, 5, 6, 1});
  // The longest; one that does not count hides shorter ones.
  CHECK(encode(*with({added("<x"), added("<x>")}), "<x><x") == Ids{6, 5});
  json plain = added("<x", {"special"});
  CHECK(encode(*with({plain, added("<x>")}), "a<x>b<x", false) == Ids{4, 5});
}

TEST_CASE("tokenizer steps: what is no token") {
  const auto bpe = [](json model) {
    model["type"] = "BPE";
    if (!model.contains("merges")) model["merges"] = json::array();
    return from_json({{"model", model}});
  };
  // Left out, and what is beside it merged.
  CHECK(encode(*bpe({{"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}}, {"merges", {"a b"}}}), "zazb") == Ids{2});
  json unknown = {{"vocab", {{"a", 0}, {"<u>", 1}, {"<0x41>", 2}}},
                  {"unk_token", "<u>"},
                  {"fuse_unk", true},
                  {"byte_fallback", true}};
  CHECK(encode(*bpe(unknown), "xyAxa xAa") == Ids{2, 1, 0, 2, 1, 0});
  CHECK(encode(*bpe(unknown), "x y a") == Ids{1, 0});  // blanks are unknown, too
  unknown["fuse_unk"] = false;
  CHECK(encode(*bpe(unknown), "xyAxa") == Ids{1, 2, 1, 1, 0});
  // Two tokens of one id.
  const auto twice = bpe({{"vocab", {{"a", 0}, {"b", 0}, {"c", 1}}}});
  CHECK(encode(*twice, "abc") == Ids{0, 0, 1});
  CHECK(twice->vocabulary() == 2);
}

TEST_CASE("tokenizer steps: WordPiece, whole words and BPE with a suffix") {
  const json vocab = {{"[UNK]", 0}, {"un", 1},  {"##aff", 2}, {"##able", 3}, {"##a", 4},  {"hello", 5},
                      {".", 6},     {"don", 7}, {"'", 8},     {"t", 9},      {"##ff", 10}};
  json document = {
      {"normalizer", {{"type", "Lowercase"}}},
      {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
      {"decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}},
      {"model", {{"type", "WordPiece"}, {"unk_token", "[UNK]"}, {"max_input_chars_per_word", 8}, {"vocab", vocab}}}};
  const auto word_piece = from_json(document);
  CHECK(encode(*word_piece, "Unaffable hello.") == Ids{0, 5, 6});  // more than eight characters
  CHECK(encode(*word_piece, "unaffxx don't") == Ids{0, 7, 8, 9});
  CHECK(encode(*word_piece, "unaffa un a") == Ids{1, 2, 4, 1, 0});
  CHECK(word_piece->decode({1, 2, 4, 1, 5, 6}) == "unaffa un hello.");
  document["model"].erase("unk_token");
  CHECK(has(error_of([&] { encode(*from_json(document), "zzz"); }), "no token for a word of the text"));

  const auto words = from_json(
      {{"pre_tokenizer", {{"type", "Whitespace"}}},
       {"model", {{"type", "WordLevel"}, {"unk_token", "[UNK]"}, {"vocab", {{"[UNK]", 0}, {"the", 1}, {"cat", 2}}}}}});
  CHECK(encode(*words, "the cat sat") == Ids{1, 2, 0});
  CHECK(words->decode({1, 2, 0}) == "the cat [UNK]");

  const auto suffix =
      from_json({{"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
                 {"decoder", {{"type", "BPEDecoder"}, {"suffix", "</w>"}}},
                 {"model",
                  {{"type", "BPE"},
                   {"end_of_word_suffix", "</w>"},
                   {"vocab", {{"a", 0}, {"b", 1}, {"a</w>", 2}, {"b</w>", 3}, {"ab</w>", 4}, {"aab</w>", 5}}},
                   {"merges", {"a b</w>", "a ab</w>"}}}}});
  CHECK(encode(*suffix, "aab ba a") == Ids{5, 1, 2, 2});
}

TEST_CASE("tokenizer steps: Unigram") {
  json list = json::array();
  const auto add = [&](const char* token, double score) { list.push_back(json::array({token, score})); };
  add("<unk>", 0), add("\u2581", -2), add("a", -3), add("b", -3.5), add("ab", -4), add("\u2581a", -3.2);
  add("bb", -5), add("\u2581abb", -11), add("c", -9);
  const auto unigram = from_json({{"pre_tokenizer", metaspace("always")},
                                  {"decoder", metaspace("always")},
                                  {"model", {{"type", "Unigram"}, {"unk_id", 0}, {"vocab", list}}}});
  CHECK(encode(*unigram, "abb ab") == Ids{5, 6, 1, 4});
  CHECK(encode(*unigram, "xyab zz c") == Ids{1, 0, 4, 1, 0, 1, 8});
  CHECK(encode(*unigram, " a") == Ids{5});
  CHECK(unigram->decode({5, 6, 1, 4}) == "abb ab");

  list = json::array();
  add("<unk>", 0), add("a", -1);
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    add(name, -5);
  }
  json model = {{"type", "Unigram"}, {"unk_id", 0}, {"vocab", list}, {"byte_fallback", true}};
  CHECK(encode(*from_json({{"model", model}}), "a\u00e9a") == Ids{1, 197, 171, 1});
  model["unk_id"] = 999;
  CHECK(has(error_of([&] { from_json({{"model", model}}); }), "the unk_id is no token"));
  model.erase("unk_id"), model["byte_fallback"] = false;
  CHECK(has(error_of([&] { encode(*from_json({{"model", model}}), "x"); }), "and no \"unk_id\""));
}

TEST_CASE("tokenizer steps: post-processors put tokens around a text") {
  json document = {{"model", {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}, {"c", 2}}}, {"merges", json::array()}}}};
  for (const char* type : {"RobertaProcessing", "BertProcessing"}) {
    document["post_processor"] = {{"type", type}, {"sep", {"c", 2}}, {"cls", {"b", 1}}};
    CHECK(from_json(document)->text_prefix() == Ids{1});
    CHECK(from_json(document)->text_suffix() == Ids{2});
  }
}

// A text encoded in two parts, cut where the tokenizer says, has the ids of the whole.
TEST_CASE("tokenizer steps: cuts do not change ids") {
  const json base = {
      {"added_tokens", {added("<m>", {"lstrip", "rstrip"}), added("word", {"rstrip"}), added("b c", {"normalized"})}},
      {"model",
       {{"type", "WordLevel"}, {"unk_token", "u"}, {"vocab", {{"u", 0}, {"a", 1}, {"\u2581a", 2}, {" a", 3}}}}}};
  const json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
  const json drop = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", ""}};
  const json gpt2 = {{"type", "ByteLevel"}};
  int cuts = 0;
  for (const json& normalizer : {json(), json({{"type", "NFC"}}), replace, drop, json({{"type", "Strip"}})})
    for (const json& pre :
         {json({{"type", "Whitespace"}}), json({{"type", "BertPreTokenizer"}}), metaspace("first"), gpt2,
          json({{"type", "Sequence"}, {"pretokenizers", {{{"type", "Digits"}}, gpt2}}}), split("a b")})
      for (const bool added_tokens : {false, true}) {
        json document = base;
        document["normalizer"] = normalizer, document["pre_tokenizer"] = pre;
        if (!added_tokens) document.erase("added_tokens");
        const auto tokenizer = from_json(document);
        const std::string text = "a a  a1 word a<m> a b c a b a, a a";
        const Ids whole = encode(*tokenizer, text);
        for (size_t from = 1; from < text.size(); ++from) {
          const size_t cut = tokenizer->safe_cut(text, from);
          if (cut == text.size()) break;
          Ids ids = encode(*tokenizer, std::string_view(text).substr(0, cut));
          tokenizer->encode_rest(std::string_view(text).substr(cut), true, ids);
          CHECK(ids == whole);
          ++cuts;
        }
      }
  CHECK(cuts > 100);
}
