// What gzip and zstd pack, unpacked.
#pragma once
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace llm {

enum class Packing { none, gzip, zstd };
Packing packing_of(std::span<const std::byte> file);  // by its first bytes, whatever it is called

// Hands the content of a packed file to `take` in pieces, as it comes. Several packed parts, one behind the other, are one
// file, as for gzip and zstd themselves. Throws Error with `path` for a file that is cut off or damaged.
void unpack(std::span<const std::byte> file, const std::string& path,
            const std::function<void(std::string_view)>& take);

}  // namespace llm
