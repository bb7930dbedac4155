// A safetensors file: every byte of every tensor that is accepted can be read.
#include "llm/model/safetensors.h"

#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run([&] {
    const auto content = llm::parse_safetensors({reinterpret_cast<const std::byte*>(data), size}, "fuzz");
    for (auto& [name, entry] : content.tensors) {
      if (!llm::is_floating(entry)) continue;
      std::vector<float> values(static_cast<size_t>(entry.elements()));
      llm::read_floats(entry, 0, values);
    }
  });
}
