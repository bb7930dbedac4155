// How products read packed panels (llm/base/packed_panels.h): in blocks of 32 k, as vectors of floats. Each reader has
//   kBlockBytes: of a block of 32 k
//   kConstants: vectors of constants that a block has in each half
//   kPart: so many successive k are made with the same constants, and best together
//   Block(at): the block at that address. part<J>(half) is its J-th part in one half of the columns, whose vector<I>() is
//     the weights of its k number I
// A scale times a number is exact, so the floats have the same bits however they are made.
#pragma once
#include <cstddef>

#include "llm/base/bf16.h"
#include "llm/base/fp16.h"
#include "llm/base/narrow_vectors.h"
#include "llm/base/packed_panels.h"
#include "llm/device/microkernel_cpu.h"

namespace llm::panels {

using simd::IntVec;
using simd::kLanes;
using simd::Vec;
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));

inline Words load_words(const std::byte* at) {
  Words w;
  std::memcpy(&w, at, sizeof w);
  return w;
}

struct Fp32 {
  static constexpr int64_t kBlockBytes = kBlockValues * kPanelColumns * 4;
  static constexpr int kConstants = 0, kPart = 1;
  struct Part {
    const float* at;
    template <int>
    Vec vector() const {
      return simd::load(at);
    }
  };
  struct Block {
    const std::byte* at;
    explicit Block(const std::byte* block) : at(block) {}
    template <int J>
    Part part(int half) const {
      return {reinterpret_cast<const float*>(at) + J * kPanelColumns + half * kLanes};
    }
  };
};

struct Bf16 {
  static constexpr int64_t kBlockBytes = kBlockValues * kPanelColumns * 2;
  static constexpr int kConstants = 0, kPart = 1;
  struct Part {
    const std::byte* at;
    int half;
    template <int>
    Vec vector() const {
      const Words both = load_words(at);
      return (Vec)(half ? both & 0xffff0000u : both << 16);
    }
  };
  struct Block {
    const std::byte* at;
    explicit Block(const std::byte* block) : at(block) {}
    template <int J>
    Part part(int half) const {
      return {at + J * kPanelColumns * 2, half};
    }
  };
};

// kLanes halves as floats.
inline Vec widen_halves(const std::byte* at) {
#if defined(__AVX512F__)
  __m256i halves;
  std::memcpy(&halves, at, sizeof halves);
  return (Vec)_mm512_maskz_cvtph_ps(simd::kAll, halves);
#elif defined(__AVX2__) && defined(__F16C__)
  __m128i halves;
  std::memcpy(&halves, at, sizeof halves);
  return (Vec)_mm256_cvtph_ps(halves);
#else
  float wide[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    uint16_t half;
    std::memcpy(&half, at + 2 * i, 2);
    wide[i] = float_of_half(half);
  }
  return simd::load(wide);
#endif
}

struct Int8 {
  static constexpr int64_t kBlockBytes = quantized_block_bytes(8);
  static constexpr int kConstants = 1, kPart = 1;
  struct Part {
    const std::byte* at;
    Vec scale;
    template <int>
    Vec vector() const {
      return simd::load(reinterpret_cast<const int8_t*>(at)) * scale;
    }
  };
  struct Block {
    const std::byte* at;
    Vec scale[2];
    explicit Block(const std::byte* block)
        : at(block + 2 * kPanelColumns),
          scale{simd::rounded(widen_halves(block)), simd::rounded(widen_halves(block + 2 * kLanes))} {}
    template <int J>
    Part part(int half) const {
      return {at + J * kPanelColumns + half * kLanes, scale[half]};
    }
  };
};

// With AVX-512 a table of the 16 values of a column and block, which the processor looks up by the lowest bits of a word.
// Else a number stays at its place in the word: 2^(4 J) times the number and 8, times scale / 2^(4 J), minus 8 scale, all of
// it exact. (The last number is shifted down: the processor converts signed words.)
struct Int4 {
  static constexpr int64_t kBlockBytes = quantized_block_bytes(4);
  static constexpr int kConstants = kLanes == 16 ? 1 : 2, kPart = 4;
  static constexpr bool kLooksUp = kLanes == 16;

  template <int J>
  struct Part {
    const std::byte* words;
    Vec scale, offset;  // of a table: its values

    template <int I>
    Vec vector() const {
      const Words w = load_words(words + I * 2 * kLanes * 4);
#if defined(__AVX512F__)
      return (Vec)_mm512_maskz_permutexvar_ps(simd::kAll, (__m512i)(w >> (4 * J)), (__m512)scale);
#else
      const Words number = J == 7 ? w >> 28 : w & (15u << (4 * J));
      return microkernel::multiply_add(__builtin_convertvector((IntVec)number, Vec), scale, offset);
#endif
    }
  };
  struct Block {
    const std::byte* words;
    Vec scale[2], offset[2];
    explicit Block(const std::byte* block) : words(block + 2 * kPanelColumns) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        scale[half] = widen_halves(block + 2 * half * kLanes);
        offset[half] = scale[half] * -8.0f;
#if defined(__AVX512F__)
        scale[half] *= Vec{-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
#endif
      }
    }
    template <int J>
    Part<J> part(int half) const {
      const std::byte* const at = words + half * kLanes * 4;
      if constexpr (kLooksUp) return {at, scale[half], Vec{}};
      // As values of their own, which the compiler does not make again for each vector.
      const float unit = J == 7 ? 1.0f : 1.0f / static_cast<float>(1 << (4 * J % 28));
      return {at, simd::rounded(scale[half] * unit), simd::rounded(offset[half])};
    }
  };
};

// Calls work(K) with K = 0, 1, ... below Count as constants.
template <int Count, class Work>
inline __attribute__((always_inline)) void for_constants(Work&& work) {
  [&]<int... K>(std::integer_sequence<int, K...>) __attribute__((always_inline)) {
    (work(std::integral_constant<int, K>{}), ...);
  }
  (std::make_integer_sequence<int, Count>{});
}

// Calls work with the reader of a type.
template <class Work>
void with_reader(DType dtype, Work&& work) {
  switch (dtype) {
    case DType::bf16: return work(Bf16{});
    case DType::int8: return work(Int8{});
    case DType::int4: return work(Int4{});
    default: return work(Fp32{});
  }
}

}  // namespace llm::panels
