// Runs by the binary as people make them: from text to generated text, evaluated, interrupted, killed and resumed.
#include <doctest/doctest.h>
#include <signal.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <numbers>
#include <sstream>
#include <thread>

#include "llm/base/atomic_file.h"
#include "llm/base/random.h"
#include "llm/text/shards.h"
#include "test/command_line.h"

using namespace llm;
using namespace test;
using nlohmann::json;
namespace fs = std::filesystem;

TEST_CASE("cli: from text to loss") {
  if (binary().empty()) return;
  const Trained& t = trained();
  const Folder folder;
  const auto log = read_log(t.run_path);
  REQUIRE(log.size() == 20);
  REQUIRE(log.at(20).contains("val_loss"));

  const std::string last = t.run_path + "/checkpoints/20";
  const json result =
      json::parse(run_well(folder, {"eval", last, "--data", t.text, "--format", "json", "--batch", "4"}));
  const double loss = result.at("loss");
  CHECK(loss == doctest::Approx(log.at(20).at("val_loss").get<double>()).epsilon(1e-6));
  CHECK(result.at("bits_per_byte") == doctest::Approx(loss / std::numbers::ln2));  // a token is a byte
  CHECK(result.at("perplexity") == doctest::Approx(std::exp(loss)));
  CHECK(result.at("tokens") == static_cast<int64_t>(fs::file_size(t.text) / 10) - 1);

  run_well(folder, {"tokenize", t.text, "--tokenizer", "bytes", "--out", folder / "tokens"});
  const auto eval = [&](const std::string& model, const std::string& data, const Arguments& more) {
    Arguments a = {"eval", model, "--data", data, "--format", "json"};
    a.insert(a.end(), more.begin(), more.end());
    return json::parse(run_well(folder, a));
  };
  CHECK(eval(last, folder / "tokens", {"--batch", "4"}) == result);
  json bare = result;
  bare.erase("bits_per_byte");
  CHECK(eval(last, folder / "tokens/val_*.bin", {"--batch", "4"}) == bare);
  CHECK(eval(last, t.text, {"--threads", "1", "--batch", "4"}) == result);
  CHECK(eval(last, t.text, {"--split", "all"}).at("tokens") == fs::file_size(t.text) - 1);
  CHECK(eval(last, t.text, {"--split", "train", "--batches", "2", "--batch", "3", "--context", "16"}).at("tokens") ==
        96);
  // Of a run, the better of its checkpoints counts.
  const double ten = log.at(10).at("val_loss"), twenty = log.at(20).at("val_loss");
  CHECK(eval(t.run_path, t.text, {}) ==
        eval(t.run_path + (ten < twenty ? "/checkpoints/10" : "/checkpoints/20"), t.text, {}));
  const Result text = run(folder, {"eval", t.run_path, "--data", t.text});
  CHECK(has(text.out, "nats/token"));
  CHECK(has(text.err, "/checkpoints/"));
  for (const auto& entry : fs::directory_iterator(folder.path))
    CHECK_FALSE(entry.path().filename().string().starts_with("train_gpt-eval-"));
}

