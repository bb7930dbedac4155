// The size of a core's second-level cache, by which the products on the CPU choose how wide their blocks are.
#pragma once
#include <cstdint>

namespace llm {

// In bytes: what the environment variable TRAIN_GPT_L2_BYTES says, otherwise what the system says, otherwise 512 KiB.
// Read once. Throws Error if the variable's value is not a number of at least 64 KiB.
int64_t second_level_cache_bytes();

}  // namespace llm
