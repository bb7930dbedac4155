// BPE tokenizers: the formats they are read from, the algorithm against a naive one, training, and what other libraries'
// numbers there are. With TRAIN_GPT_SHARED=FOLDER also the published vocabularies in FOLDER/data (gpt2/, tiktoken/,
// tokenizer_vectors.jsonl, ...), which are too large to be kept here.
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "llm/base/error.h"
#include "llm/base/mapped_file.h"
#include "llm/base/random.h"
#include "llm/model/huggingface.h"
#include "llm/text/normalizer.h"
#include "llm/text/rank_files.h"
#include "llm/text/split_pattern.h"
#include "llm/text/tokenizer_json.h"
#include "llm/text/tokenizer_parts.h"
#include "llm/text/train_bpe.h"
#include "test/helpers.h"

namespace fs = std::filesystem;
using namespace llm;
using namespace test;
using nlohmann::json;

namespace {

using Ids = std::vector<int32_t>;

void write(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

Ids encode(const Tokenizer& tokenizer, std::string_view text, bool special = true) {
  Ids ids;
  tokenizer.encode(text, special, ids);
  return ids;
}

std::vector<std::string> pieces(const std::string& pattern, std::string_view text) {
  const SplitPattern split(pattern, "test");
  SplitPattern::Matcher matcher(split);
  std::vector<std::string> result;
  matcher.start(text);
  for (size_t begin, end; matcher.next(begin, end);) result.emplace_back(text.substr(begin, end - begin));
  return result;
}

std::string base64(std::string_view bytes) {
  constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    const size_t n = std::min<size_t>(3, bytes.size() - i);
    for (size_t k = 0; k < 3; ++k) bits = bits << 8 | (k < n ? static_cast<unsigned char>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += k <= n ? digits[bits >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

// Pieces of this alphabet make words with many merges, blanks of all kinds, characters of one to four bytes, text that is
// no UTF-8, and names of special tokens.
std::string random_text(uint64_t seed, size_t parts) {
  const char* alphabet[] = {
      "a",  "b",  "ab", "ba",     "c",      "the", " ",    " ",       " ",     " the",          "  ",
      "\n", "\t", "1",  "234",    "'s",     "'LL", "é",    "e\u0301", "你",    "\U0001F600",    "\u00a0",
      ".",  "--", "Z",  "\u3000", "\u2581", "<s>", "\xFF", "<s",      "x\xC3", "<|endoftext|>", "hello"};
  const Random random(seed, 1);
  std::string text;
  for (size_t i = 0; i < parts; ++i) text += alphabet[random.bits(i) % std::size(alphabet)];
  return text;
}

// A byte-level tokenizer trained on text as above.
std::unique_ptr<Tokenizer> small_tokenizer(int64_t vocabulary = 400, const std::string& pattern = "gpt2") {
  std::string text;
  for (uint64_t seed = 0; seed < 50; ++seed) text += random_text(seed, 100);
  ThreadTeam threads(2);
  return train_bpe({text}, vocabulary, split_pattern_named(pattern), threads);
}

// Byte-pair encoding as its definition says: in all the pieces of all the text, merge the pair of the lowest rank.
Ids naive_merge(Ids symbols, const std::map<std::pair<int32_t, int32_t>, std::pair<int32_t, int32_t>>& merges) {
  for (;;) {
    size_t best = symbols.size();
    int32_t rank = INT32_MAX;
    for (size_t i = 0; i + 1 < symbols.size(); ++i)
      if (const auto found = merges.find({symbols[i], symbols[i + 1]}); found != merges.end())
        if (found->second.first < rank) rank = found->second.first, best = i;
    if (best == symbols.size()) return symbols;
    symbols[best] = merges.at({symbols[best], symbols[best + 1]}).second;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

// A tokenizer.json as Llama 2's: characters, bytes where there are none, a blank written as U+2581.
json sentencepiece_json() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  int id = 3;
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    vocab[name] = id++;
  }
  for (const char* token : {"\u2581", "a", "b", "t", "h", "e", "é", "\u2581t", "he", "\u2581the", "ab", "\u2581\u2581"})
    vocab[token] = id++;
  const json added = {{{"id", 0}, {"content", "<unk>"}, {"special", true}},
                      {{"id", 1}, {"content", "<s>"}, {"special", true}},
                      {{"id", 2}, {"content", "</s>"}, {"special", true}}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers",
             {{{"type", "Prepend"}, {"prepend", "\u2581"}},
              {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}}}}},
          {"pre_tokenizer", nullptr},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
            {"special_tokens", {{"<s>", {{"ids", {1}}}}}}}},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", {"\u2581 t", "h e", "\u2581t he", "a b", "\u2581 \u2581"}}}}};
}

std::unique_ptr<Tokenizer> from_json(const json& document) {
  return make_tokenizer(parse_tokenizer_json(parse_json(document.dump(), "tokenizer.json"), "tokenizer.json"));
}

void check_same(const Tokenizer& a, const Tokenizer& b) {
  CHECK(a.vocabulary() == b.vocabulary());
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const std::string text = random_text(seed, 60);
    for (const bool special : {false, true}) {
      CHECK(encode(a, text, special) == encode(b, text, special));
      CHECK(a.decode(encode(a, text, special)) == b.decode(encode(b, text, special)));
    }
  }
}

}  // namespace