TEST_CASE("cli: generated text") {
  if (binary().empty()) return;
  const Trained& t = trained();
  const Folder folder;
  const auto generate = [&](const Arguments& more) {
    Arguments a = {"generate", t.run_path, "--no-stop"};
    a.insert(a.end(), more.begin(), more.end());
    return run_well(folder, a);
  };
  const auto ids_of = [](const std::string& line) {
    REQUIRE(line.ends_with("\n"));
    std::istringstream words(line);
    return Arguments(std::istream_iterator<std::string>(words), {});
  };
  const std::string text = generate({"--prompt", "für the ", "--max-tokens", "100"});
  CHECK(text.starts_with("für the "));
  const std::string ids = generate({"--prompt", "für the ", "--max-tokens", "100", "--ids"});
  CHECK(ids_of(ids).size() == 100);
  const std::string bytes_of_prompt = "102 195 188 114 32 116 104 101 32";
  CHECK(generate({"--prompt-ids", bytes_of_prompt, "--max-tokens", "100", "--ids"}) == ids);
  CHECK(generate({"--prompt-ids", bytes_of_prompt, "--max-tokens", "100"}) == text);
  CHECK(generate({"--prompt", "für the ", "--max-tokens", "100", "--threads", "1"}) == text);
  CHECK(generate({"--prompt", "für the ", "--max-tokens", "100", "--seed", "2"}) != text);
  std::string joined = "für the ";
  for (const std::string& id : ids_of(ids)) {
    const int value = std::stoi(id);
    joined += value == 256 ? "<|endoftext|>" : std::string(1, static_cast<char>(value));
  }
  CHECK(joined == text);
  const std::string likeliest = generate({"--prompt", "a", "--temperature", "0"});
  CHECK(generate({"--prompt", "a", "--top-k", "1"}) == likeliest);
  CHECK(generate({"--prompt", "a", "--top-p", "0"}) == likeliest);
  CHECK(generate({"--prompt", "a", "--max-tokens", "0"}) == "a");
  CHECK(generate({"--prompt", "\xC3", "--max-tokens", "0"}) == "\xC3");  // half a character, at the end
  CHECK(ids_of(generate({"--ids", "--max-tokens", "3"})).size() == 3);   // from end-of-text
  const Result result = run(folder, {"generate", t.run_path, "--prompt", std::string(100, 'a'), "--max-tokens", "5"});
  CHECK(has(result.err, "prompt of 100 tokens, of which the last 32"));
  CHECK(has(result.err, "tokens/s"));

  // A reader that goes away: quiet, and without going on for ever.
  const std::string command = binary() + " generate " + t.run_path +
                              " --no-stop --prompt a --max-tokens 1000000000 2>" + (folder / "err") + " | head -c 5 >" +
                              (folder / "out");
  CHECK(std::system(command.c_str()) == 0);
  CHECK(read_file(folder / "out").size() == 5);
  CHECK(read_file(folder / "err").empty());
}

