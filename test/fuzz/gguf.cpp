// A GGUF file: every byte of every tensor that is accepted can be read, and so can the config and the tokenizer.
#include "llm/model/gguf_model.h"

#include "llm/text/gguf_tokenizer.h"
#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run([&] {
    const llm::GgufModel model(fuzz::file_of(data, size));
    for (const auto& [name, tensor] : model.content().tensors) {
      std::vector<float> values(static_cast<size_t>(tensor.elements()));
      llm::read_floats(tensor, values);
    }
    model.end_tokens();
    fuzz::run([&] { llm::tokenizer_of_gguf(model.content()); });
    const std::vector<llm::Parameter> table = llm::parameter_table(model.config());
    std::vector<float> room;
    model.load(table, [&](size_t i) {
      room.resize(static_cast<size_t>(table[i].shape.elements()));
      return room.data();
    });
  });
}