// The pieces that Python's `regex` makes of them with tiktoken's own patterns.
TEST_CASE("tokenizers: the split patterns of gpt2, cl100k_base and o200k_base") {
  using Pieces = std::vector<std::string>;
  const std::string english = "We'll see HELLO'S  iPhone12345,\n\n  don't//\n";
  CHECK(pieces(split_pattern_named("gpt2"), english) == Pieces{"We", "'ll", " see", " HELLO", "'", "S", " ", " iPhone",
                                                               "12345", ",", "\n\n ", " don", "'t", "//", "\n"});
  CHECK(pieces(split_pattern_named("cl100k_base"), english) ==
        Pieces{"We", "'ll", " see", " HELLO", "'S", " ", " iPhone", "123", "45", ",\n\n", " ", " don", "'t", "//\n"});
  CHECK(pieces(split_pattern_named("o200k_base"), english) ==
        Pieces{"We'll", " see", " HELLO'S", " ", " i", "Phone", "123", "45", ",\n\n", " ", " don't", "//\n"});
  // No-break and wide blanks, U+0085 are white space; U+200B is not. A combining accent is no letter but a mark.
  const std::string other = "x\u00a0y\u3000 \u0085z\u200b\u00e9 e\u0301 你好①²  ";
  CHECK(pieces(split_pattern_named("gpt2"), other) ==
        Pieces{"x", "\u00a0", "y", "\u3000 ", "\u0085", "z", "\u200b", "\u00e9", " e", "\u0301", " 你好", "①²", "  "});
  CHECK(pieces(split_pattern_named("cl100k_base"), other) ==
        Pieces{"x", "\u00a0y", "\u3000 ", "\u0085z", "\u200b\u00e9", " e", "\u0301", " 你好", "①²", "  "});
  CHECK(pieces(split_pattern_named("o200k_base"), other) ==
        Pieces{"x", "\u00a0y", "\u3000 ", "\u0085z", "\u200b\u00e9", " e\u0301", " 你好", "①²", "  "});
  CHECK(has(error_of([] { SplitPattern("(", "f.json"); }), "f.json: the split pattern is not a regular expression"));
  CHECK(has(error_of([] { pieces("(x+x+)+y", std::string(60, 'x')); }), "failed on a piece of text: retry-limit"));
}

TEST_CASE("tokenizers: merges are those of the definition, whatever the length of a piece") {
  const Random random(11, 2);
  uint64_t draw = 0;
  for (int round = 0; round < 20; ++round) {
    // A merge's tokens may be those that earlier merges made.
    std::vector<Merge> merges;
    std::map<std::pair<int32_t, int32_t>, std::pair<int32_t, int32_t>> table;
    for (int32_t rank = 0; rank < 30; ++rank) {
      const auto token = [&] { return static_cast<int32_t>(random.bits(draw++) % static_cast<uint64_t>(3 + rank)); };
      const Merge merge{token(), token(), 3 + rank, rank};
      if (table.try_emplace({merge.left, merge.right}, rank, merge.id).second) merges.push_back(merge);
    }
    const MergeTable fast(merges);
    for (const size_t length : {0, 1, 2, 3, 7, 30, 63, 64, 65, 200, 700}) {
      Ids symbols(length), ids;
      for (int32_t& s : symbols) s = static_cast<int32_t>(random.bits(draw++) % 3);
      const Ids expected = naive_merge(symbols, table);
      fast.merge(symbols, ids);
      CHECK(ids == expected);
    }
  }
}

