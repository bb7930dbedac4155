// A chat template, and what it makes of a conversation. What it makes is UTF-8, as it is itself.
#include "llm/serve/chat_template.h"
#include "llm/base/json.h"
#include "llm/text/utf8.h"
#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using llm::Json;
  static const Json call = {{"id", "abcdefghi"},
                            {"function", {{"name", "f"}, {"arguments", {{"x", 1}, {"y", "\u00e9"}}}}}};
  static const Json messages =
      Json::array({{{"role", "system"}, {"content", " be kind\n"}},
                   {{"role", "user"}, {"content", "<think>h\u00e9llo</think> \U0001F642"}},
                   {{"role", "assistant"}, {"content", ""}, {"tool_calls", Json::array({call})}},
                   {{"role", "tool"}, {"content", "3.5"}, {"tool_call_id", "abcdefghi"}}});
  return fuzz::run([&] {
    const llm::ChatTemplate chat_template(std::string(reinterpret_cast<const char*>(data), size), "template",
                                          {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
    const std::string text = chat_template.render({.messages = messages,
                                                   .tools = Json::array({call}),
                                                   .add_generation_prompt = true,
                                                   .variables = Json::object()},
                                                  {.steps = 100'000, .bytes = 1 << 20});
    if (llm::utf8_prefix(text) != text.size()) std::abort();
  });
}
