// A tokenizer.json and what becomes of text with it.
#include "llm/text/tokenizer_json.h"
#include "llm/base/json.h"

#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run([&] {
    const llm::Json document = llm::json_or_null({reinterpret_cast<const char*>(data), size});
    if (document.is_null()) return;
    auto parts = llm::parse_tokenizer_json(document, "tokenizer.json");
    parts.json.assign(reinterpret_cast<const char*>(data), size);
    const auto tokenizer = llm::make_tokenizer(std::move(parts));
    const std::string text = "Hello  world's <s> 1234\n\n\xE2\x96\x81\xC3\xA9 \xFF<|endoftext|> e\xCC\x81";
    std::vector<int32_t> ids;
    tokenizer->encode(text, true, ids);
    tokenizer->encode(text, false, ids);
    tokenizer->decode(ids);
    for (size_t from = 1, cut; (cut = tokenizer->safe_cut(text, from)) < text.size(); from = cut + 1)
      tokenizer->encode_rest(text.substr(cut), true, ids);
  });
}