TEST_CASE("tokenizers: a trained vocabulary gives back all bytes, and cuts where it may") {
  for (const char* pattern : {"gpt2", "cl100k_base", "o200k_base"}) {
    const auto tokenizer = small_tokenizer(400, pattern);
    CHECK(tokenizer->vocabulary() == 400);
    for (uint64_t seed = 100; seed < 130; ++seed) {
      const std::string text = random_text(seed, 80);
      for (const bool special : {false, true}) {
        const Ids whole = encode(*tokenizer, text, special);
        CHECK(tokenizer->decode(whole) == text);
        for (size_t from = 0; from < text.size(); from += 7) {
          const size_t cut = tokenizer->safe_cut(text, from);
          Ids ids = encode(*tokenizer, std::string_view(text).substr(0, cut), special);
          tokenizer->encode_rest(std::string_view(text).substr(cut), special, ids);
          CHECK(ids == whole);
        }
      }
    }
    CHECK(encode(*tokenizer, "<|endoftext|>") == Ids{399});
    CHECK(encode(*tokenizer, "<|endoftext|>", false).size() > 1);
    CHECK(has(error_of([&] { tokenizer->bytes_of(400); }), "token 400 is outside the vocabulary of 400"));
  }
}

TEST_CASE("tokenizers: training merges the most frequent pair, and is the same on any number of threads") {
  ThreadTeam one(1), three(3);
  const std::string text = "aaaa aaaa aaaa abab abab<|endoftext|>abab";
  const auto tokenizer = train_bpe({text}, 300, split_pattern_named("gpt2"), one);
  // By count: "aa" 9 (as overlapping pairs count), then " aa" or what is made of it, ...; nothing that occurs once.
  const Ids ids = encode(*tokenizer, "aa");
  REQUIRE(ids.size() == 1);
  CHECK(ids[0] == 256);
  CHECK(tokenizer->vocabulary() < 300);  // no pair is left that occurs twice
  CHECK(encode(*tokenizer, " abab").size() == 1);
  CHECK(encode(*tokenizer, "<|endoftext|>") == Ids{static_cast<int32_t>(tokenizer->vocabulary()) - 1});

  std::string corpus;
  for (uint64_t seed = 0; seed < 400; ++seed) corpus += random_text(seed, 400);
  const std::vector<std::string_view> texts = {std::string_view(corpus).substr(0, 9999),
                                               std::string_view(corpus).substr(9999)};
  CHECK(train_bpe(texts, 500, split_pattern_named("gpt2"), one)->json() ==
        train_bpe(texts, 500, split_pattern_named("gpt2"), three)->json());
  CHECK(has(error_of([&] { train_bpe(texts, 256, split_pattern_named("gpt2"), one); }), "257 to 4194304"));
}

TEST_CASE("tokenizers: tokenizer.json written and read is the same tokenizer") {
  const Folder folder;
  const auto trained = small_tokenizer();
  write(folder / "tokenizer.json", trained->json());
  const auto read = load_tokenizer(folder.path);
  check_same(*trained, *read);
  CHECK(read->json() == trained->json());
  // Merges as strings, as older files have them.
  json old = json::parse(trained->json());
  for (json& merge : old["model"]["merges"]) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  check_same(*trained, *from_json(old));
}

