// GGUF: what is written is what was meant and can be read back, a file made by hand is read as the format says, and wrong
// files are refused by name. (scripts/check_gguf.py holds the files against llama.cpp and the package gguf.)
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "llm/base/atomic_file.h"
#include "llm/base/random.h"
#include "llm/model/gguf_model.h"
#include "llm/text/gguf_tokenizer.h"
#include "test/command_line.h"
#include "test/helpers.h"
#include "test/small_model.h"

using namespace llm;
using namespace test;

namespace {

// The bytes of a file, put together by hand.
class Bytes {
 public:
  template <class T>
  Bytes& put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& text(const std::string& text) {
    put(uint64_t{text.size()});
    bytes_ += text;
    return *this;
  }
  Bytes& raw(const std::string& more) {
    bytes_ += more;
    return *this;
  }
  Bytes& align(size_t to) {
    bytes_.resize((bytes_.size() + to - 1) / to * to);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

GgufContent parsed(const std::string& bytes) {
  return parse_gguf({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}, "x.gguf");
}

// One field and one tensor (2, 32) of a type, whose bytes are `data`.
std::string file_with(uint32_t type, const std::string& data, uint32_t version = 3, uint64_t alignment = 64) {
  Bytes file;
  file.raw("GGUF").put(version).put(uint64_t{1}).put(uint64_t{2});
  file.text("general.alignment").put(uint32_t{4}).put(static_cast<uint32_t>(alignment));
  file.text("list").put(uint32_t{9}).put(uint32_t{8}).put(uint64_t{2}).text("a").text("bc");
  file.text("t").put(uint32_t{2}).put(uint64_t{32}).put(uint64_t{2}).put(type).put(uint64_t{0});
  return file.align(alignment).raw(data).bytes();
}

std::vector<float> floats(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  read_floats(tensor, values);
  return values;
}

std::vector<std::vector<float>> weights_of(const std::vector<Parameter>& table) {
  std::vector<std::vector<float>> weights;
  for (const Parameter& p : table) {
    auto& w = weights.emplace_back(static_cast<size_t>(p.shape.elements()));
    for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(Random(7, stream_of(p.name)).normal(i));
  }
  return weights;
}

void save(const std::string& path, const ModelConfig& config, GgmlType type, const GgufFields& fields = {}) {
  const std::vector<Parameter> table = parameter_table(config);
  const auto weights = weights_of(table);
  save_gguf(path, config, "small", type, fields, table, [&](size_t i) { return weights[i].data(); });
}

std::vector<std::vector<float>> load(const std::string& path, const std::vector<Parameter>& table) {
  std::vector<std::vector<float>> weights(table.size());
  load_parameters(path, table, [&](size_t i) {
    weights[i].assign(static_cast<size_t>(table[i].shape.elements()), std::nanf(""));
    return weights[i].data();
  });
  return weights;
}

}  // namespace

TEST_CASE("gguf: a file made by hand is read as the format says") {
  std::string eight;  // two blocks: a scale in fp16 and 32 whole numbers
  for (int block = 0; block < 2; ++block) {
    eight += std::string("\x00", 1) + (block ? '\xb8' : '\x40');  // -0.5, 2
    for (int i = 0; i < 32; ++i) eight += static_cast<char>(i - 16);
  }
  const std::string file = file_with(8, eight);
  const GgufContent content = parsed(file);
  CHECK(content.texts("list") == std::vector<std::string>{"a", "bc"});
  CHECK(content.tensors.at("t").shape == std::vector<int64_t>{2, 32});
  const std::vector<float> values = floats(content.tensors.at("t"));
  for (size_t i = 0; i < 32; ++i) {
    CHECK(values[i] == 2 * (static_cast<float>(i) - 16));
    CHECK(values[32 + i] == -0.5f * (static_cast<float>(i) - 16));
  }
  std::string four;  // byte i of a block: number i below, number i + 16 above, both plus 8
  for (int block = 0; block < 2; ++block) {
    four += std::string("\x00\x3c", 2);
    for (int i = 0; i < 16; ++i) four += static_cast<char>(i | (15 - i) << 4);
  }
  const std::string other = file_with(2, four, 2);
  const std::vector<float> quarter = floats(parsed(other).tensors.at("t"));
  for (size_t i = 0; i < 16; ++i) {
    CHECK(quarter[i] == static_cast<float>(i) - 8);
    CHECK(quarter[48 + i] == 7 - static_cast<float>(i));
  }
}

TEST_CASE("gguf: wrong files are refused by one line that names what is wrong") {
  const std::string whole = file_with(0, std::string(256, '\0'));
  CHECK(error_of([&] { parsed(whole); }) == "no error");
  for (size_t size = 0; size < whole.size(); ++size)
    CHECK(error_of([&] { parsed(whole.substr(0, size)); }) != "no error");
  CHECK(has(error_of([&] { parsed(file_with(14, whole)); }), "Q6_K"));
  CHECK(has(error_of([&] { parsed(file_with(77, whole)); }), "number 77"));
  CHECK(has(error_of([&] { parsed(file_with(0, whole, 1)); }), "version 1"));
  CHECK(has(error_of([&] { parsed(file_with(0, whole, 3, 48)); }), "general.alignment"));
  CHECK(has(error_of([&] { parsed(whole).text("none"); }), "no field none"));
  CHECK(has(error_of([&] { parsed(whole).whole("list"); }), "list"));
  Bytes twice;
  twice.raw("GGUF").put(uint32_t{3}).put(uint64_t{0}).put(uint64_t{2});
  for (int i = 0; i < 2; ++i) twice.text("key").put(uint32_t{7}).put(uint8_t{1});
  CHECK(has(error_of([&] { parsed(twice.bytes()); }), "two fields"));
  Bytes endless;
  endless.raw("GGUF").put(uint32_t{3}).put(uint64_t{0}).put(uint64_t{1}).text("list").put(uint32_t{9});
  CHECK(has(error_of([&] { parsed(Bytes(endless).put(uint32_t{4}).put(~uint64_t{0}).bytes()); }), "list"));
  CHECK(has(error_of([&] { parsed(Bytes(endless).put(uint32_t{9}).put(uint64_t{1}).bytes()); }), "type"));

  const Folder folder;
  ModelConfig config = small_config("llama");
  const auto refused = [&](const std::string& from, const std::string& to) {
    save(folder / "model.gguf", config, GgmlType::F32);
    std::string bytes = read_file(folder / "model.gguf");
    const size_t at = bytes.find(from);
    REQUIRE(at != bytes.npos);
    write_file_atomically(folder / "model.gguf", bytes.replace(at, from.size(), to));
    return error_of([&] {
      const std::vector<Parameter> table = parameter_table(read_config(folder / "model.gguf"));
      load(folder / "model.gguf", table);
    });
  };
  CHECK(has(refused("llama", "mamba"), "architecture \"mamba\""));
  CHECK(has(refused("blk.1.attn_k.weight", "blk.1.attn_x.weight"), "blk.1.attn_k.weight"));
  CHECK(has(refused("llama.context_length", "llama.context_lengtx"), "context_length"));
  config.rope_kind = RopeKind::yarn, config.rope_factor = 2;
  CHECK(has(error_of([&] { save(folder / "no.gguf", config, GgmlType::F32); }), "yarn"));
  CHECK(has(error_of([&] { save(folder / "no.gguf", small_config("mix"), GgmlType::F32); }), "no architecture"));
  CHECK(has(error_of([&] { save(folder / "no.gguf", small_config("experts"), GgmlType::F32); }), "experts"));
}

TEST_CASE("gguf: a model comes back, bit for bit in F32 and to a block's rounding in others") {
  const Folder folder;
  const std::string path = folder / "model.gguf";
  for (const std::string kind : {"gpt2", "llama", "qwen3", "qwen2", "llama3", "linear", "biases"}) {
    CAPTURE(kind);
    ModelConfig config = small_config(kind == "gpt2" || kind == "qwen3" ? kind : "llama");
    if (kind == "qwen2") config.qkv_bias = true, config.tied_head = true;
    if (kind == "llama3") config.rope_factor = 8, config.rope_theta = 500000, config.head_size = 32;
    if (kind == "linear") config.rope_kind = RopeKind::linear, config.rope_factor = 2.5;
    if (kind == "biases") config.bias = true;
    const std::vector<Parameter> table = parameter_table(config);
    save(path, config, GgmlType::F32);
    ModelConfig back = read_config(path);
    if (kind == "llama3") CHECK(std::abs(back.rope_original - 8192) < 9);  // the file holds its effect alone
    back.rope_original = config.rope_original;
    CHECK(back == config);
    CHECK(load(path, table) == weights_of(table));
    for (const GgmlType type : {GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0}) {
      save(path, config, type);
      const auto read = load(path, table), meant = weights_of(table);
      // The rows of these models are no whole blocks, but for those of attention's output.
      const double bound = type == GgmlType::BF16 ? 0.004 : type == GgmlType::Q4_0 ? 0.5 : 0.02;
      double largest = 0;
      for (size_t i = 0; i < table.size(); ++i)
        for (size_t e = 0; e < meant[i].size(); ++e)
          largest =
              std::max(largest, std::fabs(double{read[i][e]} - meant[i][e]) / std::max(1.0f, std::fabs(meant[i][e])));
      CHECK(largest <= bound);
      CHECK(largest > 0);
    }
  }
}

TEST_CASE("gguf: the rows of Llama's queries and keys lie in pairs") {
  const Folder folder;
  const ModelConfig config = small_config("llama");  // heads of 6
  save(folder / "model.gguf", config, GgmlType::F32);
  const std::string bytes = read_file(folder / "model.gguf");
  const GgufContent content = parsed(bytes);
  const std::vector<float> keys = floats(content.tensors.at("blk.1.attn_k.weight"));
  const std::vector<Parameter> table = parameter_table(config);
  const auto weights = weights_of(table);
  for (size_t i = 0; i < table.size(); ++i) {
    if (table[i].name != "layers.1.qkv.weight") continue;
    const int64_t C = config.channels, first = config.query_width();
    const auto row = [&](int64_t r) { return weights[i][static_cast<size_t>((first + r) * C)]; };
    for (const auto& [there, here] : {std::pair{0, 0}, {1, 3}, {2, 1}, {3, 4}, {4, 2}, {5, 5}, {6, 6}, {7, 9}})
      CHECK(keys[static_cast<size_t>(there * C)] == row(here));
  }
}

TEST_CASE("gguf: tokenizers of both kinds, with the tokenizer.json in the file and without") {
  const Folder folder;
  const ModelConfig config = small_config("llama");
  const auto of = [&](const GgufFields& fields) {
    save(folder / "model.gguf", config, GgmlType::F32, fields);
    return load_tokenizer(folder / "model.gguf");
  };
  const auto ids = [](const Tokenizer& tokenizer, const std::string& text) {
    std::vector<int32_t> all;
    tokenizer.encode(text, true, all);
    return all;
  };
  GgufFields bytes;
  bytes.add("tokenizer.ggml.model", "gpt2");
  bytes.add("tokenizer.ggml.pre", "gpt-2");
  bytes.add("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "\u0120", "ab", "\u0120ab", "<|end|>"});
  bytes.add("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1, 1, 1, 1, 3});
  bytes.add("tokenizer.ggml.merges", std::vector<std::string>{"a b", "\u0120 ab"});
  CHECK(ids(*of(bytes), "ab abba<|end|>") == std::vector<int32_t>{3, 4, 1, 0, 5});

  GgufFields pieces;
  pieces.add("tokenizer.ggml.model", "llama");
  pieces.add("tokenizer.ggml.tokens",
             std::vector<std::string>{"<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "b", "\u2581a", "ab"});
  pieces.add("tokenizer.ggml.scores", std::vector<float>{0, 0, 0, 0, -9, -9, -9, -2, -1});
  pieces.add("tokenizer.ggml.token_type", std::vector<int32_t>{2, 3, 3, 6, 1, 1, 1, 1, 1});
  pieces.add("tokenizer.ggml.bos_token_id", uint32_t{1});
  pieces.add("tokenizer.ggml.unknown_token_id", uint32_t{0});
  const auto sentencepiece = of(pieces);
  CHECK(ids(*sentencepiece, "ab aA?") == std::vector<int32_t>{4, 8, 7, 3, 0});  // "ab" has the higher score
  CHECK(sentencepiece->text_prefix() == std::vector<int32_t>{1});

  GgufFields unknown;
  unknown.add("tokenizer.ggml.model", "gpt2");
  unknown.add("tokenizer.ggml.pre", "another");
  unknown.add("tokenizer.ggml.tokens", std::vector<std::string>{"a"});
  CHECK(has(error_of([&] { of(unknown); }), "\"another\""));
  GgufFields other;
  other.add("tokenizer.ggml.model", "bert");
  CHECK(has(error_of([&] { of(other); }), "\"bert\""));
  CHECK(has(error_of([&] { of({}); }), "no tokenizer"));
}

TEST_CASE("cli: a model goes through GGUF and gives the same text; weights in 8 and 4 bits") {
  if (binary().empty()) return;
  const Folder folder;
  const std::string& run_path = trained().run_path;
  const auto text = [&](const std::string& model, const Arguments& more = {}) {
    Arguments all = {"generate", model, "--prompt", "the ", "--temperature", "0", "--max-tokens", "30"};
    all.insert(all.end(), more.begin(), more.end());
    return run_well(folder, all);
  };
  const auto loss = [&](const std::string& model, const Arguments& more = {}) {
    Arguments all = {"eval", model, "--data", trained().text, "--format", "json", "--split", "all"};
    all.insert(all.end(), more.begin(), more.end());
    return nlohmann::json::parse(run_well(folder, all))["loss"].get<double>();
  };
  run_well(folder, {"export", run_path, "--format", "gguf", "--out", folder / "whole.gguf"});
  run_well(folder, {"export", run_path, "--format", "gguf", "--type", "Q8_0", "--out", folder / "eight"});
  CHECK(text(folder / "whole.gguf") == text(run_path));
  CHECK(text(folder / "eight") == text(run_path, {"--weights", "int8", "--cache", "fp32"}));
  CHECK(loss(folder / "whole.gguf") == loss(run_path));
  CHECK(loss(folder / "eight") == doctest::Approx(loss(run_path, {"--weights", "int8"})).epsilon(1e-9));
  CHECK(loss(run_path, {"--weights", "int8"}) != loss(run_path));
  CHECK(loss(run_path, {"--weights", "int8"}) == doctest::Approx(loss(run_path)).epsilon(0.002));
  CHECK(loss(run_path, {"--weights", "int4"}) == doctest::Approx(loss(run_path)).epsilon(0.05));
  run_well(folder, {"import", folder / "eight", "--out", folder / "again"});
  CHECK(loss(folder / "again") == loss(folder / "eight"));

  check_error(folder, {"export", run_path, "--format", "gguf", "--out", folder / "whole.gguf"}, 2, "--out");
  check_error(folder, {"export", run_path, "--type", "Q8_0", "--out", folder / "x"}, 2, "--type");
  CHECK(loss(run_path, {"--weights", "w8a8"}) != loss(run_path, {"--weights", "int8"}));
  CHECK(loss(run_path, {"--weights", "w8a8"}) == doctest::Approx(loss(run_path, {"--weights", "int8"})).epsilon(0.005));
  CHECK(loss(run_path, {"--weights", "w4a8"}) == doctest::Approx(loss(run_path, {"--weights", "int4"})).epsilon(0.005));
  check_error(folder, {"generate", run_path, "--weights", "int8", "--dtype", "bf16", "--prompt", "a"}, 2, "--weights");
  CHECK(text(run_path, {"--cache", "fp32"}) == text(run_path));
  check_error(folder, {"generate", run_path, "--cache", "int4", "--prompt", "a"}, 2, "--cache");
  check_error(folder, {"generate", run_path, "--weights", "int3", "--prompt", "a"}, 2, "--weights");
  write_file_atomically(folder / "bad.gguf", "GGUF");
  check_error(folder, {"generate", folder / "bad.gguf", "--prompt", "a"}, 1, "bad.gguf");
}
