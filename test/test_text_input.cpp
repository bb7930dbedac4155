// Texts as people have them: packed, as JSON lines, in directories, not text at all; and several of them, mixed.
#include <zlib.h>
#include <zstd.h>

#include "llm/text/decompress.h"
#include "llm/text/loader.h"
#include "llm/text/tokenize.h"
#include "test/text_files.h"

using namespace llm;
using namespace test;
namespace fs = std::filesystem;

namespace {

std::string gzip(const std::string& text) {
  z_stream stream{};
  REQUIRE(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string packed(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

std::string zstd(const std::string& text) {
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 3));
  return packed;
}

std::string unpacked(const std::string& file) {
  std::string text;
  unpack(std::as_bytes(std::span(file)), "packed", [&](std::string_view piece) { text += piece; });
  return text;
}

std::string large_text() {
  std::string text;
  for (int i = 0; i < 300'000; ++i) text += std::to_string(i * 2654435761u) + (i % 7 ? " " : "\n");
  return text;
}

std::vector<int32_t> tokens_of(const TokenStream& stream) {
  std::vector<int32_t> tokens(static_cast<size_t>(stream.size()));
  stream.read(0, stream.size(), tokens.data());
  return tokens;
}

}  // namespace

TEST_CASE("text input: what gzip and zstd pack, in one part or in several, and what is cut off") {
  const std::string text = large_text(), more = "the second part\n";
  for (const auto pack : {gzip, zstd}) {
    CHECK(unpacked(pack(text)) == text);
    CHECK(unpacked(pack(text) + pack(more)) == text + more);
    CHECK(unpacked(pack("")).empty());
    const std::string packed = pack(more);
    for (size_t size = 4; size < packed.size(); ++size)
      CHECK(has(error_of([&] { unpacked(packed.substr(0, size)); }), "cut off"));
    std::string damaged = pack(text);
    damaged[pack == gzip ? damaged.size() / 2 : 4] ^= 0x0F;  // (zstd's own files have no checksum: its header)
    CHECK(has(error_of([&] { unpacked(damaged); }), "damaged"));
  }
  CHECK(unpacked(gzip(text) + std::string(512, '\0')) == text);  // as tape programs pad
}

TEST_CASE("text input: packed files and JSON lines become the tokens of their texts, and leave no scratch file") {
  const Folder folder;
  ThreadTeam threads(2);
  const auto tokenizer = load_tokenizer("bytes");
  const auto tokenized = [&](const std::vector<std::string>& files, const std::string& key = "") {
    const std::string out = folder / "out";
    tokenize_files(files, *tokenizer, out, 0, threads, {}, 100'000'000, key);
    for (const auto& entry : fs::directory_iterator(out)) CHECK_FALSE(has(entry.path().string(), ".tmp"));
    return tokens_of(open_dataset(out, "", threads).train);
  };
  const auto ids = [&](const std::string& text) {
    std::vector<int32_t> result;
    tokenizer->encode(text, true, result);
    return result;
  };
  const std::string text = large_text(), name = folder / "a.txt";
  write_text(name, text);
  write_text(name + ".gz", gzip(text)), write_text(folder / "unmarked", zstd(text));
  CHECK(tokenized({name}) == ids(text));
  CHECK(tokenized({name + ".gz"}) == ids(text));
  CHECK(tokenized({folder / "unmarked"}) == ids(text));

  const std::string lines =
      "{\"text\": \"one\\n\", \"id\": 1}\n\n{\"text\":\"\"}\r\n{\"text\": \"tw\\u00f6\"}\n{\"text\":\"three\"}";
  const std::string end = "<|endoftext|>", documents = "one\n" + end + "twö" + end + "three" + end;
  write_text(folder / "b.jsonl", lines), write_text(folder / "b.ndjson.gz", gzip(lines));
  CHECK(tokenized({folder / "b.jsonl"}) == ids(documents));
  CHECK(tokenized({folder / "b.ndjson.gz"}) == ids(documents));
  // Text between documents; the last text has no end.
  write_text(folder / "c.txt", "see");
  CHECK(tokenized({folder / "c.txt", folder / "b.jsonl", folder / "c.txt"}) == ids("see" + end + documents + "see"));
  // Documents longer than what is encoded at once, and many short ones.
  std::string many, expected;
  for (int i = 0; i < 3; ++i)
    many += "{\"t\":" + std::string("\"") + std::string(1'500'000, static_cast<char>('a' + i)) + "\"}\n",
        expected += std::string(1'500'000, static_cast<char>('a' + i)) + end;
  for (int i = 0; i < 2000; ++i) many += "{\"t\":\"" + std::to_string(i) + "\"}\n", expected += std::to_string(i) + end;
  write_text(folder / "many", many);
  CHECK(tokenized({folder / "many"}, "t") == ids(expected));

  const auto error = [&](const std::string& content, const std::string& file = "w.jsonl") {
    write_text(folder / file, content);
    return error_of([&] { tokenized({folder / file}); });
  };
  CHECK(has(error("{\"text\":\"a\"}\n{\"content\":\"a\",\"n\":1}"),
            "line 2: no text under \"text\"; name the key of the text by --text-key, one of \"content\""));
  CHECK(has(error("{\"text\":\"a\"}\n{\"text\":"), "line 2"));
  CHECK(has(error("[1]"), "line 1"));
  CHECK(has(error("{\"text\":\"\"}"), "no text"));
  CHECK(has(error(gzip(""), "e.txt"), "no text"));
}

TEST_CASE("text input: what is no text is called by its name") {
  const Folder folder;
  const auto error = [&](std::string content) {
    write_text(folder / "w.txt", content);
    return error_of([&] { TextInput(folder / "w.txt", folder.path); });
  };
  std::string utf16 = "\xFF\xFE", bare;
  for (const char c : std::string("some words of text")) bare += std::string(1, c) + '\0';
  CHECK(has(error(utf16 + bare), "UTF-16 (it begins with FF FE), not UTF-8; convert it: iconv"));
  CHECK(has(error("\xFE\xFF" + bare), "FE FF"));
  CHECK(has(error(bare), "bytes are 0"));
  CHECK(has(error(gzip(utf16 + bare)), "UTF-16"));
  CHECK(has(error("PAR1 and more"), "parquet_to_jsonl.py"));
  CHECK(has(error("%PDF-1.7"), "pdftotext"));
  CHECK(has(error("PK\x03\x04 and more"), "zip"));
  CHECK(has(error(std::string(257, 'a') + "ustar  and more"), "tar archive"));
  CHECK(error("\xEF\xBB\xBFtext with the mark that UTF-8 may have") == "no error");
  std::string cyrillic;  // in Windows' encoding
  for (int i = 0; i < 64; ++i) cyrillic += i % 8 == 7 ? ' ' : static_cast<char>(0xE0 + i % 32);
  CHECK(has(error(cyrillic), "is not UTF-8 text: 56 of its first 64 bytes are part of no character"));
  CHECK(error("Привет, мир") == "no error");
  CHECK(error("Latin-1 \xE9 is read as it is, byte for byte") == "no error");
}

TEST_CASE("text input: a directory's texts, in the order of their paths") {
  const Folder folder;
  fs::create_directories(folder / "texts/below");
  for (const char* name : {"b.txt", "a.md", "below/c.jsonl.gz", "picture.png", "below/d.text.zst"})
    write_text(folder / ("texts/" + std::string(name)), "x");
  const std::string texts = folder / "texts/";
  CHECK(expand_texts({folder / "texts", "-"}) == std::vector<std::string>{texts + "a.md", texts + "b.txt",
                                                                          texts + "below/c.jsonl.gz",
                                                                          texts + "below/d.text.zst", "-"});
  fs::create_directories(folder / "none");
  CHECK(has(error_of([&] { expand_texts({folder / "none"}); }), "no text in"));
}

TEST_CASE("text input: several sources are one data set, or a mixture by weights") {
  const Folder folder;
  ThreadTeam threads(2);
  write_text(folder / "a.txt", std::string(900, 'a')), write_text(folder / "b.txt", std::string(300, 'b'));
  const auto bytes = load_tokenizer("bytes");
  tokenize_files({folder / "b.txt"}, *bytes, folder / "shards", 0.1, threads);
  const TextTokens texts{.cache = folder / "cache", .val_fraction = 0.1};
  const auto open = [&](const std::vector<std::string>& data) { return open_dataset(data, texts, threads); };
  const std::string a = folder / "a.txt", b = folder / "b.txt", shards = folder / "shards";

  const Dataset joined = open({a, b});
  CHECK(joined.train.size() == 900 + 1 + 180);  // the last tenth of both together is held out
  CHECK(joined.mixture.empty());
  const Dataset kinds = open({a, shards});
  CHECK(kinds.train.size() == 810 + 270);
  CHECK(kinds.val.size() == 90 + 30);
  CHECK(kinds.val_bytes_per_token == 1);
  CHECK(tokens_of(kinds.train)[0] == 'b');  // texts are behind shards
  CHECK(kinds.train.largest_token() == 'b');

  const Dataset mixed = open({"0.7:" + a, "0.2:" + shards, "0.1:" + b});
  REQUIRE(mixed.mixture.size() == 3);
  CHECK(mixed.train.size() == 810 + 270 + 270);
  CHECK(mixed.checksum() != open({"0.6:" + a, "0.3:" + shards, "0.1:" + b}).checksum());
  const int64_t context = 8;
  const Loader loader(mixed.train, context, 3, 257, mixed.mixture), other(mixed.train, context, 4, 257, mixed.mixture);
  int64_t counts[3] = {0, 0, 0}, equal = 0;
  std::vector<int64_t> of_first;
  for (int64_t s = 0; s < 20'000; ++s) {
    const int64_t position = loader.position(s);
    const int part = position < 810 ? 0 : position < 1080 ? 1 : 2;
    REQUIRE(position + context + 1 <= (part == 0 ? 810 : part == 1 ? 1080 : 1350));  // a sample is of one part
    ++counts[part];
    if (part == 0) of_first.push_back(position);
    equal += position == other.position(s);
  }
  CHECK(counts[0] == 14'000);
  CHECK(counts[1] == 4'000);
  CHECK(counts[2] == 2'000);
  CHECK(equal < 2000);
  // The samples of a part are those of the part alone, in that order.
  const TokenStream alone({folder / "cache/0/train_000000.bin"});
  const Loader first(alone, context, 3);
  std::vector<int64_t> sorted = of_first, expected;
  for (size_t i = 0; i < of_first.size(); ++i) expected.push_back(first.position(static_cast<int64_t>(i)));
  std::sort(sorted.begin(), sorted.end()), std::sort(expected.begin(), expected.end());
  CHECK(sorted == expected);
  // The share holds over short stretches as well.
  for (int64_t begin = 0; begin < 20'000; begin += 500) {
    int64_t count = 0;
    for (int64_t s = begin; s < begin + 500; ++s) count += loader.position(s) < 810;
    CHECK(std::abs(count - 350) < 60);
  }

  CHECK(has(error_of([&] { open({a, "0.5:" + b}); }), "one with a weight and one without"));
  CHECK(has(error_of([&] { open({"0:" + a, "1:" + b}); }), "above 0"));
  CHECK(has(error_of([&] {
              Loader(mixed.train, context, 3, 257, {{"x", 810, 1e6}, {"y", 540, 1}});
            }),
            "less than a sample"));
  CHECK(has(error_of([&] { Loader(mixed.train, 300, 3, 257, mixed.mixture); }), "too short: 270 tokens"));
}
