#include "llm/text/loader.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "llm/base/error.h"
#include "llm/base/random.h"

namespace llm {
namespace {

constexpr int64_t kMixed = 10'000;  // samples that hold each part of a mixture by its share

__extension__ typedef unsigned __int128 Product;

// The mixing of a Philox round: both halves of a product with Philox2x64's multiplier, here folded into one word. A whole
// Philox block a round would be several times slower, for a quality that an order of samples has no use for.
inline uint32_t scramble(uint32_t half, uint64_t key) {
  const Product product = static_cast<Product>(half ^ key) * 0xD2B74407B1CE6E93;
  const uint64_t folded = static_cast<uint64_t>(product >> 64) ^ static_cast<uint64_t>(product);
  return static_cast<uint32_t>(folded >> 32) ^ static_cast<uint32_t>(folded);
}

}  // namespace

int64_t permute(int64_t index, int64_t n, uint64_t seed, uint64_t epoch) {
  if (index < 0 || index >= n) fail("cannot permute ", index, ": it is outside [0, ", n, ")");
  // The network works on `bits` bits, the fewest that hold n - 1 (but two: a half needs a bit), split into a high and a
  // low half that take turns in masking each other. A result outside [0, n) is fed through again until it falls inside;
  // as 2^bits < 2n but for the tiniest n, twice is the mean at worst.
  const int bits = std::max(2, static_cast<int>(std::bit_width(static_cast<uint64_t>(n - 1))));
  const int low_bits = bits / 2;
  const uint32_t low_mask = static_cast<uint32_t>((uint64_t{1} << low_bits) - 1);
  const uint32_t high_mask = static_cast<uint32_t>((uint64_t{1} << (bits - low_bits)) - 1);
  // The keys of the rounds go up by a step, as Philox's do; both are random, from Philox itself.
  const auto random = Random(seed, stream_of("loader/permute")).block(epoch);
  const uint64_t first_key = (uint64_t{random[1]} << 32) | random[0];
  const uint64_t key_step = (uint64_t{random[3]} << 32) | random[2] | 1;
  uint64_t value = static_cast<uint64_t>(index);
  do {
    uint32_t low = static_cast<uint32_t>(value) & low_mask;
    uint32_t high = static_cast<uint32_t>(value >> low_bits);
    uint64_t key = first_key;
    for (int round = 0; round < 4; ++round) {
      high ^= scramble(low, key) & high_mask;
      low ^= scramble(high, key += key_step) & low_mask;
      key += key_step;
    }
    value = (uint64_t{high} << low_bits) | low;
  } while (value >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(value);
}

Loader::Loader(const TokenStream& stream, int64_t context, uint64_t seed, int64_t vocabulary,
               const std::vector<MixedPart>& mixture)
    : stream_(stream), context_(context), vocabulary_(vocabulary), seed_(seed) {
  if (context < 1) fail("the context must be 1 token or more, not ", context);
  const auto add = [&](const std::string& name, int64_t first, int64_t tokens, int64_t share) {
    // A window and its targets take context + 1 tokens; the last target lies right after the last window.
    if (tokens < context + 1)
      fail(name, " is too short: ", tokens, " tokens, a context of ", context, " needs ", context + 1,
           " or more (a smaller context or more text would do)");
    // As many windows as fit from the largest offset, context - 1, on: so W is the same in every epoch. A stream shorter
    // than two windows has room for one, from fewer offsets.
    const int64_t windows = std::max<int64_t>(1, (tokens - 1 - (context - 1)) / context);
    parts_.push_back({first, windows, std::min(context, tokens - windows * context), share});
  };
  if (mixture.empty()) add("the data", 0, stream.size(), kMixed);
  double sum = 0, before = 0;
  for (const MixedPart& part : mixture) sum += part.weight;
  int64_t first = 0, shared = 0;
  for (const MixedPart& part : mixture) {
    // Rounded so that the shares make up all.
    const int64_t until = std::llround((before += part.weight) / sum * kMixed);
    if (until == shared)
      fail("the weight of ", part.name, ", ", part.weight, " of ", sum, ", is less than a sample in ", kMixed);
    add(part.name, first, part.tokens, until - shared);
    first += part.tokens, shared = until;
  }
}

int64_t Loader::position_in(const Part& part, int64_t sample) const {
  const uint64_t epoch = static_cast<uint64_t>(sample / part.windows);
  const uint64_t random = Random(seed_, stream_of("loader/offset")).bits(epoch);
  const int64_t offset = static_cast<int64_t>(random % static_cast<uint64_t>(part.offsets));
  return part.first + offset + context_ * permute(sample % part.windows, part.windows, seed_, epoch);
}

int64_t Loader::position(int64_t sample) const {
  if (sample < 0) fail("no sample ", sample);
  if (parts_.size() == 1) return position_in(parts_[0], sample);
  const int64_t round = sample / kMixed;
  // (~seed: an order other than that of a part of 10,000 windows.)
  int64_t place = permute(sample % kMixed, kMixed, ~seed_, static_cast<uint64_t>(round));
  size_t part = 0;
  while (place >= parts_[part].share) place -= parts_[part++].share;
  return position_in(parts_[part], round * parts_[part].share + place);
}

void Loader::read(int64_t first, int64_t count, int32_t* tokens, int32_t* targets) const {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = position(first + i);
    stream_.read(begin, context_, tokens + i * context_);
    stream_.read(begin + 1, context_, targets + i * context_);
    const int32_t largest =
        std::max(tokens[i * context_], *std::max_element(targets + i * context_, targets + (i + 1) * context_));
    if (largest >= vocabulary_)
      fail("the data holds token ", largest, ", behind its token ", begin, ", but the model's vocabulary is ",
           vocabulary_);
  }
}

}  // namespace llm
