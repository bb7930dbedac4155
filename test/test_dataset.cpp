// Data sets: what tokenize_files() makes of texts, and what may be opened as the data of a run.
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

namespace {

// Stands for tokenizers that may cut a text only at some places, and whose tokens need 32 bits: a token is a word and
// the blank after it. With `fuse` other than 0 it throws where the text has that byte.
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
    // The token between the files counts to the end of the first one.
    std::vector<int32_t> joined(60, 'a');
    joined.push_back(256);
    joined.insert(joined.end(), 45, 'b');
    const Dataset dataset = open_dataset(out, "", threads);
    CHECK(dataset.train.shards().size() == 1);
    CHECK(dataset.val.shards().size() == (held_out > 0));
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
  // A cut inside the name of a special token moves behind the name.
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
      CHECK(all_tokens(paths) == whole);  // by name, too, train comes before val
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

  // Shards of another origin are neither removed nor mixed in.
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

  // A limit on the size of files stands for a full disk.
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
  // Text that is not UTF-8 is taken as bytes like any other.
  write_text(directory / "latin1.txt", "caf\xe9\xff\xfe");
  CHECK(run({directory / "latin1.txt"}, out, 0) == "no error");
  CHECK(tokenizer->decode(all_tokens({out + "/train_000000.bin"})) == "caf\xe9\xff\xfe");
}

TEST_CASE("text: --data may name a directory, a pattern, a shard or a text") {
  const Folder directory;
  ThreadTeam threads(1);
  const std::string dir = directory.path, cache = directory / "cache";
  const auto names = [&](const TokenStream& stream) {
    std::string joined;
    for (const TokenShard& shard : stream.shards()) joined += fs::path(shard.path()).filename().string() + " ";
    return joined;
  };
  const auto open = [&](const std::string& data) { return open_dataset(data, cache, threads); };
  CHECK(contains(error_of([&] { open(dir); }), "no data in " + dir));
  CHECK(contains(error_of([&] { open(directory / "none"); }), "no such file"));
  CHECK(contains(error_of([&] { open(directory / "*_train_*.bin"); }), "nothing matches"));

  // The names that llm.c gives its shards.
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
  CHECK(dataset.val.shards().empty());
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

  // A text is tokenized once, and again when the text or the fraction changes.
  write_text(directory / "text.txt", std::string(100, 'a'));
  int64_t calls = 0;
  const auto open_text = [&](double fraction) {
    calls = 0;
    return open_dataset(std::vector{directory / "text.txt"}, {cache, fraction}, threads,
                        [&](int64_t, int64_t) { ++calls; });
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

TEST_CASE(
    "text: the largest token is kept, and is read where it was not; a batch that holds a larger one is an error") {
  const Folder directory, inputs;
  ThreadTeam threads(1);
  write_text(inputs / "text.txt", std::string(90, 'a') + "z" + std::string(9, 'b'));
  const std::string path = directory / "dataset.json";
  tokenize_files({inputs / "text.txt"}, *load_tokenizer("bytes"), directory.path, 0.05, threads);
  const std::string good = read_text(path);
  const auto largest_as_in = [&](const std::string& description) {
    write_text(path, description);
    const Dataset dataset = open_dataset(directory.path, "", threads);
    return std::pair(dataset.train.largest_token(), dataset.val.largest_token());
  };
  CHECK(largest_as_in(good) == std::pair<int32_t, int32_t>('z', 'b'));
  std::string changed = good;
  replace(changed, "\"largest_token\": 122", "\"largest_token\": 120");
  CHECK(largest_as_in(changed).first == 120);  // not read
  const Dataset wrong = open_dataset(directory.path, "", threads);
  std::vector<int32_t> tokens(95), targets(95);
  Loader(wrong.train, 94, 1, 'z' + 1).read(0, 1, tokens.data(), targets.data());
  CHECK(contains(error_of([&] { Loader(wrong.train, 94, 1, 'z').read(0, 1, tokens.data(), targets.data()); }),
                 "the data holds token 122"));
  changed = good;
  replace(changed, "\"largest_token\": 122", "\"x\": 0");
  replace(changed, "\"largest_token\": 98", "\"x\": 0");
  CHECK(largest_as_in(changed) == std::pair<int32_t, int32_t>('z', 'b'));
}
