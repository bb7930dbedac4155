#include "llm/text/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "llm/base/error.h"
#include "llm/text/bytes.h"
#include "llm/text/json_file.h"

namespace llm {
namespace {

const nlohmann::json& require(const nlohmann::json& object, const char* key, bool right_type(const nlohmann::json&),
                              const std::string& path) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end() || !right_type(*found))
    fail(path, ": not a tokenizer.json, it has no proper \"", key, "\"");
  return *found;
}

}  // namespace

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (const int32_t id : ids) text += bytes_of(id);
  return text;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& spec) {
  if (spec == "bytes") return make_bytes_tokenizer();
  std::error_code none;
  if (!std::filesystem::exists(spec, none))
    fail("no tokenizer ", spec, ": it is neither \"bytes\" nor a tokenizer.json that is there");
  // A directory that holds one: a dataset's or a checkpoint's.
  const std::string path =
      std::filesystem::is_directory(spec, none) ? (std::filesystem::path(spec) / "tokenizer.json").string() : spec;
  const nlohmann::json document = read_json(path);
  if (is_bytes_tokenizer(document)) return make_bytes_tokenizer();

  const auto is_object = [](const nlohmann::json& value) { return value.is_object(); };
  const auto is_array = [](const nlohmann::json& value) { return value.is_array(); };
  const auto is_string = [](const nlohmann::json& value) { return value.is_string(); };
  const nlohmann::json& model = require(document, "model", is_object, path);
  const std::string& type = require(model, "type", is_string, path).get_ref<const std::string&>();
  if (type != "BPE") fail(path, ": a tokenizer of type ", type, " is not supported, only the bytes tokenizer is");
  const nlohmann::json& vocabulary = require(model, "vocab", is_object, path);
  const nlohmann::json& merges = require(model, "merges", is_array, path);
  fail(path, ": a BPE tokenizer (", vocabulary.size(), " tokens, ", merges.size(),
       " merges) is not supported, only the bytes tokenizer is: --tokenizer bytes");
}

}  // namespace llm
