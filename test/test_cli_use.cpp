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
  check_error(folder, {"train", "--resume", "--out", folder / "empty"}, 2, "--data");
  check_error(folder, {"train", "--resume=perhaps", "--out", path}, 2, "perhaps");
}
