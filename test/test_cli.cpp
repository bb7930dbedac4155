// The binary as people call it: its help, bench, graph, the recipe, models of other programs, and wrong input of every kind.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "llm/base/atomic_file.h"
#include "llm/text/shards.h"
#include "test/command_line.h"

using namespace llm;
using namespace test;
using nlohmann::json;
namespace fs = std::filesystem;

TEST_CASE("cli: help and version") {
  if (binary().empty()) return;
  const Folder folder;
  CHECK(has(run_well(folder, {"--version"}), "train_gpt"));
  for (const char* command : {"tokenize", "detokenize", "train", "eval", "generate", "graph", "bench"}) {
    CHECK(has(run_well(folder, {"--help"}), command));
    CHECK(has(run_well(folder, {command, "--help"}), "--"));
  }
}

TEST_CASE("cli: a copy for another CPU that is not there is an error") {
  if (binary().empty()) return;
  const Folder folder;
  CHECK(has(run_well(folder, {"--version"}), "\nCPU: "));
  const char* before = std::getenv("TRAIN_GPT_CPU");
  const std::string kept = before ? before : "";
  ::setenv("TRAIN_GPT_CPU", "abacus", 1);
  check_error(folder, {"bench"}, 2, "abacus");
  before ? ::setenv("TRAIN_GPT_CPU", kept.c_str(), 1) : ::unsetenv("TRAIN_GPT_CPU");
}

