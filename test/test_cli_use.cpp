// What people type, and the machines and files that they have: commands that are nearly right do what was meant, or say
// what would.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "llm/base/atomic_file.h"
#include "llm/cli/progress.h"
#include "llm/text/shards.h"
#include "test/command_line.h"

using namespace llm;
using namespace test;
using nlohmann::json;
namespace fs = std::filesystem;

TEST_CASE("cli use: a model with more tokens than its tokenizer draws none that the tokenizer lacks") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string text = folder / "text.txt", path = folder / "run";
  write_file_atomically(text, sample_text(4000));
  const Arguments wide = {"--vocabulary", "5000", "--steps", "2", "--eval-every", "0", "--sample-every", "1"};
  const Result trained = run(folder, train_arguments(text, path, wide));
  CAPTURE(trained.err);
  CHECK(trained.status == 0);
  CHECK(has(trained.err, "vocabulary is 5000"));
  CHECK(has(trained.err, "257 tokens"));
  CHECK(has(trained.err, "--vocabulary 257"));
  CHECK(has(trained.err, "sample after step 2"));
  std::istringstream ids(run_well(
      folder, {"generate", path, "--prompt", "a", "--max-tokens", "50", "--temperature", "100", "--ids", "--no-stop"}));
  int count = 0;
  for (int id; ids >> id; ++count) CHECK(id < 257);
  CHECK(count == 50);
  const Result plain = run(folder, train_arguments(text, folder / "plain", {"--steps", "1"}));
  CHECK_FALSE(has(plain.err, "note:"));
}

TEST_CASE("cli use: counts are shown by three digits") {
  CHECK(format_count(999) == "999");
  CHECK(format_count(1000) == "1k");
  CHECK(format_count(999885952) == "1B");
  CHECK(format_count(999.4e3) == "999k");
  CHECK(format_count(2779683840) == "2.78B");
}

TEST_CASE("cli use: one command begins a run and goes on with it") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string text = folder / "text.txt", path = folder / "run";
  write_file_atomically(text, sample_text(4000));
  const auto train = [&](const std::string& resume, const std::string& steps) {
    Arguments arguments = train_arguments(text, path, {"--steps", steps});
    arguments.push_back(resume);
    return run(folder, arguments);
  };
  const Result none = train("--resume=must", "2");
  CHECK(none.status == 1);
  CHECK(has(none.err, "no run to go on with"));
  CHECK(train("--resume", "2").status == 0);
  CHECK(train("--resume", "3").status == 0);
  CHECK(train("--resume=must", "4").status == 0);
  CHECK(read_log(path).size() == 4);
  check_error(folder, {"train", "--resume", "--out", folder / "empty"}, 1, "--data");
  check_error(folder, {"train", "--resume=perhaps", "--out", path}, 2, "perhaps");
}

TEST_CASE("cli use: the last evaluation takes all held-out text, or as much as a quarter of the run's time") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string text = folder / "text.txt";
  write_file_atomically(text, sample_text(20000));  // of which 1,999 held-out tokens can be predicted
  // A step is one batch of 4 x 32 tokens: 12 steps train 1,536 tokens, whose time 9 batches of evaluation are a quarter of.
  const Result part = run(folder, train_arguments(text, folder / "part", {"--steps", "12", "--eval-every", "12"}));
  CHECK(has(part.out, "sample of 1152 of the 1999 held-out tokens"));
  CHECK(read_log(folder / "part").at(12).at("val_tokens") == 1152);
  const Result whole = run(folder, train_arguments(text, folder / "whole", {"--steps", "24", "--eval-every", "24"}));
  CHECK_FALSE(has(whole.out, "sample"));
  CHECK(read_log(folder / "whole").at(24).at("val_tokens") == 1999);
  run_well(folder, train_arguments(text, folder / "asked", {"--steps", "12", "--eval-batches", "99"}));
  CHECK(read_log(folder / "asked").at(12).at("val_tokens") == 1999);
}

