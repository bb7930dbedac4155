// Text: the tokenizer of bytes, token shards, the order in which the loader takes samples.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>
#include <utility>

#include "llm/base/error.h"
#include "llm/text/loader.h"
#include "llm/text/shards.h"
#include "llm/text/tokenize.h"
#include "llm/text/tokenizer.h"
#include "test/text_files.h"

namespace fs = std::filesystem;
using namespace llm;
using namespace test;

TEST_CASE("text: the bytes tokenizer gives back all bytes, and knows its special token only when asked") {
  const auto tokenizer = load_tokenizer("bytes");
  CHECK(tokenizer->vocabulary() == 257);
  CHECK(tokenizer->end_of_text() == 256);
  std::string bytes(256, '\0');
  std::iota(bytes.begin(), bytes.end(), '\0');
  CHECK(encode(*tokenizer, bytes, false) == count_up(256));
  CHECK(tokenizer->decode(count_up(256)) == bytes);

  const std::string text = "a<|endoftext|><|endoftext|>b<|endof<|endoftext|>";
  CHECK(encode(*tokenizer, text, true) ==
        std::vector<int32_t>{'a', 256, 256, 'b', '<', '|', 'e', 'n', 'd', 'o', 'f', 256});
  CHECK(encode(*tokenizer, text, false).size() == text.size());
  CHECK(tokenizer->decode(encode(*tokenizer, text, true)) == text);
  CHECK(tokenizer->decode(encode(*tokenizer, text, false)) == text);
  CHECK(encode(*tokenizer, "", true).empty());
  CHECK(contains(error_of([&] { tokenizer->decode({65, 257}); }), "257"));
  CHECK(contains(error_of([&] { tokenizer->decode({-1}); }), "-1"));
}

TEST_CASE("text: wherever safe_cut cuts, the parts' ids are the whole's") {
  const auto tokenizer = load_tokenizer("bytes");
  const std::string text = "ab<|endoftext|>c<|endoftext|><|endoftext|>é<|endoftext";
  for (size_t from = 0; from <= text.size() + 2; ++from) {
    const size_t cut = tokenizer->safe_cut(text, from);
    REQUIRE(cut >= std::min(from, text.size()));
    REQUIRE(cut <= text.size());
    std::vector<int32_t> ids = encode(*tokenizer, std::string_view(text).substr(0, cut), true);
    tokenizer->encode(std::string_view(text).substr(cut), true, ids);
    CHECK(ids == encode(*tokenizer, text, true));
  }
  CHECK(tokenizer->safe_cut(text, 1) == 1);
  CHECK(tokenizer->safe_cut(text, 2) == 2);
  CHECK(tokenizer->safe_cut(text, 3) == 15);
  CHECK(tokenizer->safe_cut(text, 15) == 15);
}

TEST_CASE("text: a tokenizer.json of the bytes kind is read back, others are refused") {
  const Folder directory;
  const std::string path = directory / "tokenizer.json";
  const std::string json = load_tokenizer("bytes")->json();
  const auto load = [&](std::string_view content) {
    write_text(path, content);
    return error_of([&] { load_tokenizer(path); });
  };
  CHECK(load(json) == "no error");
  CHECK(load_tokenizer(directory.path)->vocabulary() == 257);  // by the directory that holds the file

  std::string other;
  for (const auto& [from, to, message] : std::vector<std::array<const char*, 3>>{
           {"\"merges\": []", "\"merges\": [\"a b\"]", "merge number 0: \"ab\" is no token of the vocabulary"},
           {"\"merges\": []", "\"merges\": [\"ab\"]", "merge number 0 is not two tokens"},
           {"\"BPE\"", "\"Unigram\"", "it has no proper \"vocab\""},
           {"\"a\": 97", "\"a\": 9999999", "the id of token \"a\" is not a whole number below"},
           {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Uppercase\"}", "\"Uppercase\" is not supported"}}) {
    other = json;
    replace(other, from, to);
    CHECK(contains(load(other), message));
  }
  for (const char* key : {"\"model\"", "\"vocab\"", "\"merges\""}) {
    other = json;
    replace(other, key, "\"x\"");
    CHECK(contains(load(other), key));
  }
  other = json;
  replace(other, "\"a\": 97", "\"\xff\": 97");
  for (const std::string& broken :
       {std::string(), std::string("{"), std::string("\x00\x01", 2), json.substr(0, 200), other, json + "}"})
    CHECK(contains(load(broken), path + ": not JSON"));
  for (const char* wrong : {"[]", "7", "null", "{}", "{\"model\": 3}", "{\"model\": {\"type\": \"BPE\"}}"})
    CHECK(contains(load(wrong), path + ": not a tokenizer.json"));
  CHECK(contains(error_of([] { load_tokenizer("byte"); }), "bytes"));
}

