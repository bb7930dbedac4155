// Text: the bytes tokenizer, token shards, the loader's order, tokenize_files() and what --data may name.
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
#include "test/helpers.h"

namespace fs = std::filesystem;
using namespace llm;
using namespace test;

namespace {

std::set<std::string> names_in(const Folder& directory) {
  std::set<std::string> found;
  for (const auto& entry : fs::directory_iterator(directory.path)) found.insert(entry.path().filename().string());
  return found;
}

void write_text(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

std::string read_text(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void replace(std::string& text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  REQUIRE(at != text.npos);
  text.replace(at, from.size(), to);
}

bool contains(const std::string& text, std::string_view part) {
  const bool found = text.find(part) != text.npos && text.find('\n') == text.npos;
  if (!found) MESSAGE("\"" << part << "\" is not in: " << text);
  return found;
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text, bool special) {
  std::vector<int32_t> ids;
  tokenizer.encode(text, special, ids);
  return ids;
}

void write_shard(const std::string& path, const std::vector<int32_t>& tokens, int64_t vocabulary = 65536) {
  ShardWriter writer(path, vocabulary);
  writer.write(tokens.data(), static_cast<int64_t>(tokens.size()));
  writer.finish();
}

std::vector<int32_t> all_tokens(const std::vector<std::string>& paths) {
  const TokenStream stream(paths);
  std::vector<int32_t> tokens(static_cast<size_t>(stream.size()));
  stream.read(0, stream.size(), tokens.data());
  return tokens;
}

std::vector<int32_t> count_up(int64_t n, int32_t first = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Stands for tokenizers that may cut only at some places, and that need 32 bits: a token is a word and the blank after
// it. With `fuse` above 0 it throws at that byte of the text.
class WordTokenizer : public Tokenizer {
 public:
  explicit WordTokenizer(char fuse = 0) : fuse_(fuse) {}
  int64_t vocabulary() const override { return 1'000'000; }
  int32_t end_of_text() const override { return 999'999; }
  void encode(std::string_view text, bool, std::vector<int32_t>& ids) const override {
    int32_t hash = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      if (fuse_ && text[i] == fuse_) fail("the fuse has blown");
      hash = (hash * 31 + static_cast<unsigned char>(text[i])) % 900'000;
      if (text[i] == ' ' || i + 1 == text.size()) ids.push_back(std::exchange(hash, 0));
    }
  }
  std::string_view bytes_of(int32_t) const override { return {}; }
  size_t safe_cut(std::string_view text, size_t from) const override {
    const size_t blank = text.find(' ', from == 0 ? 0 : from - 1);
    return blank == text.npos ? text.size() : blank + 1;
  }
  std::string json() const override { return "{}"; }

 private:
  char fuse_;
};

std::string make_text(size_t bytes) {
  std::string text;
  for (uint32_t state = 1; text.size() < bytes;) {
    state = state * 1664525 + 1013904223;
    text += "the quick brown fox jumps over it "[state >> 27];
    if (state >> 18 == 77) text += "\n<|endoftext|>\n";
  }
  text.resize(bytes);
  return text;
}

}  // namespace

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
  CHECK(load_tokenizer(directory.path)->vocabulary() == 257);  // the directory that holds it

  std::string other;
  for (const auto& [from, to, message] : std::vector<std::array<const char*, 3>>{
           {"\"merges\": []", "\"merges\": [\"a b\"]", "merge number 0: \"ab\" is no token of the vocabulary"},
           {"\"merges\": []", "\"merges\": [\"ab\"]", "merge number 0 is not two tokens"},
           {"\"BPE\"", "\"Unigram\"", "a tokenizer of type \"Unigram\" is not supported; supported: BPE"},
           {"\"a\": 97", "\"a\": 98", "the id 98 is that of \"a\" and of \"b\""},
           {"\"a\": 97", "\"a\": 9999999", "the id of token \"a\" is not a whole number below"},
           {"\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}", "\"Lowercase\" is not supported"},
           {"\"single_word\": false", "\"single_word\": true", "\"single_word\", which is not supported"}}) {
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
  // A token that no int32 holds, in the 32-bit form.
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
    for (const int64_t size : {10, 2'000'000}) {  // less and more than a buffer
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
  write_shard(directory / "b.bin", count_up(70, 30), 100'000);  // the widths may differ
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
  const TokenStream empty({});
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
  // Neighbours go their own ways: the mean distance is n / 3, as of two random places.
  double distance = 0;
  for (int64_t i = 0; i < 9999; ++i)
    distance += static_cast<double>(std::abs(permute(i + 1, 10'000, 7, 7) - permute(i, 10'000, 7, 7))) / 9999;
  CHECK(distance == doctest::Approx(10'000 / 3.0).epsilon(0.05));
  // Every index goes to every place equally often: here 6 x 6 pairs, 1000 times each.
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
    // The offsets vary as far as the stream has room.
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

TEST_CASE("text: files become shards, joined by end-of-text, the last part held out exactly") {
  const Folder directory;
  ThreadTeam threads(2);
  const auto tokenizer = load_tokenizer("bytes");
  write_text(directory / "a.txt", std::string(60, 'a'));
  write_text(directory / "b.txt", std::string(45, 'b'));
  const std::vector<std::string> inputs{directory / "a.txt", directory / "b.txt"};
  const std::string out = directory / "out/of/here";
  for (const double fraction : {0.0, 0.1, 0.25, 45.0 / 105, 0.5, 0.999}) {
    const TokenizeResult result = tokenize_files(inputs, *tokenizer, out, fraction, threads);
    const size_t held_out = static_cast<size_t>(105 * fraction), train = 105 - held_out;
    CHECK(result.val_bytes == static_cast<int64_t>(held_out));
    CHECK(result.train_bytes == static_cast<int64_t>(train));
    // The token between the files belongs to the first one's end.
    std::vector<int32_t> joined(60, 'a');
    joined.push_back(256);
    joined.insert(joined.end(), 45, 'b');
    const Dataset dataset = open_dataset(out, "", threads);
    CHECK(dataset.train.size() == 1);
    CHECK(dataset.val.size() == (held_out > 0));
    std::vector<int32_t> tokens = all_tokens(dataset.train);
    CHECK(tokens.size() == train + (train >= 60));
    const std::vector<int32_t> val = all_tokens(dataset.val);
    tokens.insert(tokens.end(), val.begin(), val.end());
    CHECK(tokens == joined);
    CHECK(dataset.vocabulary == 257);
    REQUIRE(dataset.tokenizer);
    CHECK(dataset.tokenizer->json() == tokenizer->json());
    CHECK(dataset.train_bytes_per_token ==
          doctest::Approx(static_cast<double>(result.train_bytes) / static_cast<double>(result.train_tokens)));
  }
  // A cut inside a special token's name moves behind it.
  write_text(directory / "c.txt", "0123456789<|endoftext|>0123456789");
  tokenize_files({directory / "c.txt"}, *tokenizer, out, 0.5, threads);
  CHECK(all_tokens(open_dataset(out, "", threads).train) == encode(*tokenizer, "0123456789<|endoftext|>", true));
  CHECK(all_tokens(open_dataset(out, "", threads).val) == encode(*tokenizer, "0123456789", true));
}

TEST_CASE("text: the shards are the same for every number of threads and every tokenizer that cuts where it may") {
  const Folder directory;
  const std::string text = make_text(3'500'000);
  write_text(directory / "text.txt", text);
  const auto bytes = load_tokenizer("bytes");
  const WordTokenizer words;
  for (const Tokenizer* tokenizer : std::initializer_list<const Tokenizer*>{bytes.get(), &words}) {
    const std::vector<int32_t> whole = encode(*tokenizer, text, true);
    for (const int count : {1, 3}) {
      ThreadTeam threads(count);
      const std::string out = directory / concat("out", count);
      int64_t last = 0;
      const TokenizeResult result = tokenize_files(
          {directory / "text.txt"}, *tokenizer, out, 0.3, threads,
          [&](int64_t done, int64_t total) {
            CHECK(done > last);
            CHECK(total == 3'500'000);
            last = done;
          },
          900'000);
      CHECK(last == 3'500'000);
      CHECK(result.train_tokens + result.val_tokens == static_cast<int64_t>(whole.size()));
      CHECK(result.train_bytes + result.val_bytes == 3'500'000);
      CHECK(result.shards == (result.train_tokens + 899'999) / 900'000 + (result.val_tokens + 899'999) / 900'000);
      std::vector<std::string> paths;
      for (const auto& entry : fs::directory_iterator(out))
        if (entry.path().extension() == ".bin") paths.push_back(entry.path().string());
      CHECK(static_cast<int64_t>(paths.size()) == result.shards);
      CHECK(all_tokens(paths) == whole);  // train comes before val by name, too
      for (const std::string& path : paths) {
        const std::string other = directory / ("out1/" + fs::path(path).filename().string());
        CHECK(read_text(path) == read_text(other));
      }
    }
  }
}

TEST_CASE("text: a data set that is written over leaves nothing behind, and a failure leaves nothing at all") {
  const Folder directory, inputs;
  ThreadTeam threads(2);
  const auto tokenizer = load_tokenizer("bytes");
  const std::string out = directory.path, big = inputs / "big.txt", small = inputs / "small.txt";
  write_text(big, std::string(600, 'x'));
  write_text(small, std::string(50, 'y') + "!");
  tokenize_files({big}, *tokenizer, out, 0.5, threads, {}, 100);
  CHECK(names_in(directory).size() == 6 + 2);
  write_text(directory / "train_000123.bin.tmp", "what a killed process leaves");
  write_text(directory / "notes.txt", "not ours");
  tokenize_files({small}, *tokenizer, out, 0.1, threads, {}, 100);
  CHECK(names_in(directory) ==
        std::set<std::string>{"dataset.json", "notes.txt", "tokenizer.json", "train_000000.bin", "val_000000.bin"});

  // Shards that are somebody else's are not removed, and not mixed in.
  write_text(directory / "train_mine.bin", "");
  CHECK(contains(error_of([&] { tokenize_files({big}, *tokenizer, out, 0.1, threads); }), "train_mine.bin"));
  CHECK(names_in(directory).count("dataset.json") == 1);
  fs::remove(directory / "train_mine.bin");

  for (const int count : {1, 4}) {
    ThreadTeam team(count);
    const WordTokenizer fused('!');
    CHECK(contains(error_of([&] { tokenize_files({big, small}, fused, out, 0.1, team, {}, 1); }), "fuse"));
    CHECK(names_in(directory) == std::set<std::string>{"notes.txt", "tokenizer.json"});
  }

  // A full disk, played by a limit on the size of files.
  rlimit before{}, limit{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  limit = before;
  limit.rlim_cur = 1500;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  const std::string message = error_of([&] { tokenize_files({small, big}, *tokenizer, out, 0.1, threads, {}, 300); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK(contains(message, "cannot write " + out + "/train_"));
  CHECK(names_in(directory) == std::set<std::string>{"notes.txt", "tokenizer.json"});
}

TEST_CASE("text: wrong inputs and arguments of tokenize_files are errors that name them") {
  const Folder directory;
  ThreadTeam threads(1);
  const auto tokenizer = load_tokenizer("bytes");
  write_text(directory / "text.txt", "some text");
  write_text(directory / "empty.txt", "");
  const auto run = [&](const std::vector<std::string>& inputs, const std::string& out, double fraction = 0.1) {
    return error_of([&] { tokenize_files(inputs, *tokenizer, out, fraction, threads); });
  };
  const std::string text = directory / "text.txt", out = directory / "out";
  CHECK(contains(run({text, directory / "none.txt"}, out), "none.txt: No such file"));
  CHECK(contains(run({directory.path}, out), "is a directory"));
  CHECK(contains(run({directory / "empty.txt", text}, out), "empty.txt: it is empty"));
  CHECK(contains(run({text}, text), text));
  CHECK(contains(run({text}, text + "/out"), "text.txt/out"));
  CHECK(read_text(text) == "some text");
  CHECK(!fs::exists(out));
  for (const double fraction : {-0.1, 1.0, 7.0, std::nan("")})
    CHECK_THROWS_AS(tokenize_files({text}, *tokenizer, out, fraction, threads), UsageError);
  CHECK_THROWS_AS(tokenize_files({}, *tokenizer, out, 0.1, threads), UsageError);
  CHECK_THROWS_AS(tokenize_files({text}, *tokenizer, out, 0.1, threads, {}, 0), UsageError);
  // Text that is not UTF-8 is bytes like any other.
  write_text(directory / "latin1.txt", "caf\xe9\xff\xfe");
  CHECK(run({directory / "latin1.txt"}, out, 0) == "no error");
  CHECK(tokenizer->decode(all_tokens({out + "/train_000000.bin"})) == "caf\xe9\xff\xfe");
}

TEST_CASE("text: --data may name a directory, a pattern, a shard or a text") {
  const Folder directory;
  ThreadTeam threads(1);
  const std::string dir = directory.path, cache = directory / "cache";
  const auto names = [&](const std::vector<std::string>& paths) {
    std::string joined;
    for (const std::string& path : paths) joined += fs::path(path).filename().string() + " ";
    return joined;
  };
  const auto open = [&](const std::string& data) { return open_dataset(data, cache, threads); };
  CHECK(contains(error_of([&] { open(dir); }), "no data in " + dir));
  CHECK(contains(error_of([&] { open(directory / "none"); }), "no such file"));
  CHECK(contains(error_of([&] { open(directory / "*_train_*.bin"); }), "nothing matches"));

  // As llm.c names them.
  for (const char* name : {"fineweb_train_000002.bin", "fineweb_train_000001.bin", "fineweb_val_000000.bin"})
    write_shard(directory / name, count_up(10));
  Dataset dataset = open(dir);
  CHECK(names(dataset.train) == "fineweb_train_000001.bin fineweb_train_000002.bin ");
  CHECK(names(dataset.val) == "fineweb_val_000000.bin ");
  CHECK(!dataset.tokenizer);
  CHECK(dataset.vocabulary == 0);
  CHECK(dataset.train_bytes_per_token == 0);
  dataset = open(directory / "*_train_*.bin");
  CHECK(names(dataset.train) == "fineweb_train_000001.bin fineweb_train_000002.bin ");
  CHECK(dataset.val.empty());
  CHECK(names(open(directory / "fineweb_*.bin").val) == "fineweb_val_000000.bin ");
  CHECK(names(open(directory / "*_val_*.bin").train) == "fineweb_val_000000.bin ");
  CHECK(names(open(directory / "fineweb_train_000001.bin").train) == "fineweb_train_000001.bin ");

  // Two data sets in one directory are not mixed; a damaged shard is found at once.
  write_shard(directory / "tiny_shakespeare_train.bin", count_up(10));
  write_shard(directory / "tiny_shakespeare_val.bin", count_up(10));
  CHECK(contains(error_of([&] { open(dir); }), "several data sets"));
  for (const char* name : {"fineweb_train_000002.bin", "fineweb_train_000001.bin", "fineweb_val_000000.bin"})
    fs::remove(directory / name);
  dataset = open(dir);
  CHECK(names(dataset.train) == "tiny_shakespeare_train.bin ");
  CHECK(names(dataset.val) == "tiny_shakespeare_val.bin ");
  write_text(directory / "tiny_shakespeare_val.bin", "damaged");
  CHECK(contains(error_of([&] { open(dir); }), "tiny_shakespeare_val.bin: not a token shard"));
  CHECK(contains(error_of([&] { open(directory / "tiny_*"); }), "tiny_shakespeare_val.bin: not a token shard"));

  // A text is tokenized once, and again when it, or the fraction, changes.
  write_text(directory / "text.txt", std::string(100, 'a'));
  int64_t calls = 0;
  const auto open_text = [&](double fraction) {
    calls = 0;
    return open_dataset(directory / "text.txt", cache, threads, fraction, [&](int64_t, int64_t) { ++calls; });
  };
  dataset = open_text(0.1);
  CHECK(calls > 0);
  CHECK(all_tokens(dataset.train) == std::vector<int32_t>(90, 'a'));
  CHECK(dataset.val_bytes_per_token == 1);
  CHECK(dataset.vocabulary == 257);
  CHECK(all_tokens(open_text(0.1).val) == std::vector<int32_t>(10, 'a'));
  CHECK(calls == 0);
  CHECK(all_tokens(open_text(0.5).val).size() == 50);
  CHECK(calls > 0);
  write_text(directory / "text.txt", std::string(100, 'b'));
  fs::last_write_time(directory / "text.txt", fs::file_time_type::clock::now() + std::chrono::seconds(5));
  CHECK(all_tokens(open_text(0.5).val) == std::vector<int32_t>(50, 'b'));
  write_text(cache + "/dataset.json", "{ damaged");
  CHECK(all_tokens(open_text(0.5).val) == std::vector<int32_t>(50, 'b'));
  CHECK(calls > 0);
}

TEST_CASE("text: a data set whose dataset.json and files disagree is refused") {
  const Folder directory;
  ThreadTeam threads(1);
  const std::string dir = directory.path, path = directory / "dataset.json";
  const Folder inputs;
  write_text(inputs / "text.txt", std::string(100, 'a'));
  const auto make = [&] { tokenize_files({inputs / "text.txt"}, *load_tokenizer("bytes"), dir, 0.1, threads, {}, 40); };
  const auto open = [&] { return error_of([&] { open_dataset(dir, "", threads); }); };
  make();
  CHECK(open() == "no error");
  const std::string good = read_text(path);
  for (const auto& [from, to, message] : std::vector<std::array<const char*, 3>>{
           {"\"vocabulary\": 257", "\"vocabulary\": 256", "a vocabulary of 256"},
           {"\"vocabulary\": 257", "\"vocabulary\": -1", "\"vocabulary\""},
           {"\"vocabulary\": 257", "\"vocabulary\": \"257\"", "\"vocabulary\""},
           {"\"vocabulary\": 257", "\"vocabulary\": 18446744073709551615", "\"vocabulary\""},
           {"\"vocabulary\": 257", "\"vocabulary\": 2.5", "\"vocabulary\""},
           {"\"vocabulary\": 257", "\"vocabulary\": 1e999", "not JSON"},
           {"\"tokenizer\"", "\"x\"", "\"tokenizer\""},
           {"\"tokenizer.json\"", "7", "\"tokenizer\""},
           {"\"train\"", "\"x\"", "\"train\""},
           {"\"val\"", "\"x\"", "\"val\""},
           {"\"tokens\": 90", "\"tokens\": 91", "says 91 train tokens"},
           {"\"tokens\": 10", "\"tokens\": null", "\"tokens\""},
           {"\"bytes\": 90", "\"x\": 90", "\"bytes\""}}) {
    std::string changed = good;
    replace(changed, from, to);
    write_text(path, changed);
    CHECK(contains(open(), message));
  }
  for (const char* broken : {"", "{", "[]", "7", "\"\xff\"", "null"}) {
    write_text(path, broken);
    CHECK(contains(open(), path));
  }
  make();
  fs::remove(directory / "train_000001.bin");
  CHECK(contains(open(), "tokenize the text again"));
  make();
  write_shard(directory / "val_000001.bin", count_up(3));
  CHECK(contains(open(), "hold 13"));
  make();
  fs::remove(directory / "tokenizer.json");
  CHECK(contains(open(), "tokenizer.json"));
  make();
  fs::remove(path);
  write_text(directory / "tokenize.incomplete", "");
  CHECK(contains(open(), "stopped before it was done"));
  make();
  CHECK(open() == "no error");
}
