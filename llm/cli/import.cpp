// The subcommands import (a model of another program becomes a run) and export (a run becomes a model for transformers).
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/checkpoint/checkpoint.h"
#include "llm/cli/commands.h"
#include "llm/model/bin_checkpoint.h"
#include "llm/model/gguf_model.h"
#include "llm/model/huggingface.h"
#include "llm/text/gguf_tokenizer.h"
#include "llm/text/tokenizer.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

// What lies beside a Hugging Face model's tokenizer.json and goes where it goes.
constexpr const char* kTokenizerFiles[] = {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"};

struct ImportFlags {
  std::string from, out, tokenizer;
};

struct ExportFlags {
  std::string from, out, format = "huggingface", type = "F32";
};

bool is_file(const std::string& path) {
  std::error_code none;
  return fs::is_regular_file(path, none);
}

// A whole model in memory.
struct Model {
  ModelConfig config;
  std::vector<Parameter> table;
  std::vector<std::vector<float>> values;
  EndTokens end_tokens;
  std::string tokenizer_json;                                    // empty: none
  std::vector<std::pair<std::string, std::string>> other_files;  // name, content
};

Model read_directory(const std::string& path) {
  Model m;
  const std::string directory = find_checkpoint(path, Which::best).path;
  m.config = read_config(directory);
  m.table = parameter_table(m.config);
  m.values.resize(m.table.size());
  load_parameters(directory, m.table, [&](size_t i) {
    m.values[i].resize(static_cast<size_t>(m.table[i].shape.elements()));
    return m.values[i].data();
  });
  m.end_tokens = read_end_tokens(directory);
  if (const std::string tokenizer = tokenizer_of_model(directory); fs::is_directory(tokenizer) || is_gguf(tokenizer)) {
    m.tokenizer_json = load_tokenizer(tokenizer)->json();
  } else if (!tokenizer.empty()) {
    m.tokenizer_json = read_file(tokenizer);
  }
  for (const char* name : kTokenizerFiles)
    if (is_file(directory + "/" + name)) m.other_files.emplace_back(name, read_file(directory + "/" + name));
  return m;
}

Model read_bin(const std::string& path) {
  const BinCheckpoint file(path);
  Model m;
  m.config = file.config();
  m.table = parameter_table(m.config);
  m.values.resize(m.table.size());
  file.load(m.table, [&](size_t i) {
    m.values[i].resize(static_cast<size_t>(m.table[i].shape.elements()));
    return m.values[i].data();
  });
  // The ends that the two programs take for granted, where the vocabulary has them.
  if (file.is_llmc() && m.config.vocabulary == 50257) m.end_tokens = 50256;
  if (!file.is_llmc()) {
    m.end_tokens.bos = 1;
    m.end_tokens.eos = {2};
  }
  return m;
}

void import_model(const ImportFlags& flags) {
  std::error_code none;
  if (!fs::exists(flags.from, none)) fail("cannot import ", flags.from, ": no such file or directory");
  if (fs::exists(flags.out + "/checkpoints", none)) fail_usage(flags.out, " already holds a run: choose another --out");
  // The tokenizer first: it is quicker to be wrong.
  const auto tokenizer = flags.tokenizer.empty() ? nullptr : load_tokenizer(flags.tokenizer);
  Model m =
      fs::is_directory(flags.from, none) || is_gguf(flags.from) ? read_directory(flags.from) : read_bin(flags.from);
  if (tokenizer) {
    if (tokenizer->vocabulary() > m.config.vocabulary)
      fail("--tokenizer ", flags.tokenizer, " has ", tokenizer->vocabulary(), " tokens, the model only ",
           m.config.vocabulary);
    m.tokenizer_json = tokenizer->json();
  }
  CheckpointContent content;
  content.config = m.config;
  content.table = m.table;
  content.parameter = [&](size_t i) { return m.values[i].data(); };
  content.tokenizer_json = m.tokenizer_json;
  content.end_tokens = m.end_tokens;
  content.extra_files = m.other_files;
  const std::string path = save_checkpoint(flags.out, content);
  std::printf("%s: %lld parameters%s\n", path.c_str(), static_cast<long long>(parameter_count(m.config)),
              m.tokenizer_json.empty() ? ", no tokenizer (import --tokenizer PATH gives it one)" : "");
}

// What a model of chats is asked by; empty: none.
std::string chat_template_of(const Model& m) {
  std::string text;
  for (const auto& [name, content] : m.other_files) {
    if (name == "chat_template.jinja") return content;
    if (const Json config = name == "tokenizer_config.json" ? json_or_null(content) : Json();
        config["chat_template"].is_string())
      text = config["chat_template"].string();
  }
  return text;
}

// To `out`, or to model.gguf in it where that is no name of a GGUF file.
void export_gguf(const ExportFlags& flags) {
  constexpr GgmlType kTypes[] = {GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_0};
  const GgmlType type =
      *std::find_if(std::begin(kTypes), std::end(kTypes), [&](GgmlType t) { return flags.type == name_of(t); });
  std::error_code none;
  const bool is_name = flags.out.ends_with(".gguf");
  const std::string path = is_name ? flags.out : flags.out + "/model.gguf";
  if (fs::exists(is_name ? path : flags.out, none) && (is_name || !fs::is_empty(flags.out, none)))
    fail_usage("--out ", flags.out, " is there already: choose another");
  const Model m = read_directory(flags.from);
  GgufFields fields;
  const std::string lost = add_tokenizer(fields, m.tokenizer_json, m.config.vocabulary, m.end_tokens);
  if (const std::string text = chat_template_of(m); !text.empty()) fields.add("tokenizer.chat_template", text);
  if (!is_name) make_directories(flags.out);
  const std::string name = fs::path(flags.from).lexically_normal().filename().string();
  save_gguf(path, m.config, name.empty() ? "model" : name, type, fields, m.table,
            [&](size_t i) { return m.values[i].data(); });
  std::printf("%s: %s in %s, %lld parameters\n", path.c_str(), model_type_of(m.config).c_str(), name_of(type),
              static_cast<long long>(parameter_count(m.config)));
  if (!lost.empty()) std::fprintf(stderr, "note: %s\n", lost.c_str());
}

void export_model(const ExportFlags& flags) {
  if (flags.format == "gguf") return export_gguf(flags);
  if (flags.type != "F32") fail_usage("--type ", flags.type, " goes with --format gguf");
  std::error_code none;
  fs::path out = fs::absolute(flags.out).lexically_normal();
  if (!out.has_filename()) out = out.parent_path();
  if (fs::exists(out, none) && !(fs::is_directory(out, none) && fs::is_empty(out, none)))
    fail_usage("--out ", flags.out, " is there already and not an empty directory: choose another");
  Model m = read_directory(flags.from);
  AtomicDirectory directory(out.parent_path().string(), out.filename().string());
  const auto put = [&](const std::string& name, const std::string& text) {
    write_file_atomically(directory.path() + "/" + name, text);
  };
  const std::string type = exported_type_of(m.config);
  if (holds_norms_less_one(type))
    for (size_t i = 0; i < m.table.size(); ++i)
      if (m.table[i].init == Parameter::Init::ones)
        for (float& weight : m.values[i]) weight -= 1;
  save_parameters(directory.path() + "/model.safetensors", m.table, [&](size_t i) { return m.values[i].data(); });
  put("config.json", config_json(m.config, m.end_tokens, type));
  put("generation_config.json", generation_config_json(m.end_tokens));
  bool has_config = false;
  for (auto& [name, text] : m.other_files) {
    put(name, text);
    has_config |= name == "tokenizer_config.json";
  }
  if (!m.tokenizer_json.empty()) {
    put("tokenizer.json", m.tokenizer_json);
    if (!has_config) put("tokenizer_config.json", tokenizer_config_json(m.config, m.end_tokens, m.tokenizer_json));
  }
  directory.commit();
  std::printf("%s: %s, %lld parameters\n", flags.out.c_str(), type.c_str(),
              static_cast<long long>(parameter_count(m.config)));
  if (type == "train_gpt")
    std::fprintf(stderr, "note: no class of transformers combines this model's switches; train_gpt itself opens it\n");
}

}  // namespace