TEST_CASE("text: shards of both widths, whatever the pieces they are written and read in") {
  const Folder directory;
  for (const int64_t vocabulary : {int64_t{65536}, int64_t{65537}}) {
    const std::string path = directory / "shard.bin";
    std::vector<int32_t> tokens = count_up(300'000);
    for (int32_t& token : tokens) token = token * 7 % static_cast<int32_t>(vocabulary);
    tokens.back() = static_cast<int32_t>(vocabulary - 1);
    {
      ShardWriter writer(path, vocabulary);
      const int64_t size = static_cast<int64_t>(tokens.size());
      for (int64_t begin = 0, part = 0; begin < size; begin += part, part = 2 * part + 1)
        writer.write(tokens.data() + begin, std::min(part, size - begin));
      CHECK(writer.size() == size);
      CHECK(!fs::exists(path));
      writer.finish();
      CHECK(contains(error_of([&] { writer.write(tokens.data(), 1); }), "closed"));
    }
    CHECK(fs::file_size(path) == 1024 + tokens.size() * (vocabulary == 65536 ? 2 : 4));
    CHECK(all_tokens({path}) == tokens);
    CHECK(TokenStream({path}).largest_token() == vocabulary - 1);
    int32_t part[3];
    TokenShard(path).read(299'997, 3, part);
    CHECK(std::equal(part, part + 3, tokens.end() - 3));
    for (const auto& [begin, count] :
         std::vector<std::pair<int64_t, int64_t>>{{-1, 2}, {0, -1}, {299'999, 2}, {300'001, 0}})
      CHECK(contains(error_of([&] { TokenShard(path).read(begin, count, part); }), "asked for"));
    fs::remove(path);
  }
  CHECK(names_in(directory).empty());
}

TEST_CASE("text: a shard whose header or length is wrong is refused, by name") {
  const Folder directory;
  const std::string path = directory / "shard.bin";
  for (const int64_t vocabulary : {257, 100'000}) {
    write_shard(path, count_up(50), vocabulary);
    const std::string good = read_text(path);
    const auto open = [&](const std::string& content) {
      write_text(path, content);
      return error_of([&] { TokenShard shard(path); });
    };
    const auto with = [&](size_t field, int32_t value) {
      std::string changed = good;
      std::memcpy(changed.data() + 4 * field, &value, 4);
      return changed;
    };
    CHECK(open(good) == "no error");
    CHECK(contains(open(""), path + ": not a token shard, its 0 bytes"));
    CHECK(contains(open(good.substr(0, 1023)), "1024"));
    CHECK(contains(open(with(0, 20240326)), "magic number is 20240326"));
    CHECK(contains(open(with(1, 2)), "version 2"));
    CHECK(contains(open(with(2, -1)), "its header says -1 tokens"));
    CHECK(contains(open(with(2, 49)), path + ": damaged"));
    CHECK(contains(open(with(2, 51)), path + ": truncated"));
    CHECK(contains(open(with(2, 2147483647)), path + ": truncated"));
    CHECK(contains(open(good.substr(0, good.size() - 1)), path + ": truncated"));
    CHECK(contains(open(good + "x"), path + ": damaged"));
    CHECK(contains(open(std::string(2000, 'x')), "magic"));
  }
  // A token of 32 bits that no int32 holds.
  write_shard(path, {1, 2, 3}, 100'000);
  std::string shard = read_text(path);
  shard[1024 + 3] = '\x80';
  write_text(path, shard);
  CHECK(contains(error_of([&] { TokenStream({path}).largest_token(); }), "2^31"));
  CHECK(contains(error_of([&] { TokenShard missing(directory / "none.bin"); }), "none.bin: No such file"));
}

TEST_CASE("text: a shard that cannot be written is an error, and nothing is left of it") {
  const Folder directory;
  const std::string path = directory / "shard.bin";
  const auto write = [&](const std::vector<int32_t>& tokens, int64_t vocabulary) {
    return error_of([&] { write_shard(path, tokens, vocabulary); });
  };
  CHECK(contains(write({1, 65536}, 65536), "token 65536 (number 1)"));
  CHECK(contains(write({-1}, 257), "token -1"));
  CHECK(contains(write({1, 2, -5}, 100'000), "token -5 (number 2)"));
  CHECK(names_in(directory).empty());
  if (fs::exists("/dev/full")) {
    for (const int64_t size : {10, 2'000'000}) {  // bytes: less than a buffer, and more
      fs::create_symlink("/dev/full", path + ".tmp");
      CHECK(contains(write(std::vector<int32_t>(static_cast<size_t>(size)), 257),
                     "cannot write " + path + ": No space left on device"));
      CHECK(names_in(directory).empty());
    }
  }
  CHECK(contains(error_of([&] { ShardWriter writer(directory / "none/shard.bin", 257); }), "No such file"));
}

TEST_CASE("text: a stream joins its shards in the order of their names") {
  const Folder directory;
  const std::vector<int32_t> tokens = count_up(100);
  write_shard(directory / "b.bin", count_up(70, 30), 100'000);  // the shards' tokens may have different widths
  write_shard(directory / "a.bin", count_up(30));
  write_shard(directory / "aa.bin", {});
  const TokenStream stream({directory / "b.bin", directory / "aa.bin", directory / "a.bin"});
  REQUIRE(stream.size() == 100);
  CHECK(stream.largest_token() == 99);
  for (int64_t begin = 0; begin <= 100; ++begin)
    for (int64_t count = 0; count <= 100 - begin; ++count) {
      std::vector<int32_t> part(static_cast<size_t>(count));
      stream.read(begin, count, part.data());
      REQUIRE(std::equal(part.begin(), part.end(), tokens.begin() + begin));
    }
  int32_t token;
  CHECK(contains(error_of([&] { stream.read(100, 1, &token); }), "asked for"));
  const TokenStream empty;
  CHECK(empty.size() == 0);
  CHECK(empty.largest_token() == -1);
}

TEST_CASE("text: permute is a bijection, and another one for each seed and epoch") {
  const auto is_bijection = [](int64_t n, uint64_t seed, uint64_t epoch) {
    std::vector<bool> seen(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t p = permute(i, n, seed, epoch);
      if (p < 0 || p >= n || seen[static_cast<size_t>(p)]) return false;
      seen[static_cast<size_t>(p)] = true;
    }
    return true;
  };
  for (int64_t n = 1; n <= 300; ++n)
    for (uint64_t seed = 0; seed < 3; ++seed) REQUIRE(is_bijection(n, seed, seed * 5));
  CHECK(is_bijection(1'000'000, 42, 0));
  CHECK(is_bijection((1 << 19) + 1, 42, 1));

  const auto permutation = [](int64_t n, uint64_t seed, uint64_t epoch) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < n; ++i) order.push_back(permute(i, n, seed, epoch));
    return order;
  };
  CHECK(permutation(1000, 1, 0) == permutation(1000, 1, 0));
  CHECK(permutation(1000, 1, 0) != permutation(1000, 2, 0));
  CHECK(permutation(1000, 1, 0) != permutation(1000, 1, 1));
  CHECK(permutation(1000, 1, 0) != permutation(1000, 1ull << 32 | 1, 0));
  // Neighbours are scattered: their mean distance is n / 3, that of two random places.
  double distance = 0;
  for (int64_t i = 0; i < 9999; ++i)
    distance += static_cast<double>(std::abs(permute(i + 1, 10'000, 7, 7) - permute(i, 10'000, 7, 7))) / 9999;
  CHECK(distance == doctest::Approx(10'000 / 3.0).epsilon(0.05));
  // Every index comes to every place equally often: here 6 x 6 pairs, 1000 times each.
  std::vector<int> times(36);
  for (uint64_t epoch = 0; epoch < 6000; ++epoch)
    for (int64_t i = 0; i < 6; ++i) ++times[static_cast<size_t>(6 * i + permute(i, 6, 3, epoch))];
  for (const int t : times) CHECK(std::abs(t - 1000) < 200);

  const int64_t huge = int64_t{1} << 62;
  for (int64_t i : {int64_t{0}, huge - 1}) CHECK(permute(i, huge, 1, 1) < huge);
  CHECK(contains(error_of([] { permute(5, 5, 0, 0); }), "5"));
  CHECK(contains(error_of([] { permute(0, 0, 0, 0); }), "0"));
}

TEST_CASE("text: the loader's windows tile each epoch, lie inside the stream, and do not depend on how they are read") {
  const Folder directory;
  for (const int64_t size : {9, 10, 15, 16, 17, 23, 24, 100, 1000}) {
    write_shard(directory / "a.bin", count_up(size / 2));
    write_shard(directory / "b.bin", count_up(size - size / 2, static_cast<int32_t>(size / 2)));
    const TokenStream stream({directory / "a.bin", directory / "b.bin"});
    const int64_t context = 8;
    const Loader loader(stream, context, 42);
    const int64_t windows = loader.windows();
    CHECK(windows == std::max<int64_t>(1, (size - context) / context));
    std::set<int64_t> offsets;
    for (int64_t epoch = 0; epoch < 60; ++epoch) {
      std::vector<int64_t> positions;
      for (int64_t w = 0; w < windows; ++w) positions.push_back(loader.position(epoch * windows + w));
      std::sort(positions.begin(), positions.end());
      offsets.insert(positions[0]);
      REQUIRE(positions[0] >= 0);
      REQUIRE(positions.back() + context + 1 <= size);
      for (size_t w = 1; w < positions.size(); ++w) REQUIRE(positions[w] == positions[w - 1] + context);
    }
    // The offsets take all values for which the stream has room.
    CHECK(static_cast<int64_t>(offsets.size()) == std::min(context, size - windows * context));

    const int64_t count = 2 * windows + 3;
    std::vector<int32_t> tokens(static_cast<size_t>(count * context)), targets = tokens, tokens2 = tokens,
                                                                       targets2 = tokens;
    loader.read(0, count, tokens.data(), targets.data());
    for (int64_t s = 0; s < count; ++s)
      for (int64_t t = 0; t < context; ++t) {
        REQUIRE(tokens[static_cast<size_t>(s * context + t)] == loader.position(s) + t);
        REQUIRE(targets[static_cast<size_t>(s * context + t)] == loader.position(s) + t + 1);
      }
    for (int64_t s = 0, part = 1; s < count; s += part, part = std::min(part + 1, count - s))
      loader.read(s, part, tokens2.data() + s * context, targets2.data() + s * context);
    CHECK(tokens2 == tokens);
    CHECK(targets2 == targets);
  }
  write_shard(directory / "a.bin", count_up(8));
  const TokenStream tiny({directory / "a.bin"});
  CHECK(contains(error_of([&] { Loader loader(tiny, 8, 0); }), "8 tokens, a context of 8 needs 9"));
  CHECK(contains(error_of([&] { Loader loader(tiny, 0, 0); }), "context"));
}
