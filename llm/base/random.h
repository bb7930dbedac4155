// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
// A value is a pure function of (seed, stream, index), so nothing depends on the order of calls, threads or ranks.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

#include "llm/base/bf16.h"

namespace llm {

constexpr std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// The hash FNV-1a (Fowler, Noll, Vo), the same on every machine: kHashStart, and a step for each value.
inline constexpr uint64_t kHashStart = 0xcbf29ce484222325;
constexpr uint64_t hash_step(uint64_t hash, uint32_t value) { return (hash ^ value) * 0x100000001b3; }

// The stream of a purpose, such as "init/h.0.attn" or "sample": the hash of its name.
constexpr uint64_t stream_of(std::string_view name) {
  uint64_t hash = kHashStart;
  for (char c : name) hash = hash_step(hash, static_cast<unsigned char>(c));
  return hash;
}

// The random bits by which an optimizer step rounds elements 8 `group` to 8 `group` + 7 of a tensor to bf16: 16 bits
// each, element i's in word i / 2, the lower half first. `stream` is stream_of(the tensor's name).
constexpr std::array<uint32_t, 4> rounding_bits(uint64_t seed, int64_t step, uint64_t stream, int64_t group) {
  return philox({static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32) ^ static_cast<uint32_t>(step >> 32),
                 static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                {static_cast<uint32_t>(seed) ^ static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(step)});
}
constexpr uint32_t rounding_bits_of(const std::array<uint32_t, 4>& bits, int element) {
  return bits[static_cast<size_t>(element) / 2] >> (element % 2 ? 16 : 0) & 0xffff;
}

// Rounds elements [begin, end) to bf16 by rounding_bits(); element 0 is number `first` of its tensor. `begin` and
// `first` are multiples of 8.
inline void round_stochastically(const float* from, bf16* to, int64_t begin, int64_t end, uint64_t seed, int64_t step,
                                 uint64_t stream, int64_t first = 0) {
  for (int64_t i = begin; i < end; i += 8) {
    const auto bits = rounding_bits(seed, step, stream, (first + i) / 8);
    for (int64_t e = i; e < std::min(i + 8, end); ++e)
      to[e] = stochastic_bf16(from[e], rounding_bits_of(bits, static_cast<int>(e - i)));
  }
}

// The random numbers of one stream; `index` numbers them.
class Random {
 public:
  Random(uint64_t seed, uint64_t stream)
      : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}, stream_(stream) {}

  std::array<uint32_t, 4> block(uint64_t index) const {
    return philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(stream_),
                   static_cast<uint32_t>(stream_ >> 32)},
                  key_);
  }
  uint64_t bits(uint64_t index) const {
    const auto b = block(index);
    return (uint64_t{b[1]} << 32) | b[0];
  }
  // Uniform in [0, 1), of 53 random bits.
  double uniform(uint64_t index) const { return static_cast<double>(bits(index) >> 11) * 0x1p-53; }
  // Standard normal, by Box and Muller's method; each index has its own two uniforms.
  double normal(uint64_t index) const {
    const auto b = block(index);
    const double u = (static_cast<double>((uint64_t{b[1]} << 32 | b[0]) >> 11) + 1.0) * 0x1p-53;  // (0, 1]
    const double v = static_cast<double>((uint64_t{b[3]} << 32 | b[2]) >> 11) * 0x1p-53;
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
  }

 private:
  std::array<uint32_t, 2> key_;
  uint64_t stream_;
};

}  // namespace llm
