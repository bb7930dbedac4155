#include "llm/serve/chat_template.h"

#include <ctime>
#include <filesystem>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/model/gguf_model.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

// The texts of bos_token and so on, which are strings or objects with a "content".
Json special_tokens_of(const Json& config) {
  Json tokens = Json::object();
  for (const char* name :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    const Json& token = config[name];
    const Json& text = token.is_object() ? token["content"] : token;
    if (text.is_string()) tokens[name] = text;
  }
  return tokens;
}

// tokenizer_config.json's template: a text, or a list of {"name", "template"}.
std::string template_of(const Json& config, const std::string& where) {
  const Json& found = config["chat_template"];
  if (found.is_null()) return "";
  if (found.is_string()) return found.string();
  std::string names;
  for (const Json& one : found) {
    const bool named = one["name"].is_string() && one["template"].is_string();
    if (named && one["name"].string() == "default") return one["template"].string();
    if (named) names += (names.empty() ? "" : ", ") + one["name"].string();
  }
  if (names.empty()) fail(where, ": \"chat_template\" is neither a text nor a list of named ones");
  fail(where, ": of its chat templates (", names, ") none is named \"default\"; --chat-template FILE takes one");
}

std::string local_time(const std::string& format) {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::localtime_r(&now, &parts);
  char text[512];
  return {text, std::strftime(text, sizeof text, format.c_str(), &parts)};
}

}  // namespace

ChatTemplate::ChatTemplate(std::string source, const std::string& where, Json special_tokens)
    : where_(where), source_(std::move(source)), special_tokens_(std::move(special_tokens)) {
  constexpr size_t kLargest = 1 << 20;
  if (source_.size() > kLargest) fail(where, ": a chat template of ", source_.size(), " bytes, more than ", kLargest);
  if (utf8_prefix(source_) != source_.size()) fail(where, ": the chat template is not UTF-8");
  try {
    template_ = std::make_unique<jinja::Template>(source_);
  } catch (const Error& e) {
    fail(where, ": chat template: ", e.what());
  }
}

std::unique_ptr<ChatTemplate> ChatTemplate::of_model(const std::string& directory, const std::string& file) {
  if (const std::string gguf = gguf_of_model(directory); !gguf.empty() && file.empty()) {
    const GgufModel model(gguf);
    const GgufContent& g = model.content();
    if (!g.has("tokenizer.chat_template")) return nullptr;
    const std::vector<std::string> tokens = g.texts("tokenizer.ggml.tokens");
    Json special = Json::object();
    for (const char* name : {"bos_token", "eos_token"})
      if (const uint64_t id = g.whole(concat("tokenizer.ggml.", name, "_id"), tokens.size()); id < tokens.size())
        special[name] = tokens[id];
    return std::make_unique<ChatTemplate>(g.text("tokenizer.chat_template"), gguf, special);
  }
  const std::string config_path = directory + "/tokenizer_config.json", own_file = directory + "/chat_template.jinja";
  const Json config = fs::exists(config_path) ? read_json(config_path) : Json::object();
  if (!config.is_object()) fail(config_path, ": not a JSON object");
  const std::string path = !file.empty() ? file : fs::exists(own_file) ? own_file : "";
  const std::string source = path.empty() ? template_of(config, config_path) : read_file(path);
  if (source.empty() && path.empty()) return nullptr;
  return std::make_unique<ChatTemplate>(source, path.empty() ? config_path : path, special_tokens_of(config));
}

std::string ChatTemplate::render(const Conversation& conversation, const jinja::Limits& limits) const {
  using jinja::Value;
  std::vector<std::pair<std::string, Value>> variables;
  const auto add_members = [&](const Json& object) {
    for (const auto& [name, value] : object.items()) variables.emplace_back(name, Value(value));
  };
  try {
    add_members(special_tokens_);
    add_members(conversation.variables);
    variables.emplace_back("messages", Value(conversation.messages));
    variables.emplace_back("tools", Value(conversation.tools));
    variables.emplace_back("documents", Value(Value::None()));
    variables.emplace_back("add_generation_prompt", Value(conversation.add_generation_prompt));
    return template_->render(std::move(variables), local_time, limits);
  } catch (const jinja::Raised& e) {
    throw UsageError(concat("the chat template refuses these messages: ", e.what()));
  } catch (const Error& e) {
    fail(where_, ": chat template: ", e.what());
  }
}

}  // namespace llm