TEST_CASE("tokenizers: GPT-2's two files and a tiktoken rank file of the same vocabulary") {
  const Folder folder;
  const auto trained = small_tokenizer();
  const json document = json::parse(trained->json());
  fs::create_directory(folder / "gpt2");
  write(folder / "gpt2/encoder.json", document["model"]["vocab"].dump());
  std::string merges = "#version: 0.2\n", ranks;
  for (const json& merge : document["model"]["merges"])
    merges += merge[0].get<std::string>() + " " + merge[1].get<std::string>() + "\n";
  write(folder / "gpt2/vocab.bpe", merges);
  for (const char* name : {"gpt2", "gpt2/vocab.bpe", "gpt2/encoder.json"})
    check_same(*trained, *load_tokenizer(folder / name));

  // A model that has only these two, under their other names.
  fs::create_directory(folder / "model");
  fs::copy(folder / "gpt2/encoder.json", folder / "model/vocab.json");
  fs::copy(folder / "gpt2/vocab.bpe", folder / "model/merges.txt");
  ModelConfig config;
  for (const char* architecture : {"gpt2", "llama"}) {
    set_architecture(config, *find_value<Architecture>(architecture));
    config.vocabulary = 400, config.context = 8, config.layers = 1, config.heads = config.kv_heads = 1;
    config.channels = config.head_size = 8, config.hidden = 32;
    write(folder / "model/config.json", config_json(config, -1));
    CHECK(tokenizer_of_model(folder / "model") == (config.bias ? folder / "model" : ""));
  }
  check_same(*trained, *load_tokenizer(folder / "model"));

  for (int32_t id = 0; id + 1 < trained->vocabulary(); ++id)
    ranks += base64(trained->bytes_of(id)) + " " + std::to_string(id) + "\n";
  write(folder / "small.tiktoken", ranks);
  check_same(*trained, *load_tokenizer(folder / "small.tiktoken", "gpt2"));
  CHECK(has(error_of([&] { load_tokenizer(folder / "small.tiktoken"); }), "give the pattern"));
  CHECK(has(error_of([&] { load_tokenizer(folder / "small.tiktoken", "gpt5"); }), "known: gpt2"));
  // p50k_base leaves the place of <|endoftext|> free among its 50,280 ranks.
  std::string p50k;
  for (int rank = 0; rank < 50281; ++rank)
    if (rank != 50256) {
      const char bytes[] = {static_cast<char>(rank), static_cast<char>(rank >> 8)};
      p50k += base64({bytes, rank < 256 ? size_t{1} : size_t{2}}) + " " + std::to_string(rank) + "\n";
    }
  write(folder / "p50k_base.tiktoken", p50k);
  CHECK(encode(*load_tokenizer(folder / "p50k_base.tiktoken"), "a<|endoftext|>") == Ids{97, 50256});
  CHECK(encode(*load_tokenizer(folder / "p50k_base.tiktoken", "gpt2"), "a<|endoftext|>") == Ids{97, 50256});
  for (const char* wrong : {"", "YQ==", "YQ== x\n", "Y 0\n", "YQ== 0\nYg== 0\n", "YQ== 0\nYQ== 1\n", "YQ== -1\n"}) {
    write(folder / "wrong", wrong);
    CHECK(has(error_of([&] { load_tokenizer(folder / "wrong", "gpt2"); }), folder / "wrong"));
  }
}

TEST_CASE("tokenizers: SentencePiece's way, with bytes for what is no token") {
  const auto tokenizer = from_json(sentencepiece_json());
  const auto id = [&](const char* token) { return sentencepiece_json()["model"]["vocab"][token].get<int32_t>(); };
  CHECK(tokenizer->text_prefix() == Ids{1});
  CHECK(tokenizer->end_of_text() == 2);
  CHECK(encode(*tokenizer, "the") == Ids{id("\u2581the")});
  CHECK(encode(*tokenizer, " the") == Ids{id("\u2581"), id("\u2581the")});
  CHECK(encode(*tokenizer, "  a") == Ids{id("\u2581\u2581"), id("\u2581"), id("a")});
  CHECK(encode(*tokenizer, "the theé") == Ids{id("\u2581the"), id("\u2581the"), id("é")});
  CHECK(encode(*tokenizer, "aü") == Ids{id("\u2581"), id("a"), id("<0xC3>"), id("<0xBC>")});
  // After a special token there is a blank again, as before the first word.
  CHECK(encode(*tokenizer, "the</s>the") == Ids{id("\u2581the"), 2, id("\u2581the")});
  CHECK(tokenizer->decode({1, id("\u2581the"), id("\u2581the"), id("<0xC3>"), id("<0xBC>")}) == "<s>the theü");
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const std::string text = random_text(seed, 50);
    const Ids whole = encode(*tokenizer, text);
    for (size_t from = 0; from < text.size(); from += 5) {
      const size_t cut = tokenizer->safe_cut(text, from);
      Ids ids = encode(*tokenizer, std::string_view(text).substr(0, cut));
      tokenizer->encode_rest(std::string_view(text).substr(cut), true, ids);
      CHECK(ids == whole);
    }
  }
  CHECK(tokenizer->safe_cut("the and then", 1) == 3);

  json no_bytes = sentencepiece_json();
  no_bytes["model"]["byte_fallback"] = false;
  CHECK(encode(*from_json(no_bytes), "aüüb") == Ids{id("\u2581"), id("a"), 0, id("b")});
  no_bytes["model"]["fuse_unk"] = false;
  CHECK(encode(*from_json(no_bytes), "aüüb") == Ids{id("\u2581"), id("a"), 0, 0, id("b")});
  no_bytes["model"].erase("unk_token");
  CHECK(encode(*from_json(no_bytes), "aüb") == Ids{id("\u2581"), id("ab")});  // what is no token is left out
  no_bytes["model"]["unk_token"] = "<none>";
  CHECK(encode(*from_json(no_bytes), "ab") == Ids{id("\u2581"), id("ab")});
  CHECK(has(error_of([&] { encode(*from_json(no_bytes), "ü"); }), "the unk_token, \"<none>\", is none either"));
}

