// What the pieces of one text have become: most words come again and again.
#pragma once
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace llm {

class PieceCache {
 public:
  explicit PieceCache(size_t text_bytes) {
    if (text_bytes >= 4096) slots_.resize(text_bytes >= size_t{1} << 18 ? 1 << 16 : 1 << 12);
  }

  // Appends the ids of `piece` if it is known. If not, remember() may be called with the same piece next.
  bool find(std::string_view piece, std::vector<int32_t>& ids) {
    slot_ = nullptr;
    if (slots_.empty() || piece.size() > 64) return false;
    const uint32_t hash = hash_of(piece);
    for (uint64_t at = hash & (slots_.size() - 1), tries = 0; tries < 8; ++tries, at = (at + 1) & (slots_.size() - 1)) {
      Slot& slot = slots_[at];
      if (slot.count == 0) {
        slot_ = &slot;
        slot.hash = hash;
        return false;
      }
      if (slot.hash == hash && slot.piece == piece) {
        const auto first = ids_.begin() + static_cast<std::ptrdiff_t>(slot.first);
        ids.insert(ids.end(), first, first + slot.count);
        return true;
      }
    }
    return false;
  }
  // `piece` must stay where it is as long as the cache.
  void remember(std::string_view piece, const int32_t* ids, size_t count) {
    if (!slot_ || count == 0) return;
    *slot_ = {piece, ids_.size(), static_cast<uint32_t>(count), slot_->hash};
    ids_.insert(ids_.end(), ids, ids + count);
  }

 private:
  struct Slot {
    std::string_view piece;
    size_t first = 0;
    uint32_t count = 0, hash = 0;
  };
  // Of the length, the first eight bytes and the last eight: long pieces are rare.
  static uint32_t hash_of(std::string_view piece) {
    const size_t n = piece.size();
    uint64_t first = 0, last = 0;
    if (n >= 8) {
      std::memcpy(&first, piece.data(), 8);
      std::memcpy(&last, piece.data() + n - 8, 8);
    } else if (n >= 4) {
      std::memcpy(&first, piece.data(), 4);
      std::memcpy(&last, piece.data() + n - 4, 4);
    } else if (n > 0) {
      first = static_cast<unsigned char>(piece[0]);
      last = static_cast<uint64_t>(static_cast<unsigned char>(piece[n / 2])) << 8 |
             static_cast<unsigned char>(piece[n - 1]);
    }
    const uint64_t mixed = ((first ^ n) * 0x9E3779B97F4A7C15u ^ last) * 0xC2B2AE3D27D4EB4Fu;
    return static_cast<uint32_t>(mixed >> 32);
  }
  std::vector<Slot> slots_;
  std::vector<int32_t> ids_;
  Slot* slot_ = nullptr;
};

}  // namespace llm