TEST_CASE("cli: killed at any moment and resumed, a run is the same bit for bit") {
  if (binary().empty()) return;
  const Folder folder;
  write_file_atomically(folder / "text.txt", sample_text(6000));
  const Arguments settings = {"--steps", "60", "--eval-every", "7", "--save-every", "2", "--eval-batches", "1"};
  const auto begin = std::chrono::steady_clock::now();
  run_well(folder, train_arguments(folder / "text.txt", folder / "whole", settings));
  const double whole = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();

  const std::string killed = folder / "killed";
  const Random random(11, 1);
  const auto has_checkpoint = [&] {
    std::error_code none;
    for (fs::directory_iterator entry(killed + "/checkpoints", none), end; !none && entry != end; entry.increment(none))
      if (std::isdigit(static_cast<unsigned char>(entry->path().filename().string()[0]))) return true;
    return false;
  };
  int kills = 0;
  Result result;
  for (uint64_t round = 0; result.status != 0; ++round) {
    REQUIRE(round < 40);
    const bool resume = has_checkpoint();
    if (!resume) fs::remove_all(killed);
    Process process(folder, resume ? Arguments{"train", "--resume", "--out", killed}
                                   : train_arguments(folder / "text.txt", killed, settings));
    if (kills < 8) {
      // Wait until it trains: what comes before is tested by its own tests.
      for (int i = 0; i < 3000 && process.is_running() && !has_checkpoint(); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      // A kill comes after at most a fifth of an undisturbed run, so there are several whatever the machine's speed.
      std::this_thread::sleep_for(std::chrono::duration<double>(random.uniform(round) * whole / 5));
      process.kill(SIGKILL);
      ++kills;
    }
    result = process.wait();
    CAPTURE(result.err);
    CHECK((result.status == 0 || result.status == -1));
  }
  CHECK(kills >= 3);
  for (const char* file : {"model.safetensors", "optimizer.state"}) {
    const std::string name = std::string("/checkpoints/60/") + file;
    CHECK_MESSAGE(read_file(killed + name) == read_file(folder / "whole" + name), name);
  }
  const auto log = read_log(killed), expected = read_log(folder / "whole");
  REQUIRE(log.size() == expected.size());
  for (auto& [step, entry] : expected)
    for (const char* key : {"loss", "val_loss", "grad_norm", "learning_rate", "tokens"}) {
      CAPTURE(step);
      CAPTURE(key);
      CHECK(entry.value(key, json()) == log.at(step).value(key, json()));
    }
}

TEST_CASE("cli: a run that was killed before its first checkpoint can be started again") {
  if (binary().empty()) return;
  const Trained& t = trained();
  const Folder folder;
  fs::create_directories(folder / "run/checkpoints/.tmp-1-20");
  write_file_atomically(folder / "run/log.jsonl", "{\"step\":1,\"loss\":5.5}\n{\"step\":2,\"lo");
  run_well(folder, train_arguments(t.text, folder / "run"));
  CHECK(read_log(folder / "run").size() == 20);
}

TEST_CASE("cli: an interrupt ends a run with a checkpoint") {
  if (binary().empty()) return;
  const Folder folder;
  write_file_atomically(folder / "text.txt", sample_text(6000));
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string path = folder / ("run" + std::to_string(signal));
    Process process(folder, train_arguments(folder / "text.txt", path,
                                            {"--steps", "10000000", "--save-every", "0", "--eval-every", "0"}));
    const auto lines = [&] {
      std::error_code none;
      return fs::exists(path + "/log.jsonl", none) ? read_file(path + "/log.jsonl") : "";
    };
    for (int i = 0; i < 6000 && process.is_running() && !has(lines(), "\"step\":3,"); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    REQUIRE(process.is_running());
    process.kill(signal);
    const Result result = process.wait();
    CAPTURE(result.err);
    CHECK((result.status == 0 || result.status == 128 + signal));
    CHECK(has(result.out, "--resume"));
    const int64_t step = read_log(path).rbegin()->first;
    CHECK(fs::exists(path + "/checkpoints/" + std::to_string(step) + "/model.safetensors"));
    const Arguments go_on = {"train", "--resume", "--out", path, "--steps", std::to_string(step + 2)};
    run_well(folder, go_on);
    CHECK(read_log(path).rbegin()->first == step + 2);
  }
}

TEST_CASE("cli: a run's own command goes on with it, and so does its data from another place") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string text = folder / "text.txt", path = folder / "run", moved = folder / "moved.txt";
  std::string letters = sample_text(4000);
  write_file_atomically(text, letters);
  run_well(folder, train_arguments(text, path));
  const std::string settings = read_file(path + "/config.json");
  const auto again = [&](const Arguments& more, const std::string& data) {
    Arguments arguments = train_arguments(data, path, more);
    arguments.push_back("--resume");
    return Process(folder, arguments).wait();
  };
  const Result done = again({}, text);
  CHECK(done.status == 0);
  CHECK(has(done.out, "trained already"));
  CHECK(has(done.out, "20 of 20 steps"));
  for (const Arguments& wrong :
       {Arguments{"--steps", "10"}, {"--seed", "77"}, {"--dtype", "bf16"}, {"--norm", "layernorm"}}) {
    const Result refused = again(wrong, text);
    CAPTURE(refused.err);
    CHECK(refused.status == 2);
    CHECK(has(refused.err, wrong[0] == "--steps" ? "20 steps" : wrong[0] == "--norm" ? "another model" : wrong[0]));
  }
  CHECK(read_file(path + "/config.json") == settings);
  fs::rename(text, moved);
  CHECK(again({"--steps", "22"}, moved).status == 0);
  letters[100] ^= 1;
  write_file_atomically(moved, letters);
  const Result other = again({"--steps", "24"}, moved);
  CHECK(other.status == 1);
  CHECK(has(other.err, "not the same data"));
  CHECK(read_log(path).rbegin()->first == 22);

  // A run that begins from a model's weights.
  const std::string tuned = folder / "tuned";
  const auto tune = [&](int steps, const Arguments& more) {
    Arguments arguments = {"train", path, "--data", moved, "--out", tuned, "--steps", std::to_string(steps)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Process(folder, arguments).wait().status;
  };
  CHECK(tune(2, {}) == 0);
  CHECK(tune(3, {"--resume"}) == 0);
  CHECK(read_log(tuned).rbegin()->first == 3);
}

TEST_CASE("cli: eval has the document mask of the run") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string text = folder / "text.txt", run_path = folder / "run";
  std::string documents;
  for (int i = 0; i < 300; ++i) documents += sample_text(static_cast<size_t>(20 + i % 30)) + "<|endoftext|>";
  write_file_atomically(text, documents);
  Arguments arguments = train_arguments(text, run_path);
  arguments.push_back("--document-mask");
  run_well(folder, arguments);
  const double trained = read_log(run_path).at(20).at("val_loss");
  const auto evaluated = [&] {
    return json::parse(run_well(folder, {"eval", run_path, "--data", text, "--format", "json"}))
        .at("loss")
        .get<double>();
  };
  CHECK(evaluated() == doctest::Approx(trained).epsilon(1e-6));
}
