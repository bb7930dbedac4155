#include "llm/device/cache_size.h"

#include <unistd.h>

#include <cstdlib>

#include "llm/base/error.h"

namespace llm {
namespace {

constexpr int64_t kUnknown = int64_t{512} << 10, kLeast = int64_t{64} << 10;

int64_t read_size() {
  if (const char* text = std::getenv("TRAIN_GPT_L2_BYTES")) {
    char* end = nullptr;
    const int64_t bytes = std::strtoll(text, &end, 10);
    if (*end != '\0' || bytes < kLeast)
      fail("TRAIN_GPT_L2_BYTES=", text, ": the second-level cache's size in bytes, at least ", kLeast);
    return bytes;
  }
#ifdef _SC_LEVEL2_CACHE_SIZE
  if (const long bytes = ::sysconf(_SC_LEVEL2_CACHE_SIZE); bytes >= kLeast) return bytes;
#endif
  return kUnknown;
}

}  // namespace

int64_t second_level_cache_bytes() {
  static const int64_t bytes = read_size();
  return bytes;
}

}  // namespace llm
