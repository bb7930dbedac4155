// Sizes of memory as people write them.
#pragma once
#include <cstddef>
#include <string>

namespace llm {

// The number of bytes in "20GiB", "512MiB", "1.5GB", "4096": a decimal number and a unit, in any case. KiB, MiB, GiB
// and TiB are powers of 1024; KB, MB, GB and TB powers of 1000; B or no unit means bytes. Parts of a byte are dropped.
// Throws UsageError for anything else.
size_t parse_bytes(const std::string& text);

// The size in the largest binary unit in which it is at least 1, with three digits or more: "982 B", "1.50 KiB", "12.3
// MiB", "1020 GiB".
std::string format_bytes(size_t bytes);

}  // namespace llm