TEST_CASE("cli: bench") {
  if (binary().empty()) return;
  const Folder folder;
  const auto bench = [](Arguments more) {
    Arguments all = {"bench", "nano", "--batch", "1", "--steps", "1", "--threads", "2"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  const json step = json::parse(run_well(folder, bench({"--format", "json", "--save", folder / "step.json"})));
  CHECK(json::parse(read_file(folder / "step.json")) == step);
  CHECK(step["memory_bytes"]["persistent"].get<int64_t>() > 4 * 4 * step["parameters"].get<int64_t>() - 1);
  CHECK(step["memory_bytes"]["transient"].get<int64_t>() > 0);
  double flops = 0;  // of the step's large products
  for (const json& op : step["ops"])
    if (const std::string name = op["name"]; name.starts_with("linear") || name == "head_loss")
      flops += op["gflops"].get<double>() * op["ms"].get<double>() * 1e6;
  const json result = json::parse(run_well(folder, bench({"--format", "json", "--products"})));
  double of_products = 0;
  for (const json& row : result["products"]) {
    CHECK(row["ms"].get<double>() > 0);
    of_products +=
        2 * row["m"].get<double>() * row["n"].get<double>() * row["k"].get<double>() * row["calls"].get<double>();
  }
  CHECK(of_products == doctest::Approx(flops).epsilon(1e-9));
  CHECK(result["geometric_means"]["of_peak"].get<double>() > 0);
  CHECK(has(run_well(folder, bench({"--compare", folder / "step.json"})), "speed-up"));
  CHECK(has(run_well(folder, bench({"--format", "markdown", "--nodes"})), "| the whole step |"));
  CHECK(has(run_well(folder, bench({"--products"})), "geometric mean"));
  const json scaling = json::parse(run_well(folder, bench({"--format", "json", "--scaling", "6"})));
  std::vector<int> teams;
  for (const json& row : scaling["scaling"]) {
    teams.push_back(row["threads"]);
    double parts = 0;
    for (const char* part : {"work_ms", "alone_ms", "uneven_ms", "waking_ms"}) {
      CHECK(row[part].get<double>() >= 0);
      parts += row[part].get<double>();
    }
    CHECK(parts == doctest::Approx(row["ms"].get<double>()));
    CHECK(row.contains("measured_ms") == (row["threads"].get<int>() <= 2));
  }
  CHECK(teams == std::vector<int>{1, 2, 4, 6});
  std::set<std::string> in_step, in_scaling;
  for (const json& op : step["ops"]) in_step.insert(op["name"]);
  for (const json& op : scaling["ops"]) in_scaling.insert(op["name"]);
  CHECK(in_step == in_scaling);
  CHECK(has(run_well(folder, bench({"--scaling", "2"})), "measured on 2"));
  check_error(folder, bench({"--scaling", "4", "--products"}), 2, "--scaling");
  const json decode = json::parse(run_well(folder, bench({"--format", "json", "--decode"})));
  REQUIRE(decode["decode"].size() == 3);
  for (const json& row : decode["decode"]) {
    CHECK(row["tokens_per_second"].get<double>() ==
          doctest::Approx(row["texts"].get<double>() / row["ms"].get<double>() * 1e3));
    CHECK(row["own_share"].get<double>() < 1);
  }
  CHECK(has(run_well(folder, bench({"--decode"})), "tokens/s"));
  check_error(folder, bench({"--decode", "--nodes"}), 2, "--decode");
  check_error(folder, bench({"--decode", "--steps", "1000"}), 2, "--steps");
  check_error(folder, bench({"--products", "--nodes"}), 2, "--products");
  check_error(folder, bench({"--format", "xml"}), 2, "xml");
  check_error(folder, bench({"--compare", folder / "none.json"}), 1, "none.json");
}

TEST_CASE("cli: a wrong command line is status 2 and one line") {
  if (binary().empty()) return;
  const Trained& t = trained();
  const Folder folder;
  const std::string out = folder / "out";
  const auto wrong = [&](const Arguments& arguments, const std::string& part = "") {
    check_error(folder, arguments, 2, part);
    CHECK_FALSE(fs::exists(out + "/checkpoints"));
    fs::remove_all(out);
  };
  wrong({});
  wrong({"teach"});
  wrong({"eval"});
  wrong({"generate"});
  wrong({"tokenize", t.text});
  wrong({"train", "--out", out}, "--data");
  wrong(train_arguments(t.text, out, {"--no-such-flag", "1"}), "--no-such-flag");
  for (const char* value : {"abc", "0", "-3", "1e99", "", "2.5"})
    wrong(train_arguments(t.text, out, {"--grad-accum", value}));
  for (const char* value : {"abc", "-1", "0", "nan"}) wrong(train_arguments(t.text, out, {"--lr", value}));
  wrong({"train", "gpt5-1T", "--data", t.text, "--out", out}, "gpt5-1T");
  wrong({"train", "--data", t.text, "--out", out, "--heads", "3", "--channels", "32"}, "--heads");
  wrong({"train", "--data", t.text, "--out", out, "--heads", "4", "--kv-heads", "3", "--channels", "32"}, "--kv-heads");
  wrong(train_arguments(t.text, out, {"--optimizer", "sgdx"}), "sgdx");
  wrong(train_arguments(t.text, out, {"--schedule", "zigzag"}), "zigzag");
  wrong(train_arguments(t.text, out, {"--architecture", "rnn"}), "rnn");
  wrong(train_arguments(t.text, out, {"--dtype", "int3"}), "int3");
  wrong(train_arguments(t.text, out, {"--device", "tpu"}), "tpu");
  wrong(train_arguments(t.text, out, {"--memory-budget", "much"}), "much");
  wrong(train_arguments(t.text, t.run_path), "--resume");
  wrong({"train", "--resume", "--out", t.run_path, "--lr", "0.5"}, "--lr");
  wrong({"train", "--resume", "--data", t.text}, "--out");
  wrong({"eval", t.run_path}, "--data");
  wrong({"eval", t.run_path, "--data", t.text, "--context", "33"}, "--context");
  wrong({"eval", t.run_path, "--data", t.text, "--batch", "0"});
  wrong({"eval", t.run_path, "--data", t.text, "--format", "xml"});
  wrong({"eval", t.run_path, "--data", t.text, "--split", "test"});
  wrong({"generate", t.run_path, "--prompt-ids", "1 257"}, "257");
  wrong({"generate", t.run_path, "--prompt-ids=-1"}, "-1");
  wrong({"generate", t.run_path, "--prompt-ids", "1 two"}, "two");
  wrong({"generate", t.run_path, "--prompt-ids", "99999999999"}, "99999999999");
  wrong({"generate", t.run_path, "--prompt", "a", "--prompt-ids", "1"}, "--prompt");
  wrong({"generate", t.run_path, "--temperature=-1"}, "--temperature");
  wrong({"generate", t.run_path, "--temperature", "nan"}, "--temperature");
  wrong({"generate", t.run_path, "--top-p", "1.5"}, "--top-p");
  wrong({"generate", t.run_path, "--top-k=-1"}, "--top-k");
  wrong({"generate", t.run_path, "--min-p", "2"}, "--min-p");
  wrong({"generate", t.run_path, "--repetition-penalty", "0"}, "--repetition-penalty");
  wrong({"generate", t.run_path, "--max-tokens=-1"}, "--max-tokens");
  wrong({"graph", "no-such-model"}, "no-such-model");
  wrong({"graph", "gpt2-mdium"}, "gpt2-medium?");
  wrong({"graph", "llama3"}, "\"llama3\": llama-3.2-1B?");
  wrong({"graph", "Llama-8B"}, "llama-3.1-8B?");
  wrong({"graph", "Qwen3-4B-Instruct"}, "qwen3-4B?");
  wrong({"graph", "mamba"}, "unknown model \"mamba\" Presets");
  wrong({"graph", "tiny", "--layers", "0"}, "must be from 1 to 16777216, not 0");
  wrong({"eval", t.run_path, "--data", t.text, "--delimiter", ""}, "--delimiter goes with --choices");
  wrong({"train", "qwen3-4", "--data", t.text, "--out", out}, "qwen3-4B?");
  wrong({"train", t.text, "--data", t.text, "--out", out}, "train_gpt import " + t.text + " --out DIR");
}

TEST_CASE("cli: the recipe is explained, and nothing is made") {
  if (binary().empty()) return;
  const Folder folder;
  const auto explained = [&](const Arguments& more) {
    Arguments a = {"train", "--explain"};
    a.insert(a.end(), more.begin(), more.end());
    std::map<std::string, std::pair<std::string, std::string>> rules;  // by flag: value, reason
    std::istringstream lines(run_well(folder, a));
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string flag, value, reason;
      words >> flag >> value;
      std::getline(words, reason);
      CHECK_MESSAGE(has(reason, " "), line);
      rules[flag] = {value, reason};
    }
    return rules;
  };
  auto rules = explained({"--depth", "4"});
  for (const char* flag : {"layers", "parameters", "optimizer", "parametrization", "batch", "grad-accum", "steps", "lr",
                           "weight-decay", "warmup", "beta2", "schedule", "dropout", "eval-every"})
    CHECK_MESSAGE(rules.contains(flag), flag);
  CHECK(rules["channels"].first == "128");
  CHECK(rules["optimizer"].first == "muon");
  CHECK(explained({"--depth", "12"})["channels"].first == "768");
  const Trained& t = trained();
  rules = explained({"--lr", "0.5", "--steps", "77", "--data", t.text, "--out", folder / "out"});
  CHECK(rules["lr"].first == "0.5");
  CHECK(has(rules["lr"].second, "given"));
  CHECK(rules["steps"].first == "77");
  CHECK(rules["eval-every"].first == "8");
  CHECK(!fs::exists(folder / "out"));
  check_error(folder, {"train", "--explain", "--depth", "4", "--layers", "3"}, 2, "--layers");
  check_error(folder, {"train", "tiny", "--explain", "--depth", "4"}, 2, "--depth");
  check_error(folder, {"train", "--explain", "--depth", "65"}, 2, "--depth");
  check_error(folder, {"train", "--explain", "--parametrization", "mup"}, 2, "completep");
}

TEST_CASE("cli: graph and bench show the step that train makes") {
  if (binary().empty()) return;
  const Trained& t = trained();
  const Folder folder;
  const auto graph = [&](Arguments more) {
    more.insert(more.begin(), {"graph", "nano"});
    return run_well(folder, more);
  };
  CHECK(has(graph({}), "muon_apply"));
  for (const char* name : {"gpt2", "gpt2-124m", "GPT2-124M"})
    CHECK(has(run_well(folder, {"graph", name, "--parameters"}), "124439808 parameters"));
  CHECK(!has(graph({"--batch", "1"}), "muon_apply"));  // by rule: so few tokens
  CHECK(!has(graph({"--optimizer", "adamw"}), "muon_apply"));
  CHECK(has(graph({"--dropout", "0.1"}), "dropout"));
  CHECK(!has(graph({}), "dropout"));
  CHECK(has(graph({"--document-mask"}), "document_starts"));
  CHECK(has(graph({"--document-mask", "--evaluation"}), "document_starts"));
  Arguments shared = {"--ranks", "2", "--context-ranks", "2", "--context-exchange", "gather"};
  CHECK(has(graph(shared), "rows_gather_start"));
  shared.back() = "ring";
  CHECK(has(graph(shared), "2 of which share sequences in a ring"));
  CHECK(has(graph(shared), "ring_shift_start"));
  CHECK(has(graph({"--device", "cpu", "--threads", "3"}), "in fp32 on 3 CPU threads"));
  // A GPU's graph needs none: what its products are in, and the workspaces of its kernels.
  const std::string gpu = graph({"--device", "cuda", "--dtype", "fp8"});
  CHECK(has(gpu, "in fp8 on a GPU"));
  CHECK(has(gpu, "product_fp8"));
  CHECK(!has(gpu, "casts for the CPU"));
  CHECK(graph({"--device", "cuda", "--dtype", "fp32", "--format", "json"}) !=
        graph({"--device", "cpu", "--dtype", "fp32", "--format", "json"}));
  CHECK(graph({"--z-loss", "0.1", "--format", "json"}) != graph({"--format", "json"}));
  const std::string parameters = graph({"--parameters"});
  for (const char* column : {"lr x", "decay x", "epsilon x", "forward x", "muon", "adamw"})
    CHECK_MESSAGE(has(parameters, column), column);
  CHECK(parameters != graph({"--parameters", "--parametrization", "standard"}));
  CHECK(parameters != graph({"--parameters", "--no-zero-projections"}));
  check_error(folder, {"graph", t.run_path, "--optimizer", "muon"}, 2, "--optimizer");
  const std::string dropped = folder / "dropped";
  run_well(folder, train_arguments(t.text, dropped, {"--dropout", "0.1", "--steps", "2"}));
  CHECK(has(run_well(folder, {"graph", dropped}), "dropout"));
  CHECK(!has(run_well(folder, {"graph", t.run_path}), "dropout"));

  const json bench = json::parse(run_well(
      folder, {"bench", "nano", "--steps", "1", "--optimizer", "muon", "--dropout", "0.1", "--format", "json"}));
  std::set<std::string> ops;
  for (const json& op : bench["ops"]) ops.insert(op["name"]);
  CHECK(ops.contains("muon_apply"));
  CHECK(ops.contains("dropout"));
}

TEST_CASE("cli: wrong files are status 1 and one line that names them") {
  if (binary().empty()) return;
  const Trained& t = trained();
  const Folder folder;
  const std::string out = folder / "out", last = t.run_path + "/checkpoints/20";
  const auto broken = [&](const Arguments& arguments, const std::string& part) {
    check_error(folder, arguments, 1, part);
  };
  const auto eval = [&](const std::string& data) { return Arguments{"eval", last, "--data", data}; };

  SUBCASE("data") {
    write_file_atomically(folder / "empty.txt", "");
    write_file_atomically(folder / "short.txt", "ab");
    write_file_atomically(folder / "magic.bin", std::string(2000, 'x'));
    fs::create_directory(folder / "nothing");
    run_well(folder, {"tokenize", t.text, "--tokenizer", "bytes", "--out", folder / "cut"});
    fs::resize_file(folder / "cut/train_000000.bin", fs::file_size(folder / "cut/train_000000.bin") - 5);
    fs::copy(folder / "cut/val_000000.bin", folder / "cut_val.bin");
    fs::resize_file(folder / "cut_val.bin", 1100);
    std::vector<int32_t> tokens(200, 300);
    ShardWriter writer(folder / "large_val.bin", 512);
    writer.write(tokens.data(), 200);
    writer.finish();
    for (const std::string name :
         {"missing.txt", "empty.txt", "magic.bin", "cut", "nothing", "cut_val.bin", "missing_*.bin"}) {
      broken(train_arguments(folder / name, out), name.substr(0, name.find('*')));
      broken(eval(folder / name), name.substr(0, name.find('*')));
      fs::remove_all(out);
    }
    broken(train_arguments(folder / "short.txt", out), "short.txt");
    broken(eval(folder / "short.txt"), "short.txt");
    broken(eval(folder / "large_val.bin"), "token 300");
    broken({"eval", last, "--data", folder / "large_val.bin", "--batches", "1"}, "token 300");
    for (const std::string name : {"missing.txt", "empty.txt", "nothing"})
      broken({"tokenize", folder / name, "--tokenizer", "bytes", "--out", out}, name);
    broken({"tokenize", t.text, "--tokenizer", folder / "magic.bin", "--out", out}, "magic.bin");
  }
  SUBCASE("outputs that cannot be written") {
    broken(train_arguments(t.text, t.text + "/run"), "text.txt");
    broken({"tokenize", t.text, "--tokenizer", "bytes", "--out", t.text + "/tokens"}, "text.txt");
    check_error(folder, {"generate", t.run_path, "--prompt", "a", "--max-tokens", "3"}, 1, "standard output",
                "/dev/full");
    check_error(folder, {"eval", t.run_path, "--data", t.text}, 1, "standard output", "/dev/full");
  }
  SUBCASE("models") {
    fs::create_directory(folder / "nothing");
    for (const std::string& name : {folder / "missing", t.text, folder / "nothing"}) {
      broken({"generate", name, "--prompt", "a"}, name);
      broken({"eval", name, "--data", t.text}, name);
    }
    broken({"train", "--resume", "--out", folder / "missing"}, "missing");
    // Each file of a checkpoint cut short; then without the trainer's state, as a plain Hugging Face directory.
    for (const std::string file : {"model.safetensors", "config.json", "trainer.json", "tokenizer.json"}) {
      for (const bool plain : {false, true}) {
        const std::string copy = folder / "copy";
        fs::remove_all(copy);
        fs::copy(last, copy);
        if (plain) fs::remove(copy + "/trainer.json");
        if (!fs::exists(copy + "/" + file)) continue;
        for (const double share : {0.9, 0.3, 0.0}) {
          const auto size = static_cast<double>(fs::file_size(copy + "/" + file));
          fs::resize_file(copy + "/" + file, static_cast<uintmax_t>(size * share));
          broken({"generate", copy, "--prompt", "a"}, file);
          broken({"eval", copy, "--data", t.text}, file);
        }
      }
    }
    fs::create_directories(folder / "run/checkpoints");
    fs::copy(last, folder / "run/checkpoints/20");
    fs::resize_file(folder / "run/checkpoints/20/optimizer.state", 1000);
    broken({"train", "--resume", "--out", folder / "run", "--steps", "30"}, "optimizer.state");
  }
  SUBCASE("a vocabulary that is not the weights'") {
    fs::copy(last, folder / "copy");
    std::string config = read_file(folder / "copy/config.json");
    const size_t at = config.find("257");
    REQUIRE(at != config.npos);
    write_file_atomically(folder / "copy/config.json", config.replace(at, 3, "300"));
    broken({"generate", folder / "copy", "--prompt", "a"}, "wrong shapes");
  }
}

TEST_CASE("cli: models of other programs are imported, exported, evaluated, continued") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string choices = "test/data/choices", tasks = choices + "/choices.jsonl", run_path = folder / "run";
  const json expected = json::parse(read_file(choices + "/expected.json"));
  const auto share = [&](const char* key) { return expected[key].get<double>() / 40; };
  run_well(folder, {"import", choices, "--out", run_path});
  run_well(folder, {"export", run_path, "--out", folder / "exported"});
  CHECK(json::parse(read_file(folder / "exported/config.json"))["model_type"] == "llama");
  CHECK(read_file(folder / "exported/tokenizer.json") == read_file(choices + "/tokenizer.json"));
  CHECK(fs::exists(folder / "exported/generation_config.json"));
  const std::string logits = run_well(folder, {"generate", choices, "--prompt", "the hen", "--logits"});
  CHECK(std::count(logits.begin(), logits.end(), ' ') == 36);
  for (const std::string& model : {choices, run_path, folder / "exported"}) {
    const json result = json::parse(run_well(folder, {"eval", model, "--choices", tasks, "--format", "json"}));
    CHECK(result["accuracy"] == share("right"));
    CHECK(result["accuracy_per_token"] == share("right_per_token"));
    CHECK(result["accuracy_per_byte"] == share("right_per_byte"));
    CHECK(result["accuracy_per_character"] == share("right_per_byte"));  // all of these are ASCII
    CHECK(result["tasks"] == 40);
    run_well(folder, {"eval", model, "--choices", tasks, "--scores", folder / "scores.jsonl"});
    const std::string scores = read_file(folder / "scores.jsonl");
    CHECK(std::count(scores.begin(), scores.end(), '\n') == 40);
    CHECK(json::parse(scores.substr(0, scores.find('\n')))[1].get<double>() ==
          doctest::Approx(expected["log_likelihoods"][0][1].get<double>()).epsilon(1e-5));
    CHECK(run_well(folder, {"generate", model, "--prompt", "the hen", "--logits"}) == logits);
  }
  // Gemma's classes, whose norms are kept less 1.
  for (const auto& [kind, type] : {std::pair{"gemma", "gemma"}, {"gemma2", "gemma2"}, {"gemma3", "gemma3_text"}}) {
    const std::string from = concat("test/data/transformers/", kind), to = folder / kind;
    run_well(folder, {"export", from, "--out", to});
    CHECK(json::parse(read_file(to + "/config.json"))["model_type"] == type);
    std::istringstream theirs(run_well(folder, {"generate", from, "--prompt-ids", "5 9 2", "--logits"})),
        ours(run_well(folder, {"generate", to, "--prompt-ids", "5 9 2", "--logits"}));
    int count = 0;
    for (double a, b; theirs >> a && ours >> b; ++count) CHECK(a == doctest::Approx(b).epsilon(1e-4).scale(1));
    CHECK(count == 160);
  }
  write_file_atomically(folder / "text.txt", expected["text"].get<std::string>());
  const json loss = json::parse(
      run_well(folder, {"eval", choices, "--data", folder / "text.txt", "--split", "all", "--format", "json"}));
  CHECK(loss["loss"].get<double>() == doctest::Approx(expected["loss"].get<double>()).epsilon(1e-5));
  CHECK(loss["perplexity"].get<double>() == doctest::Approx(expected["perplexity"].get<double>()).epsilon(1e-5));
  CHECK(loss["bits_per_byte"].get<double>() == doctest::Approx(expected["bits_per_byte"].get<double>()).epsilon(1e-5));

  // Training goes on from these weights, with this tokenizer.
  const auto train = [&](const std::string& data, const std::string& out) {
    return Arguments{"train",        choices, "--data",         data,   "--out",          out,   "--steps",   "3",
                     "--batch",      "2",     "--lr",           "1e-5", "--val-fraction", "0.3", "--context", "16",
                     "--log-format", "jsonl", "--sample-every", "0",    "--threads",      "2"};
  };
  run_well(folder, train(folder / "text.txt", folder / "tuned"));
  const std::string log = read_file(folder / "tuned/log.jsonl");
  // (New weights would begin at ln 37 = 3.6.)
  CHECK(json::parse(log.substr(0, log.find('\n')))["loss"].get<double>() > 5);
  run_well(folder, {"train", "--resume", "--out", folder / "tuned"});
  CHECK(read_file(folder / "tuned/tokens/tokenizer.json") == read_file(choices + "/tokenizer.json"));
  run_well(folder, {"tokenize", folder / "text.txt", "--tokenizer", "bytes", "--out", folder / "bytes"});
  check_error(folder, train(folder / "bytes", folder / "wrong"), 1, "bytes");

  run_well(folder, {"import", "test/data/llmc/model.bin", "--out", folder / "llmc"});
  CHECK(run_well(folder, {"generate", folder / "llmc", "--prompt-ids", "3 4", "--ids", "--max-tokens", "2"}).size() >
        2);
  check_error(folder, {"import", "test/data/llmc/debug_state.bin", "--out", folder / "no"}, 1, "debug_state.bin");
  check_error(folder, {"import", folder / "missing", "--out", folder / "no"}, 1, "missing");
  check_error(folder, {"import", choices, "--out", run_path}, 2, "already holds a run");
  check_error(folder, {"export", run_path, "--out", folder / "exported"}, 2, "--out");
  check_error(folder, {"eval", choices, "--choices", tasks, "--data", tasks}, 2, "--choices");
  check_error(folder, {"eval", choices, "--choices", tasks, "--split", "all"}, 2, "--split");
  check_error(folder, {"eval", choices, "--choices", folder / "text.txt"}, 1, "line 1: not a JSON object");
  check_error(folder, {"eval", folder / "llmc", "--choices", tasks}, 1, "has no tokenizer");
}