TEST_CASE("tokenizers: llama2.c's file") {
  const Folder folder;
  // unk, bos, eos, bytes, then pieces with their scores.
  std::string file(4, '\0');
  const auto add = [&](const std::string& token, float score) {
    const auto length = static_cast<int32_t>(token.size());
    file.append(reinterpret_cast<const char*>(&score), 4).append(reinterpret_cast<const char*>(&length), 4) += token;
  };
  add("<unk>", 0), add("\n<s>\n", 0), add("\n</s>\n", 0);
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    add(name, 0);
  }
  float score = 0;
  for (const char* token : {" t", "he", " the", "ab", "  ", " ", "a", "b", "t", "h", "e", "é"}) add(token, score--);
  const int32_t longest = 6;
  std::memcpy(file.data(), &longest, 4);
  write(folder / "tok.bin", file);
  const auto tokenizer = load_tokenizer(folder / "tok.bin");
  CHECK(tokenizer->vocabulary() == 259 + 12);
  CHECK(tokenizer->text_prefix() == Ids{1});
  CHECK(encode(*tokenizer, "the aüé") == Ids{261, 264, 265, 3 + 0xC3, 3 + 0xBC, 270});
  CHECK(tokenizer->decode({1, 261, 264, 265, 3 + 0xC3, 3 + 0xBC}) == "<s>the aü");
  check_same(*tokenizer, *from_json(json::parse(tokenizer->json())));
  for (size_t size = 0; size < file.size(); size += 1 + size % 16) {  // a prefix is an error, or a smaller vocabulary
    write(folder / "cut.bin", file.substr(0, size));
    const std::string message = error_of([&] { load_tokenizer(folder / "cut.bin"); });
    CHECK((message == "no error" || has(message, "cut.bin")));
    if (size < 3000) CHECK(message != "no error");
  }
}

TEST_CASE("tokenizers: added tokens, special and not, with the white space that belongs to them") {
  json document = json::parse(small_tokenizer()->json());
  const auto add = [&](const char* name, int id, bool special, bool left, bool right) {
    document["added_tokens"].push_back(
        {{"id", id}, {"content", name}, {"special", special}, {"lstrip", left}, {"rstrip", right}});
  };
  add("<mask>", 400, true, true, false);
  add("<right>", 401, true, false, true);
  add("word", 402, false, false, false);
  add("wordy", 403, false, false, false);
  const auto tokenizer = from_json(document);
  const Ids a = encode(*tokenizer, "a"), b = encode(*tokenizer, " b");
  CHECK(encode(*tokenizer, "a \n<mask> b") == Ids{a[0], 400, b[0]});
  CHECK(encode(*tokenizer, "<right>  a") == Ids{401, a[0]});
  CHECK(encode(*tokenizer, "wordword", false) == Ids{402, 402});  // counts also where special tokens are text
  CHECK(encode(*tokenizer, "wordya") == Ids{403, a[0]});          // the longest
  CHECK(encode(*tokenizer, "<mask>", false).size() > 1);
}

