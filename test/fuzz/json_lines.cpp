// Multiple-choice tasks.
#include "llm/text/multiple_choice.h"
#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run([&] { llm::read_choices(fuzz::file_of(data, size)); });
}
