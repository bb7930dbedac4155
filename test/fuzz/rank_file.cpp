// tiktoken's rank files (a first byte of 0 to 2 chooses the split pattern), and llama2.c's tokenizers (3).
#include "llm/text/rank_files.h"
#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  return fuzz::run([&] {
    const std::string path = fuzz::file_of(data + 1, size - 1);
    const char* patterns[] = {"gpt2", "cl100k_base", "o200k_base"};
    const int kind = data[0] % 4;
    const auto tokenizer =
        llm::make_tokenizer(kind < 3 ? llm::read_tiktoken(path, patterns[kind]) : llm::read_llama2c_tokenizer(path));
    std::vector<int32_t> ids;
    tokenizer->encode("Hello  world's <s> 1234\n\n\xC3\xA9 \xFF<|endoftext|>aaaaaaaaaaaaaaa", true, ids);
    tokenizer->decode(ids);
    tokenizer->json();
  });
}
