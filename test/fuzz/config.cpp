// A config.json: a config that is accepted is written, and read back as the same.
#include "llm/model/huggingface.h"
#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run([&] {
    const auto config = llm::parse_config(std::string(reinterpret_cast<const char*>(data), size), "config.json");
    if (config.layers > 1000) return;
    for (const std::string& type : {llm::model_type_of(config), llm::exported_type_of(config)})
      if (llm::parse_config(llm::config_json(config, -1, type), "config.json") != config) std::abort();
  });
}
