// A .bin shard of tokens: all that its header promises can be read.
#include "llm/text/shards.h"
#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run([&] {
    const llm::TokenShard shard(fuzz::file_of(data, size));
    std::vector<int32_t> tokens(static_cast<size_t>(shard.size()));
    shard.read(0, shard.size(), tokens.data());
  });
}
