// Texts as people have them: packed, or JSON lines.
#include "llm/text/text_input.h"
#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string file = fuzz::file_of(data, size);
  fuzz::run([&] { llm::TextInput(file, "/tmp"); });
  return fuzz::run([&] {
    const llm::TextInput lines(file, "/tmp", "text");
    for (size_t at = 0; at < lines.text().size(); ++at)
      if (lines.document_begin(at) > at || lines.document_end(at) <= at) std::abort();
  });
}