// Unicode Standard Annex 15's own examples, and Hangul, which is composed by arithmetic.
TEST_CASE("tokenizers: Unicode's canonical composition") {
  const auto nfc = [](std::string_view text) { return normal_form(text, NormalForm::nfc); };
  CHECK(nfc("e\u0301") == "\u00e9");
  CHECK(nfc("a\u0323\u0307") == "\u1ea1\u0307");
  CHECK(nfc("a\u0307\u0323") == "\u1ea1\u0307");  // marks are put in order first
  CHECK(nfc("\u212b") == "\u00c5");               // the angstrom sign
  CHECK(nfc("\u1112\u1161\u11ab") == "\ud55c");
  CHECK(nfc("\u0958") == "\u0915\u093c");  // is not to be composed
  CHECK(nfc("\ufb01") == "\ufb01");        // only compatible
  CHECK(nfc("plain \xFF\xC3") == "plain \xFF\xC3");
  json document = json::parse(small_tokenizer()->json());
  const auto plain = from_json(document);
  document["normalizer"] = {{"type", "NFC"}};
  const auto composed = from_json(document);
  CHECK(encode(*composed, "e\u0301 a") == encode(*plain, "\u00e9 a"));
}

TEST_CASE("tokenizers: what a tokenizer.json asks for and this program cannot do is an error that names it") {
  const json good = json::parse(small_tokenizer()->json());
  const auto message = [&](const char* pointer, const json& value) {
    json document = good;
    document[json::json_pointer(pointer)] = value;
    return error_of([&] { from_json(document); });
  };
  CHECK(message("/version", "1.0") == "no error");
  CHECK(has(message("/model/type", "Chars"), "\"Chars\" is not supported; supported: BPE, WordPiece"));
  CHECK(has(message("/model/dropout", 0.1), "\"dropout\""));
  CHECK(has(message("/model/vocab", 3), "no \"vocab\""));
  CHECK(has(message("/model/vocab/a", -3), "the id of token \"a\""));
  CHECK(has(message("/model/vocab/a", 1e9), "the id of token \"a\""));
  CHECK(has(message("/model/merges/0", "one"), "merge number 0"));
  CHECK(has(message("/model/merges/0", {"q", "no such token"}), "no token of the vocabulary"));
  CHECK(has(message("/normalizer", {{"type", "Uppercase"}}), "\"Uppercase\" is not supported; supported: NFC"));
  CHECK(has(message("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "AAAA"}}), "is damaged"));
  CHECK(has(message("/pre_tokenizer", {{"type", "UnicodeScripts"}}), "\"UnicodeScripts\" is not supported"));
  CHECK(has(message("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Kept"}}),
            "of behavior \"Kept\" is not supported; supported: Isolated"));
  CHECK(has(message("/post_processor", {{"type", "Other"}}), "\"Other\" is not supported"));
  CHECK(has(message("/post_processor", {{"type", "BertProcessing"}, {"cls", {"x"}}}),
            "\"cls\" is not a token and its id"));
  CHECK(has(message("/post_processor", {{"type", "BertProcessing"}, {"cls", {"x", 999}}}), "token 999 is none"));
}

namespace {

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

}  // namespace

TEST_CASE("tokenizers: tiktoken's ids and bytes for published vocabularies (TRAIN_GPT_SHARED)") {
  const char* shared = std::getenv("TRAIN_GPT_SHARED");
  if (!shared) return;
  const std::string data = std::string(shared) + "/data/";
  std::map<std::string, std::unique_ptr<Tokenizer>> tokenizers;
  tokenizers["gpt2"] = load_tokenizer(data + "gpt2");
  for (const std::string name : {"cl100k_base", "o200k_base"})
    tokenizers[name] = load_tokenizer(data + "tiktoken/" + name + ".tiktoken");

  std::string line;
  int encoded = 0, decoded = 0;
  std::ifstream vectors(data + "tokenizer_vectors.jsonl"), decode_vectors(data + "tokenizer_decode_vectors.jsonl");
  while (std::getline(vectors, line)) {
    const json v = json::parse(line);
    INFO(line);
    const Tokenizer& tokenizer = *tokenizers.at(v["encoding"]);
    const std::string text = from_hex(v["utf8_hex"]);
    CHECK(encode(tokenizer, text, v["special"]) == v["ids"].get<Ids>());
    CHECK(tokenizer.decode(v["ids"]) == text);
    ++encoded;
  }
  while (std::getline(decode_vectors, line)) {
    const json v = json::parse(line);
    INFO(line);
    CHECK(tokenizers.at(v["encoding"])->decode(v["ids"]) == from_hex(v["bytes_hex"]));
    ++decoded;
  }
  CHECK(encoded == 663);
  CHECK(decoded == 203);
}
