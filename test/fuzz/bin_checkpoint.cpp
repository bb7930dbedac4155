// A checkpoint of llm.c or llama2.c.
#include "llm/model/bin_checkpoint.h"

#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run([&] {
    const llm::BinCheckpoint file(fuzz::file_of(data, size));
    std::vector<float> values;
    const auto table = llm::parameter_table(file.config());
    file.load(table, [&](size_t i) {
      values.resize(static_cast<size_t>(table[i].shape.elements()));
      return values.data();
    });
  });
}
