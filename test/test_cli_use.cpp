// What people type, and the machines and files that they have: commands that are nearly right do what was meant, or say
// what would.
#include <doctest/doctest.h>

#include <filesystem>
#include <sstream>

#include "llm/base/atomic_file.h"
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
