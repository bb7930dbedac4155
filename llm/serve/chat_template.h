// How a model wants to see a conversation: the chat template that comes with it, as transformers' apply_chat_template()
// reads and fills it.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "llm/base/json.h"
#include "llm/serve/jinja.h"

namespace llm {

class ChatTemplate {
 public:
  // `where` names the template in messages. `special_tokens`: an object with names as bos_token and their texts.
  ChatTemplate(std::string source, const std::string& where, Json special_tokens);

  // Of the model in `directory`: `file`, or where that is empty chat_template.jinja, or tokenizer_config.json's
  // "chat_template" (of several, the one named "default"); its special tokens are those of tokenizer_config.json. Null
  // where there is no template. Throws Error for files that are wrong.
  static std::unique_ptr<ChatTemplate> of_model(const std::string& directory, const std::string& file = "");

  struct Conversation {
    Json messages = Json::array();
    Json tools;                         // null: none
    bool add_generation_prompt = true;  // the beginning of the answer comes behind the messages
    Json variables = Json::object();    // more that the template may use, as "enable_thinking"
  };
  // The text, with special tokens by their names. Throws UsageError for what the template itself refuses, Error for
  // what it does wrong.
  std::string render(const Conversation& conversation, const jinja::Limits& limits = {}) const;

  const std::string& where() const { return where_; }
  const std::string& source() const { return source_; }

 private:
  std::string where_, source_;
  std::unique_ptr<jinja::Template> template_;
  Json special_tokens_;
};

}  // namespace llm
