// The body of a request to the server, as each of its addresses reads it.
#include "llm/serve/openai_request.h"
#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const int64_t vocabulary = 1000;
  fuzz::run([&] {
    for (const auto& prompt : llm::parse_completion_request(body, vocabulary).prompts)
      for (const int32_t id : prompt.ids)
        if (id < 0 || id >= vocabulary) std::abort();
  });
  fuzz::run([&] { llm::parse_chat_request(body, vocabulary); });
  fuzz::run([&] { llm::parse_tokenize_request(body); });
  return fuzz::run([&] { llm::parse_detokenize_request(body, vocabulary); });
}