TEST_CASE("cli use: a model is trained on at a shorter context than its own, and at a longer one where it can be") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string text = folder / "text.txt";
  write_file_atomically(text, sample_text(6000));
  for (const std::string architecture : {"gpt2", "llama"}) {
    CAPTURE(architecture);
    const std::string model = folder / architecture, shorter = folder / (architecture + "-16");
    run_well(folder, train_arguments(text, model, {"--architecture", architecture, "--steps", "1"}));
    const auto tune = [&](const std::string& out, const Arguments& more) {
      Arguments arguments = {"train", model, "--data", text, "--out", out, "--sample-every", "0"};
      arguments.insert(arguments.end(), more.begin(), more.end());
      return run(folder, arguments);
    };
    const Result tuned = tune(shorter, {"--steps", "2", "--context", "16"});
    CAPTURE(tuned.err);
    CHECK(tuned.status == 0);
    CHECK(has(tuned.err, "context 16 of 32"));
    const json config = json::parse(read_file(shorter + "/checkpoints/2/config.json"));
    CHECK(config.at(architecture == "gpt2" ? "n_positions" : "max_position_embeddings") == 32);
    // The run's own command goes on; eval has the run's windows.
    CHECK(tune(shorter, {"--steps", "3", "--context", "16", "--resume"}).status == 0);
    CHECK(tune(shorter, {"--steps", "4", "--context", "8", "--resume"}).status == 2);
    const json whole = json::parse(run_well(folder, {"eval", shorter, "--data", text, "--format", "json"}));
    CHECK(whole ==
          json::parse(run_well(folder, {"eval", shorter, "--data", text, "--format", "json", "--context", "16"})));
    CHECK(whole !=
          json::parse(run_well(folder, {"eval", shorter, "--data", text, "--format", "json", "--context", "32"})));

    const Result longer = tune(folder / (architecture + "-64"), {"--steps", "1", "--context", "64"});
    CHECK(longer.status == (architecture == "gpt2" ? 2 : 0));
    CHECK(has(longer.err, architecture == "gpt2" ? "32 positions" : "stretched to 64"));
  }
}

TEST_CASE("cli use: shards without a tokenizer have the vocabulary that their largest token needs") {
  if (binary().empty()) return;
  const Folder folder;
  fs::create_directories(folder / "data");
  for (const char* name : {"x_train_0.bin", "x_val_0.bin"}) {
    ShardWriter writer(folder / ("data/" + std::string(name)), 70000);
    std::vector<int32_t> tokens(200);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 347 + 1);
    writer.write(tokens.data(), 200);
    writer.finish();
  }
  const auto train = [&](const std::string& out, const Arguments& more) {
    return run(folder, train_arguments(folder / "data", folder / out, more));
  };
  const Result found = train("found", {"--steps", "1"});
  CAPTURE(found.err);
  CHECK(found.status == 0);
  CHECK(has(found.err, "vocabulary is 69055"));  // 199 x 347 + 1 + 1
  CHECK(train("told", {"--steps", "1", "--vocabulary", "70000"}).status == 0);
  const Result small = train("small", {"--steps", "1", "--vocabulary", "60000"});
  CHECK(small.status == 1);
  CHECK(has(small.err, "--vocabulary 69055"));
}

