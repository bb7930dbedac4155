// The device's memory: allocations with gaps between them, and behind all of them the shared memory of a block.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "llm/base/error.h"
#include "test/simt/bed.h"
#include "test/simt/region.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace llm::simt::bed {

uintptr_t region_start = uintptr_t{1} << 63;

void* reserve(size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return memory;
}

namespace {

constexpr size_t kAlign = 256;

struct Memory {
  std::byte* region = static_cast<std::byte*>(reserve(kRegion));
  size_t* end_of =
      static_cast<size_t*>(reserve(kDeviceBytes / kAlign * sizeof(size_t)));  // one for each 256 bytes; 0: free
  std::map<size_t, size_t> allocated;                                         // offset -> bytes
  size_t next = 0;  // where to look for room first, so that it is long until an address is used again
  size_t shared_bytes = 0;

  Memory() {
    ASAN_POISON_MEMORY_REGION(region, kRegion);
    region_start = reinterpret_cast<uintptr_t>(region);
  }
};
Memory& memory() {
  static Memory& all = *new Memory;  // never destroyed: destructors at the end of the process may still use it
  return all;
}

size_t padded(size_t bytes) { return (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign; }

// The offset of the first room at or behind `from`; kDeviceBytes when there is none.
size_t find_room(size_t from, size_t bytes) {
  const Memory& m = memory();
  auto after = m.allocated.lower_bound(from);
  if (after != m.allocated.begin()) {
    const auto before = std::prev(after);
    from = std::max(from, before->first + padded(before->second) + kGap);
  }
  for (; after != m.allocated.end() && from + bytes + kGap > after->first; ++after)
    from = after->first + padded(after->second) + kGap;
  return from + bytes + kGap <= kDeviceBytes ? from : kDeviceBytes;
}

}  // namespace

void* allocate(size_t bytes) {
  Memory& m = memory();
  const size_t room = padded(bytes);
  if (room > kDeviceBytes) return nullptr;
  size_t at = find_room(m.next, room);
  if (at == kDeviceBytes) at = find_room(0, room);
  if (at == kDeviceBytes) return nullptr;
  m.allocated[at] = bytes;
  m.next = at + room + kGap;
  for (size_t i = 0; i < room; i += kAlign) m.end_of[(at + i) / kAlign] = at + bytes;
  ASAN_UNPOISON_MEMORY_REGION(m.region + at, bytes);
  std::memset(m.region + at, 0xff, bytes);
  return m.region + at;
}

bool release(void* address) {
  Memory& m = memory();
  const auto found = m.allocated.find(static_cast<size_t>(static_cast<std::byte*>(address) - m.region));
  if (found == m.allocated.end()) return false;
  const size_t room = padded(found->second);
  for (size_t i = 0; i < room; i += kAlign) m.end_of[(found->first + i) / kAlign] = 0;
  ASAN_POISON_MEMORY_REGION(m.region + found->first, room);
  m.allocated.erase(found);
  return true;
}

bool is_device_memory(const void* address, size_t bytes) {
  const size_t at = static_cast<size_t>(static_cast<const std::byte*>(address) - memory().region);
  return at < kDeviceBytes && at + bytes <= memory().end_of[at / kAlign];
}

size_t free_bytes() {
  size_t used = 0;
  for (auto& [at, bytes] : memory().allocated) used += padded(bytes);
  return kDeviceBytes - used;
}

std::byte* shared_base() { return memory().region + kShared; }

void set_shared_bytes(size_t bytes) {
  memory().shared_bytes = bytes;
  ASAN_UNPOISON_MEMORY_REGION(shared_base(), bytes + 256);
}

size_t end_of_allocation(size_t at) {
  const Memory& m = memory();
  return at >= kShared ? kShared + m.shared_bytes : at < kDeviceBytes ? m.end_of[at / kAlign] : 0;
}

std::string text_of_place(size_t at) {
  if (at >= kShared) return concat("shared memory at ", at - kShared);
  const auto after = memory().allocated.upper_bound(at);
  if (after == memory().allocated.begin()) return "memory that is not allocated";
  const auto& [start, bytes] = *std::prev(after);
  return concat("global memory at ", at - start, " of ", bytes);
}

}  // namespace llm::simt::bed
