// Files of other programs, and the numbers that those programs make of them: checkpoints of llm.c with the losses of
// its own test, checkpoints of llama2.c, multiple-choice tasks (scripts/make_format_reference.py makes the files),
// models that transformers has written (scripts/check_transformers.py). Optional further files: in
// TRAIN_GPT_SHARED/data/llmc and TRAIN_GPT_SHARED/data/models; in TRAIN_GPT_LLMC the gpt2_124M.bin and
// gpt2_124M_debug_state.bin of llm.c's download_starter_pack.sh.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "llm/base/mapped_file.h"
#include "llm/checkpoint/loaded_model.h"
#include "llm/device/cpu.h"
#include "llm/graph/program.h"
#include "llm/infer/evaluate.h"
#include "llm/infer/generator.h"
#include "llm/infer/score_choices.h"
#include "llm/model/bin_checkpoint.h"
#include "llm/model/gpt.h"
#include "llm/model/huggingface.h"
#include "llm/text/shards.h"
#include "test/helpers.h"
#include "test/reference.h"

namespace fs = std::filesystem;
using namespace llm;
using namespace test;
using nlohmann::json;

namespace {

using Weights = std::vector<std::vector<float>>;

json read_json(const std::string& path) {
  std::ifstream file(path);
  REQUIRE_MESSAGE(file.good(), "cannot open ", path, "; run the tests from the repository's root");
  return json::parse(file);
}

std::string read(const std::string& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void write(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

Weights load(const BinCheckpoint& file) {
  const std::vector<Parameter> table = parameter_table(file.config());
  Weights weights(table.size());
  file.load(table, [&](size_t i) {
    weights[i].resize(static_cast<size_t>(table[i].shape.elements()));
    return weights[i].data();
  });
  return weights;
}

// Training as in llm.c's test: the same batch at each step, AdamW without decay, no clipping.
struct Training {
  ModelConfig config;
  ThreadTeam threads{2};
  CpuDevice device{threads};
  PersistentLayout layout;
  TrainingGraph graph;
  TensorId logits;
  Program program;
  Arena arena;
  int64_t count;
  int64_t steps = 0;

  Training(const ModelConfig& c, const Weights& weights, int64_t batch, int64_t tokens, bool with_logits)
      : config(c),
        graph(build_training_graph(c, batch, tokens, {0.9, 0.999, 1e-8, 0, 0})),
        logits(graph.graph.find("logits")),
        program(make(with_logits), layout),
        arena(program.arena_bytes(), device),
        count(batch * tokens) {
    program.bind(arena);
    const std::vector<Parameter> table = parameter_table(config);
    for (size_t i = 0; i < table.size(); ++i)
      std::copy(weights[i].begin(), weights[i].end(), program.data(program.graph().find(table[i].name)));
  }
  Compiled make(bool with_logits) {
    layout.add(graph.graph);
    std::vector<TensorId> results = graph.results();
    if (with_logits) results.push_back(logits);
    return compile(graph.graph, results, {.threads = 2}, {.fuse = !with_logits});
  }
  double step(const int32_t* tokens, const int32_t* targets) {
    std::copy_n(tokens, count, program.data<int32_t>(graph.tokens));
    std::copy_n(targets, count, program.data<int32_t>(graph.targets));
    std::fill_n(program.data(graph.loss_weights), count, 1.0f / static_cast<float>(count));
    program.step = {.learning_rate = 1e-4, .step = steps++};
    program.run(kWholeStep);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(program.data(graph.losses)[i]);
    return sum / static_cast<double>(count);
  }
};

// The test of llm.c's test_gpt2.c, with a checkpoint and its debug state: logits and loss of one batch, and the losses
// of ten steps on it. `tolerance` is absolute and for the losses; that of the logits is twice as large.
void check_llmc(const std::string& checkpoint, const std::string& state, const std::vector<double>& losses,
                double tolerance) {
  const BinCheckpoint file(checkpoint);
  const std::string bytes = read(state);
  int32_t header[256];
  std::memcpy(header, bytes.data(), sizeof header);
  REQUIRE(header[0] == 20240327);
  REQUIRE(header[1] == 2);
  const int64_t B = header[2], T = header[3], V = file.config().vocabulary;
  std::vector<int32_t> tokens(static_cast<size_t>(2 * B * T));
  std::vector<float> logits(static_cast<size_t>(B * T * V) + 1);  // and the loss, which follows them
  REQUIRE(bytes.size() >= sizeof header + 4 * (tokens.size() + logits.size()));
  std::memcpy(tokens.data(), bytes.data() + sizeof header, 4 * tokens.size());
  std::memcpy(logits.data(), bytes.data() + sizeof header + 4 * tokens.size(), 4 * logits.size());

  Training training(file.config(), load(file), B, T, true);
  for (size_t step = 0; step < losses.size(); ++step) {
    CAPTURE(step);
    const double loss = training.step(tokens.data(), tokens.data() + B * T);
    CHECK(std::abs(loss - losses[step]) < tolerance);
    if (step > 0) continue;
    CHECK(std::abs(loss - static_cast<double>(logits.back())) < tolerance);
    double worst = 0;
    for (int64_t i = 0; i < B * T * V; ++i)
      worst = std::max(worst, std::abs(static_cast<double>(training.program.data(training.logits)[i]) -
                                       static_cast<double>(logits[static_cast<size_t>(i)])));
    CHECK(worst < 2 * tolerance);
  }
}

// Makes a file of version 5 (bf16) of one of version 3: the same with the upper halves of the floats.
std::string as_bf16(const std::string& version3) {
  std::string bytes = version3.substr(0, 1024);
  const int32_t version = 5;
  std::memcpy(bytes.data() + 4, &version, sizeof version);
  for (size_t at = 1024; at < version3.size(); at += 4) bytes.append(version3, at + 2, 2);
  return bytes;
}

}  // namespace

TEST_CASE("llm.c: a checkpoint's logits, loss and the losses of ten steps are PyTorch's") {
  const std::string folder = "test/data/llmc/";
  check_llmc(folder + "model.bin", folder + "debug_state.bin", read_json(folder + "losses.json")["losses"], 2e-6);
}

TEST_CASE("llm.c: bf16 checkpoints, and files that are not whole") {
  const Folder folder;
  const std::string whole = read("test/data/llmc/model.bin");
  write(folder / "v5.bin", as_bf16(whole));
  const BinCheckpoint v3("test/data/llmc/model.bin"), v5(folder / "v5.bin");
  CHECK(v3.is_llmc());
  CHECK(v3.config() == v5.config());
  CHECK(v3.config().vocabulary == 61);  // without the padding
  const Weights exact = load(v3), rounded = load(v5);
  for (size_t i = 0; i < exact.size(); ++i)
    for (size_t e = 0; e < exact[i].size(); ++e)
      CHECK(std::bit_cast<uint32_t>(rounded[i][e]) == (std::bit_cast<uint32_t>(exact[i][e]) & 0xFFFF0000u));
  const auto message = [&](const std::string& bytes) {
    write(folder / "wrong.bin", bytes);
    return error_of([&] { BinCheckpoint(folder / "wrong.bin"); });
  };
  CHECK(has(message(whole.substr(0, 20)), "only 20 bytes"));
  CHECK(has(message(whole.substr(0, 900)), "end inside the header"));
  CHECK(has(message(whole.substr(0, whole.size() - 4)), "not a whole checkpoint"));
  CHECK(has(message(whole + "x"), "not a whole checkpoint"));
  const auto changed = [&](size_t word, int32_t value) {
    std::string bytes = whole;
    std::memcpy(bytes.data() + 4 * word, &value, sizeof value);
    return message(bytes);
  };
  CHECK(has(changed(1, 1), "version 1; readable: 3 (fp32) and 5 (bf16)"));
  for (const int32_t value : {0, -1, 1 << 30}) {
    for (size_t word = 2; word < 8; ++word)
      CHECK(has(changed(word, value), "not a whole checkpoint") + has(changed(word, value), "not a checkpoint") == 1);
  }
}

TEST_CASE(
    "Hugging Face: logits of models that transformers has written, of several families, in F16, and in BF16 in many "
    "files") {
  for (const std::string kind : {"llama2", "llama3", "qwen2-yarn", "phi3", "mixtral", "qwen3-moe", "gemma", "phi",
                                 "phi3-longrope", "gemma2", "gemma3"}) {
    const std::string folder = "test/data/transformers/" + kind;
    const json expected = read_json(folder + "/expected.json");
    ThreadTeam threads(2);
    CpuDevice device(threads);
    LoadedModel model(folder);
    CHECK((model.config().rope_factor == 8) == (kind == "llama3"));
    CHECK((model.config().rope_kind == RopeKind::yarn) == (kind == "qwen2-yarn"));
    CHECK((model.config().rope_kind == RopeKind::longrope) == (kind == "phi3-longrope"));
    Generator generator(model.config(), model.layout(), {.threads = 2});
    generator.bind(model.load(generator.arena_bytes(), device));
    for (size_t i = 0; i < expected["prompts"].size(); ++i) {
      const std::vector<float> logits = generator.logits(expected["prompts"][i]);
      CHECK(reference::relative_error({logits.begin(), logits.end()}, expected["logits"][i]) < 1e-5);
    }
  }
}

TEST_CASE("multiple choice: each ending's log-likelihood, and what is counted, as PyTorch has it") {
  const std::string folder = "test/data/choices";
  const json expected = read_json(folder + "/expected.json");
  ThreadTeam threads(2);
  CpuDevice device(threads);
  LoadedModel model(folder);
  REQUIRE(model.tokenizer() != nullptr);
  const std::vector<Choice> choices = read_choices(folder + "/choices.jsonl");
  std::vector<TokenizedChoice> tasks;
  for (size_t i = 0; i < choices.size(); ++i) {
    tasks.push_back(tokenize_choice(choices[i], *model.tokenizer(), model.config().context, "test"));
    for (size_t k = 0; k < tasks[i].endings.size(); ++k)
      CHECK(tasks[i].endings[k].tokens.size() - tasks[i].endings[k].first == expected["tokens"][i][k].get<size_t>());
  }
  for (const int64_t batch : {0, 1, 7}) {
    ChoiceScorer scorer(model.config(), tasks, batch, model.layout(), {.threads = 2});
    scorer.bind(model.load(scorer.arena_bytes(), device));
    int64_t seen = 0;
    const ChoiceScorer::Result result = scorer.run([&](const ChoiceScorer::Result& so_far, int64_t total) {
      CHECK(so_far.tasks >= seen);
      CHECK(total == 40);
      seen = so_far.tasks;
    });
    CHECK(seen == 40);
    for (size_t i = 0; i < tasks.size(); ++i)
      for (size_t k = 0; k < tasks[i].endings.size(); ++k)
        CHECK(scorer.log_likelihoods(i)[k] ==
              doctest::Approx(expected["log_likelihoods"][i][k].get<double>()).epsilon(1e-5));
    CHECK(result.tasks == 40);
    CHECK(result.right == expected["right"].get<int64_t>());
    CHECK(result.right_per_token == expected["right_per_token"].get<int64_t>());
    CHECK(result.right_per_byte == expected["right_per_byte"].get<int64_t>());
  }
  const Tokenizer& tokenizer = *model.tokenizer();
  CHECK(has(error_of([&] {
              tokenize_choice({"a", {"in the barn", "b"}, 0}, tokenizer, 3, "line");
            }),
            "line: an ending has"));
  // Characters and bytes; a context of blanks alone begins as an empty one does, and its blanks belong to the ending.
  const auto bytes = load_tokenizer("bytes");
  const TokenizedChoice empty = tokenize_choice({"", {"für", " b"}, 0}, *bytes, 30, "line");
  CHECK(empty.endings[0].bytes == 4);
  CHECK(empty.endings[0].characters == 3);
  CHECK(empty.endings[0].tokens[0] == bytes->end_of_text());
  CHECK(empty.endings[0].first == 1);
  const TokenizedChoice blank = tokenize_choice({" ", {"b", "c"}, 0}, *bytes, 30, "line", "");
  CHECK(blank.endings[0].tokens == tokenize_choice({"", {"b", "c"}, 0}, *bytes, 30, "line").endings[0].tokens);
  CHECK(blank.endings[0].first == 1);
}

TEST_CASE(
    "multiple choice: 240 tasks have lm-evaluation-harness's figures, with and without a token that begins a text") {
  // Of scripts/check_lm_eval.py: tasks with an empty context, a long one, and white space at the seam are among them.
  const std::string folder = "test/data/lm_eval/";
  const std::vector<Choice> choices = read_choices(folder + "tasks.jsonl");
  REQUIRE(choices.size() == 240);
  ThreadTeam threads(2);
  CpuDevice device(threads);
  for (const char* kind : {"gpt2", "llama"}) {
    CAPTURE(kind);
    const json expected = read_json(folder + kind + "/expected.json");
    LoadedModel model(folder + kind);
    std::vector<TokenizedChoice> tasks;
    for (const Choice& choice : choices)
      tasks.push_back(tokenize_choice(choice, *model.tokenizer(), model.config().context, "test"));
    ChoiceScorer scorer(model.config(), tasks, 0, model.layout(), {.threads = 2});
    scorer.bind(model.load(scorer.arena_bytes(), device));
    const ChoiceScorer::Result result = scorer.run();
    const auto right = [&](const char* key) {
      return static_cast<int64_t>(std::llround(expected[key].get<double>() * 240));
    };
    CHECK(result.right == right("accuracy"));
    CHECK(result.right_per_character == right("accuracy_per_character"));
    CHECK(result.right_per_byte == right("accuracy_per_byte"));
    double largest = 0;
    for (size_t i = 0; i < tasks.size(); ++i) {
      const json& theirs = expected["log_likelihoods"][i];
      REQUIRE(scorer.log_likelihoods(i).size() == theirs.size());
      for (size_t k = 0; k < theirs.size(); ++k) {
        const double score = theirs[k].get<double>();
        largest = std::max(largest, std::abs(scorer.log_likelihoods(i)[k] - score) / std::max(1.0, std::abs(score)));
      }
    }
    CHECK(largest < 2e-5);
  }
}

TEST_CASE("multiple choice: what is no task is an error that names the line") {
  const Folder folder;
  const auto message = [&](const std::string& text) {
    write(folder / "tasks.jsonl", text);
    return error_of([&] { read_choices(folder / "tasks.jsonl"); });
  };
  const std::string good = R"({"ctx": "a", "endings": ["b", "c"], "label": 1})"
                           "\n";
  CHECK(message(good + "\r\n \n" + good) == "no error");
  CHECK(message(R"({"ctx": "a", "endings": ["b", "c"], "label": 1.0})") == "no error");
  CHECK(has(message("\x1F\x8B\x08"), "packed by gzip"));
  CHECK(has(message("[" + good + "]"), "line 1: a JSON list"));
  CHECK(has(message(""), "it is empty"));
  CHECK(has(message(good + "{"), "line 2: not a JSON object"));
  CHECK(has(message(good + "\n7"), "line 3: not a JSON object"));
  CHECK(has(message(R"({"endings": ["b", "c"], "label": 1})"), "no \"ctx\""));
  CHECK(has(message(R"({"ctx": 3, "endings": ["b", "c"], "label": 1})"), "\"ctx\" is not a string"));
  CHECK(has(message(R"({"ctx": "", "endings": ["b"], "label": 0})"), "two or more"));
  CHECK(has(message(R"({"ctx": "", "endings": ["b", ""], "label": 0})"), "empty"));
  for (const char* label : {"2", "-1", "\"x\"", "1.5", "null", "\"\""})
    CHECK(has(message(concat(R"({"ctx": "", "endings": ["b", "c"], "label": )", label, "}")), "\"label\""));
}

TEST_CASE("evaluator: a text's loss, perplexity and bits per byte are PyTorch's") {
  const json expected = read_json("test/data/choices/expected.json");
  ThreadTeam threads(2);
  CpuDevice device(threads);
  LoadedModel model("test/data/choices");
  const std::string text = expected["text"];
  std::vector<int32_t> ids;
  model.tokenizer()->encode(text, false, ids);
  const Folder folder;
  ShardWriter writer(folder / "val.bin", model.config().vocabulary);
  writer.write(ids.data(), static_cast<int64_t>(ids.size()));
  writer.finish();
  Evaluator evaluator(model.config(), 2, model.config().context, model.layout(), {.threads = 2});
  evaluator.bind(model.load(evaluator.arena_bytes(), device));
  const Evaluator::Result result = evaluator.run(TokenStream({folder / "val.bin"}));
  CHECK(result.tokens == expected["predicted"].get<int64_t>());
  CHECK(result.loss == doctest::Approx(expected["loss"].get<double>()).epsilon(1e-6));
  const double bits = result.loss / std::log(2.0) * static_cast<double>(ids.size()) / static_cast<double>(text.size());
  CHECK(bits == doctest::Approx(expected["bits_per_byte"].get<double>()).epsilon(1e-6));
}

TEST_CASE("llm.c: the twelve losses of llm.c's own trainer (TRAIN_GPT_SHARED)") {
  const char* shared = std::getenv("TRAIN_GPT_SHARED");
  if (!shared) return;
  const std::string folder = std::string(shared) + "/data/llmc/";
  const json expected = read_json(folder + "expected.json");
  const BinCheckpoint file(folder + "model.bin");
  const int64_t B = expected["batch"], T = expected["context"];
  const TokenStream stream({folder + "tokens.bin"});
  std::vector<int32_t> tokens(static_cast<size_t>(B * T + 1));
  stream.read(0, B * T + 1, tokens.data());
  Training training(file.config(), load(file), B, T, false);
  for (const json& loss : expected["losses"])
    CHECK(std::abs(training.step(tokens.data(), tokens.data() + 1) - loss.get<double>()) < 1e-5);
}

TEST_CASE("llm.c: the ten losses of its test for GPT-2 124M (TRAIN_GPT_LLMC)") {
  const char* folder = std::getenv("TRAIN_GPT_LLMC");
  if (!folder) return;
  // The numbers and the tolerance of llm.c's test_gpt2.c.
  check_llmc(std::string(folder) + "/gpt2_124M.bin", std::string(folder) + "/gpt2_124M_debug_state.bin",
             {5.270007133483887, 4.059706687927246, 3.3751230239868164, 2.8007826805114746, 2.315382242202759,
              1.8490285873413086, 1.3946564197540283, 0.9991465210914612, 0.6240804195404053, 0.37651097774505615},
             1e-2);
}

TEST_CASE("llama2.c and Hugging Face: a trained model's tokens, likelihoods and logits (TRAIN_GPT_SHARED)") {
  const char* shared = std::getenv("TRAIN_GPT_SHARED");
  if (!shared) return;
  const std::string folder = std::string(shared) + "/data/models/";
  const json expected = read_json(folder + "stories260K/expected.json");
  // Both files hold the same weights, once the rotary pairs of one have been sorted.
  const BinCheckpoint file(folder + "stories260K/stories260K.bin");
  ThreadTeam threads(2);
  CpuDevice device(threads);
  LoadedModel model(folder + "stories260K_hf");
  CHECK(file.config() == model.config());
  const Weights weights = load(file);
  const std::vector<Parameter> table = parameter_table(model.config());
  Generator generator(model.config(), model.layout(), {.threads = 2});
  const Arena& arena = model.load(generator.arena_bytes(), device);
  for (size_t i = 0; i < table.size(); ++i)
    CHECK(std::memcmp(weights[i].data(), arena.data() + model.layout().offset(table[i].name), 4 * weights[i].size()) ==
          0);
  generator.bind(arena);
  const auto greedy = [&](const std::vector<int32_t>& prompt, size_t total) {
    std::vector<int32_t> ids = prompt;
    generator.generate(prompt, static_cast<int64_t>(total - prompt.size()), {.temperature = 0}, -1, [&](int32_t id) {
      ids.push_back(id);
      return true;
    });
    return ids;
  };
  const std::vector<int32_t> ids = expected["greedy_ids_from_bos"];
  CHECK(greedy({1}, ids.size()) == ids);
  const auto tokenizer = load_tokenizer(folder + "stories260K/tok512.bin");
  CHECK(tokenizer->decode({ids.begin() + 1, ids.end()}) == expected["greedy_text"].get<std::string>());
  for (const json& prompt : expected["prompts"]) {
    std::vector<int32_t> tokens = tokenizer->text_prefix();
    tokenizer->encode(prompt["text"].get<std::string>(), true, tokens);
    CHECK(tokens == prompt["ids_with_bos"].get<std::vector<int32_t>>());
    const std::vector<int32_t> whole = prompt["greedy_64_ids"];
    CHECK(greedy(tokens, whole.size()) == whole);
  }

  const auto logits_after = [&](const std::vector<int32_t>& tokens) { return generator.logits(tokens); };
  const std::vector<float> first = logits_after({1});
  const json& sixteen = expected["logits_after_bos_first16"];
  for (size_t i = 0; i < sixteen.size(); ++i)
    CHECK(static_cast<double>(first[i]) == doctest::Approx(sixteen[i].get<double>()).epsilon(1e-4));
  const std::vector<float> later = logits_after({ids.begin(), ids.begin() + 8});
  for (const json& pair : expected["logits_after_8_tokens_top10"])
    CHECK(static_cast<double>(later[pair[0].get<size_t>()]) == doctest::Approx(pair[1].get<double>()).epsilon(1e-4));

  const json& nll = expected["nll_first_63_transitions"];
  const Folder temporary;
  ShardWriter writer(temporary / "t.bin", 512);
  writer.write(ids.data(), static_cast<int64_t>(nll.size()) + 1);
  writer.finish();
  Evaluator evaluator(model.config(), 1, static_cast<int64_t>(nll.size()), model.layout(), {.threads = 2});
  evaluator.bind(model.load(evaluator.arena_bytes(), device));
  CHECK(evaluator.run(TokenStream({temporary / "t.bin"})).loss ==
        doctest::Approx(expected["mean_nll_first_63"].get<double>()).epsilon(1e-5));
}