TEST_CASE("cli use: texts of any kind, several of them, and a mixture that goes on") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string a = folder / "a.txt", b = folder / "b.jsonl";
  write_file_atomically(a, sample_text(4000));
  std::string lines;
  for (int i = 0; i < 40; ++i) lines += json{{"story", sample_text(static_cast<size_t>(50 + i))}}.dump() + "\n";
  write_file_atomically(b, lines);
  const auto train = [&](const Arguments& more) {
    Arguments all = {"train", "nano", "--out", folder / "run", "--eval-every", "0", "--sample-every", "0"};
    all.insert(all.end(), more.begin(), more.end());
    return run(folder, all);
  };
  CHECK(has(train({"--data", b, "--steps", "1"}).err, "--text-key"));
  const std::string mix = "0.75:" + a;
  const Result begun = train({"--data", mix, "1e-1:" + b, "--text-key", "story", "--steps", "4"});
  CAPTURE(begun.err);
  CHECK(begun.status == 0);  // beside a plain text, which has no lines of JSON
  fs::remove_all(folder / "run");
  CHECK(train({"--data", mix, "0.25:" + a, "--steps", "4"}).status == 0);
  CHECK(train({"--data", mix, "0.25:" + a, "--steps", "5", "--resume"}).status == 0);
  CHECK(train({"--steps", "6", "--resume"}).status == 0);
  const Result other = train({"--data", "0.5:" + a, "0.5:" + a, "--steps", "7", "--resume"});
  CHECK(other.status == 1);
  CHECK(has(other.err, "not the same data"));
  // The model may stand behind the data.
  const Result behind = run(folder, {"train", "--data", a, a, "nano", "--steps", "1", "--out", folder / "behind"});
  CHECK(has(behind.err, "2 layers, 64 channels"));
  CHECK(behind.status == 0);

  // Another tokenizer for a text, and that of a model's directory.
  run_well(folder, {"tokenize", a, "--train-vocab", "300", "--out", folder / "tokens"});
  const std::string model = folder / "model";
  run_well(folder, {"train", "nano", "--data", a, "--tokenizer", folder / "tokens", "--steps", "1", "--out", model});
  CHECK(json::parse(read_file(model + "/checkpoints/1/config.json")).at("vocab_size") ==
        json::parse(read_file(folder / "tokens/dataset.json")).at("vocabulary"));
  const auto tune = [&](const std::string& from, const Arguments& more) {
    Arguments all = {"train", from, "--data", a, "--steps", "1", "--out", folder / "tuned"};
    all.insert(all.end(), more.begin(), more.end());
    const Result result = run(folder, all);
    fs::remove_all(folder / "tuned");
    return result;
  };
  CHECK(tune(model, {}).status == 0);
  CHECK(has(tune(model, {"--tokenizer", "bytes"}).err, "another than that of"));
  const std::string bare = folder / "bare";
  fs::copy(model + "/checkpoints/1", bare);
  fs::remove(bare + "/tokenizer.json");
  CHECK(has(tune(bare, {}).err, "--tokenizer PATH"));
  CHECK(tune(bare, {"--tokenizer", folder / "tokens"}).status == 0);
  check_error(folder, {"train", "nano", "--data", folder / "tokens", "--tokenizer", "bytes", "--out", folder / "x"}, 2,
              "holds tokens");

  // Standard input, to shards.
  const std::string command = "cat " + a + " | " + binary() + " tokenize - --tokenizer bytes --out " +
                              (folder / "piped") + " >" + (folder / "out") + " 2>&1";
  CHECK(std::system(command.c_str()) == 0);
  run_well(folder, {"tokenize", a, "--tokenizer", "bytes", "--out", folder / "named"});
  for (const char* shard : {"/train_000000.bin", "/val_000000.bin"})
    CHECK(read_file(folder / "piped" + shard) == read_file(folder / "named" + shard));
  const std::string substituted = "bash -c '" + binary() + " tokenize <(cat " + a + ") --tokenizer bytes --out " +
                                  (folder / "substituted") + "' >" + (folder / "out") + " 2>&1";
  CHECK(std::system(substituted.c_str()) == 0);
  CHECK(read_file(folder / "substituted/val_000000.bin") == read_file(folder / "named/val_000000.bin"));
}

TEST_CASE("cli use: a run whose gradient is exactly 0 for many steps ends, and says so once") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string text = folder / "text.txt";
  write_file_atomically(text, sample_text(4000));
  // Logits far beyond so low a cap have no slope left.
  const Arguments dead = train_arguments(
      text, folder / "dead",
      {"--steps", "100", "--lr", "30", "--logit-softcap", "1e-4", "--optimizer", "adamw", "--eval-every", "0"});
  const Result result = run(folder, dead);
  CAPTURE(result.err);
  CHECK(result.status == 1);
  const size_t said = result.err.find("gradient was exactly 0");
  CHECK(said != std::string::npos);
  CHECK(result.err.find("gradient was exactly 0", said + 1) == std::string::npos);
  CHECK(read_log(folder / "dead").size() < 60);
}
