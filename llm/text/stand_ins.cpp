#include "llm/text/stand_ins.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "llm/text/stand_ins_table.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

// The blocks of 256 characters in which any has a stand-in: nearly no text has one from these.
constexpr auto kBlocks = [] {
  std::array<bool, 0x1100> blocks{};
  for (const StandIn& s : kStandIns)
    for (uint32_t block = s.first >> 8; block <= s.last >> 8; ++block) blocks[block] = true;
  return blocks;
}();

// 0: `code` needs none.
uint32_t stand_in_of(uint32_t code) {
  if (!kBlocks[code >> 8]) return 0;
  const auto* found = std::lower_bound(std::begin(kStandIns), std::end(kStandIns), code,
                                       [](const StandIn& s, uint32_t value) { return s.last < value; });
  return found != std::end(kStandIns) && found->first <= code ? found->older : 0;
}

}  // namespace

std::string_view with_stand_ins(std::string_view text, std::string& room) {
  bool copied = false;
  for (size_t at = 0; (at += ascii_prefix(text.substr(at))) < text.size();) {
    const size_t length = std::max<size_t>(1, utf8_length(text.substr(at)));
    if (const uint32_t older = length < 2 ? 0 : stand_in_of(utf8_code(text.substr(at), length))) {
      if (!copied) room = text;
      copied = true;
      std::string bytes;
      append_utf8(older, bytes);
      room.replace(at, length, bytes);
    }
    at += length;
  }
  return copied ? std::string_view(room) : text;
}

}  // namespace llm
