// GPT-2's merges (vocab.bpe), with a small vocabulary beside them.
#include <fcntl.h>

#include "llm/text/rank_files.h"
#include "test/fuzz/fuzz.h"

namespace {

std::string vocabulary() {
  static const std::string path = [] {
    const int file = ::memfd_create("vocabulary", 0);
    const std::string text = R"({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġa": 4, "aba": 5, "<|endoftext|>": 6})";
    if (::write(file, text.data(), text.size()) < 0) std::abort();
    return "/proc/self/fd/" + std::to_string(file);
  }();
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run([&] {
    const auto tokenizer = llm::make_tokenizer(llm::read_gpt2_files(fuzz::file_of(data, size), vocabulary()));
    std::vector<int32_t> ids;
    tokenizer->encode("abab a<|endoftext|>", true, ids);
  });
}