Command import_command() {
  const auto flags = std::make_shared<ImportFlags>();
  ImportFlags& f = *flags;
  return {"import",
          "Make a run of a Hugging Face, llm.c or llama2.c model",
          {Option("PATH", &f.from,
                  "a Hugging Face directory (GPT-2, Llama, Qwen3), a GGUF file, or a .bin file of llm.c (versions 3, "
                  "5) or llama2.c")
               .needed(),
           Option("--out", &f.out, "the run's directory").needed(),
           Option("--tokenizer", &f.tokenizer, "the model's tokenizer, as tokenize takes it (the directory's)")},
          "generate, eval and train also work on a Hugging Face directory as it is.\n\n"
          "Examples:\n"
          "  train_gpt import Llama-3.2-1B --out runs/llama\n"
          "  train_gpt import stories15M.bin --tokenizer tokenizer.bin --out runs/stories",
          [flags](const Given&) { import_model(*flags); }};
}

Command export_command() {
  const auto flags = std::make_shared<ExportFlags>();
  ExportFlags& f = *flags;
  return {"export",
          "Write a trained model as transformers or llama.cpp reads it",
          {Option("RUN", &f.from, "a run (its best checkpoint), a checkpoint, a Hugging Face directory or a GGUF file")
               .needed(),
           Option("--format", &f.format, "huggingface or gguf").among({"huggingface", "gguf"}).with_default(),
           Option("--type", &f.type, "of the matrices in a GGUF file: F32, F16, BF16, Q8_0 (8 bits) or Q4_0 (4 bits)")
               .among({"F32", "F16", "BF16", "Q8_0", "Q4_0"})
               .with_default(),
           Option("--out", &f.out, "a new directory, or the name of a file that ends in .gguf").needed()},
          "Examples:\n"
          "  train_gpt export runs/shakespeare --out shakespeare\n"
          "  train_gpt export runs/shakespeare --format gguf --type Q8_0 --out shakespeare.gguf",
          [flags](const Given&) { export_model(*flags); }};
}

}  // namespace llm
