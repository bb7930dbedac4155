#include "llm/text/tokenizer.h"

#include <filesystem>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/mapped_file.h"
#include "llm/model/gguf_model.h"
#include "llm/model/huggingface.h"
#include "llm/model/parameters.h"
#include "llm/text/bytes.h"
#include "llm/text/gguf_tokenizer.h"
#include "llm/text/rank_files.h"
#include "llm/text/tokenizer_json.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

bool is_file(const fs::path& path) {
  std::error_code none;
  return fs::is_regular_file(path, none);
}

// The first of the names that is a file in `directory`; empty: none is.
std::string one_of(const fs::path& directory, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (is_file(directory / name)) return (directory / name).string();
  return "";
}

std::unique_ptr<Tokenizer> load_gpt2(const std::string& spec, const fs::path& directory) {
  const std::string merges = one_of(directory, {"vocab.bpe", "merges.txt"});
  const std::string vocabulary = one_of(directory, {"encoder.json", "vocab.json"});
  if (merges.empty()) fail(spec, ": the merges, vocab.bpe or merges.txt, must lie beside it");
  if (vocabulary.empty()) fail(spec, ": the vocabulary, encoder.json or vocab.json, must lie beside it");
  return make_tokenizer(read_gpt2_files(merges, vocabulary));
}

std::unique_ptr<Tokenizer> load_json(const std::string& path) {
  const Json document = read_json(path);
  if (is_bytes_tokenizer(document)) return make_bytes_tokenizer();
  TokenizerParts parts = parse_tokenizer_json(document, path);
  const MappedFile file(path);  // as it is: what this program has no use for, others may have
  parts.json.assign(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  return make_tokenizer(std::move(parts));
}

}  // namespace

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  bool first = strips_leading_blank();
  const std::vector<int32_t> prefix = text_prefix();
  for (const int32_t id : ids) {
    std::string_view bytes = bytes_of(id);
    if (first && bytes.starts_with(' ')) bytes.remove_prefix(1);
    text += bytes;
    first = strips_leading_blank() && prefix.size() == 1 && id == prefix[0];
  }
  return text;
}

std::string tokenizer_of_model(const std::string& directory) {
  if (const std::string gguf = gguf_of_model(directory); !gguf.empty()) return gguf;
  const std::string json = one_of(directory, {"tokenizer.json"});
  if (!json.empty()) return json;
  // Other models have files of these names, too, but split text in another way.
  if (one_of(directory, {"merges.txt"}).empty() || one_of(directory, {"vocab.json"}).empty()) return "";
  return model_type_of(read_config(directory)) == "gpt2" ? directory : "";
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& spec, const std::string& pattern) {
  const auto no_pattern = [&] {
    if (!pattern.empty()) fail_value("pattern", " goes with a tiktoken rank file, which ", spec, " is not");
  };
  if (spec == "bytes") {
    no_pattern();
    return make_bytes_tokenizer();
  }
  std::error_code none;
  if (!fs::exists(spec, none))
    fail("no tokenizer ", spec,
         ": it is neither \"bytes\" nor a file that is there (a tokenizer.json, a tiktoken rank "
         "file, GPT-2's vocab.bpe)");
  if (fs::is_directory(spec, none)) {
    no_pattern();
    // A dataset's or a checkpoint's.
    if (const std::string path = one_of(spec, {"tokenizer.json"}); !path.empty()) return load_json(path);
    if (!one_of(spec, {"vocab.bpe", "merges.txt"}).empty()) return load_gpt2(spec, spec);
    fail(spec, ": no tokenizer.json in this directory, and no vocab.bpe");
  }
  if (is_gguf(spec)) {
    no_pattern();
    const GgufModel model(spec);
    std::unique_ptr<Tokenizer> tokenizer = tokenizer_of_gguf(model.content());
    if (!tokenizer) fail(spec, ": this GGUF file has no tokenizer");
    return tokenizer;
  }
  const fs::path path(spec);
  const std::string name = path.filename().string();
  if (name == "vocab.bpe" || name == "merges.txt" || name == "encoder.json" || name == "vocab.json") {
    no_pattern();
    return load_gpt2(spec, path.parent_path());
  }
  if (name.ends_with(".json")) {
    no_pattern();
    return load_json(spec);
  }
  if (name.ends_with(".bin")) {
    no_pattern();
    return make_tokenizer(read_llama2c_tokenizer(spec));
  }
  return make_tokenizer(read_tiktoken(spec, pattern));
}

}  // namespace llm
