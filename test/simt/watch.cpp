// Checks bounds, alignment and order of the kernels' accesses, where the compiler reports these.
//
// Each four bytes, or each byte where smaller values are accessed, have a note of the last write and the last reads.
// Two accesses by different threads, one of them a write, must be ordered: by a launch, by a barrier of the block, or
// by __syncwarp within a warp. Shuffles order nothing (CUDA C++ Programming Guide, "Warp Shuffle Functions"), and
// nothing orders two blocks of a launch.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <vector>

#include "llm/base/error.h"
#include "test/simt/bed.h"
#include "test/simt/region.h"

namespace llm::simt::bed {
namespace {

constexpr uint16_t kManyWarps = 0xffff;  // the reader: threads of several warps
constexpr uint16_t kByAtomics = 0xfffe;  // the writer: atomic operations of any threads
struct Note {
  uint32_t write_epoch, write_clock;
  uint32_t read_epoch, read_clock, read_lanes;
  uint32_t others_read_epoch;  // the latest read by another block
  uint16_t writer, read_warp;
  bool split;  // each of the four bytes has a note of its own
};
constexpr size_t kGranule = 4;

// Epochs count launches, blocks and their barriers.
uint32_t epoch = 1, block_start = 1, launch_start = 1;
Note *notes = nullptr, *byte_notes = nullptr;  // one for each four bytes; one for each byte
bool watches = false;                          // set by the initialiser that the compiler adds to the kernels' files

// Whether an access of thread `by` at epoch `then` and clock `clock` comes before all that the actor does now. Whatever
// happened up to the epoch `floor` does.
[[gnu::always_inline]] inline bool is_before(uint32_t floor, uint32_t then, uint32_t clock, uint16_t by) {
  if (__builtin_expect(then <= floor, 1)) return true;
  if (then < block_start) return false;
  if (then < epoch || by == actor->thread) return true;
  if (by / 32u == actor->thread / 32 && actor->known[by % 32] >= clock) return true;
  return actor->others && by < 1024 && actor->others[by] >= clock;
}

// For blocks in which barriers order only some threads: where several warps have read since the last barrier of the
// whole block, the clock of each thread's latest read.
std::map<const Note*, std::vector<uint32_t>> read_by_many;

bool others_reads_are_before(const Note& n) {
  if (n.read_warp == kManyWarps) {
    const auto found = read_by_many.find(&n);
    if (found == read_by_many.end()) return false;
    for (size_t t = 0; t < found->second.size(); ++t)
      if (t != actor->thread && found->second[t] > actor->others[t]) return false;
    return true;
  }
  for (uint32_t lanes = n.read_lanes; lanes; lanes &= lanes - 1) {
    const uint32_t thread = n.read_warp * 32u + static_cast<uint32_t>(__builtin_ctz(lanes));
    if (thread != actor->thread && actor->others[thread] < n.read_clock) return false;
  }
  return true;
}

void note_read_by_many(const Note& n) {
  auto& clocks = read_by_many[&n];
  if (n.read_warp != kManyWarps) {
    clocks.assign(1024, 0);
    for (uint32_t lanes = n.read_lanes; lanes; lanes &= lanes - 1)
      clocks[n.read_warp * 32 + __builtin_ctz(lanes)] = n.read_clock;
  }
  if (!clocks.empty()) clocks[actor->thread] = actor->clock;
}

bool reads_are_before(const Note& n, uint32_t floor) {
  if (n.others_read_epoch > floor) return false;
  if (n.read_epoch <= floor) return true;
  if (n.read_epoch < block_start) return false;
  if (n.read_epoch < epoch) return true;
  if (n.read_warp != actor->thread / 32) return actor->others && others_reads_are_before(n);
  const uint32_t self = 1u << actor->thread % 32;
  for (uint32_t lanes = n.read_lanes & ~self; lanes; lanes &= lanes - 1)
    if (actor->known[__builtin_ctz(lanes)] < n.read_clock) return actor->others && others_reads_are_before(n);
  return true;
}

[[gnu::always_inline]] inline void note_read(Note& n) {
  const uint32_t lane = 1u << actor->thread % 32;
  const auto warp = static_cast<uint16_t>(actor->thread / 32);
  if (n.read_epoch != epoch) {
    if (n.read_epoch < block_start) n.others_read_epoch = std::max(n.others_read_epoch, n.read_epoch);
    n.read_lanes = 0;
  } else if (n.read_warp != warp) {
    if (actor->others) note_read_by_many(n);
    n.read_warp = kManyWarps;
    return;
  } else if (n.read_lanes && actor->clock > n.read_clock && reads_are_before(n, launch_start)) {
    n.read_lanes = 0;  // an access that comes after this read comes after those as well
  }
  n.read_clock = n.read_lanes ? std::max(n.read_clock, actor->clock) : actor->clock;
  n.read_lanes |= lane;
  n.read_warp = warp;
  n.read_epoch = epoch;
}

// Fails the thread, with the place of the access in the binary, for addr2line.
[[noreturn, gnu::noinline]] void fail_access(const void* code, size_t at, size_t bytes, Access access,
                                             const std::string& what) {
  Dl_info info{};
  ::dladdr(code, &info);
  char place[32];
  std::snprintf(place, sizeof place, "0x%zx",
                static_cast<size_t>(static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase)));
  const char* does = access == Access::read ? "reads " : access == Access::write ? "writes " : "updates ";
  const std::string message =
      concat(does, bytes, " bytes of ", text_of_place(at), ": ", what, " (code address ", place, ")");
  if (actor) fail_thread({nullptr, 0}, message);
  std::fprintf(stderr, "the host %s\n", message.c_str());
  std::abort();
}

[[noreturn, gnu::noinline]] void fail_order(const Note& n, bool after_write, const void* code, size_t at, size_t bytes,
                                            Access access) {
  const bool other_block =
      after_write ? n.others_read_epoch > launch_start || n.read_epoch < block_start : n.write_epoch < block_start;
  std::string what = after_write ? "another thread of the block has read it and no barrier between"
                                 : concat("thread ", n.writer, " of the block wrote it and no barrier between");
  if (other_block) what = after_write ? "another block reads it" : "another block wrote it";
  fail_access(code, at, bytes, access, what);
}

[[gnu::always_inline]] inline void check_note(Note& n, size_t at, size_t bytes, Access access, const void* code) {
  const uint32_t floor = at >= kShared ? block_start : launch_start;
  const bool after_write = n.writer == kByAtomics
                               ? access == Access::atomic || is_before(floor, n.write_epoch, 0xffffffff, kByAtomics)
                               : is_before(floor, n.write_epoch, n.write_clock, n.writer);
  if (!after_write) fail_order(n, false, code, at, bytes, access);
  if (access == Access::read) return note_read(n);
  if (!reads_are_before(n, floor)) fail_order(n, true, code, at, bytes, access);
  // An access that comes after this write comes after those reads as well.
  n = {epoch, actor->clock, 0, 0, 0, 0, access == Access::atomic ? kByAtomics : static_cast<uint16_t>(actor->thread),
       0,     n.split};
}

[[gnu::noinline]] void check_access(size_t at, size_t bytes, Access access, const void* code) {
  if (!actor) fail_access(code, at, bytes, access, "the host must not");
  const size_t end = at + bytes;
  if (end > end_of_allocation(at)) fail_access(code, at, bytes, access, "out of bounds");
  for (size_t first = at / kGranule * kGranule; first < end; first += kGranule) {
    Note& n = notes[first / kGranule];
    const bool whole = first >= at && first + kGranule <= end;
    if (notes_plain_writes && access != Access::read && at >= kShared) note_plain_write(first, kGranule);
    if (whole && !n.split) {
      check_note(n, at, bytes, access, code);
      continue;
    }
    if (!n.split) {
      n.split = true;
      std::fill_n(byte_notes + first, kGranule, n);
    }
    for (size_t i = std::max(first, at); i < std::min(first + kGranule, end); ++i)
      check_note(byte_notes[i], at, bytes, access, code);
    if (whole && access != Access::read) {
      n = byte_notes[first];
      n.split = false;
    }
  }
}

[[gnu::always_inline]] inline void check(const void* address, size_t bytes, Access access, bool aligned = true) {
  const size_t at = reinterpret_cast<uintptr_t>(address) - region_start;
  if (__builtin_expect(at >= kRegion, 1)) return;  // a stack or other memory of the host
  const void* code = __builtin_return_address(0);
  if (aligned && at % bytes) fail_access(code, at, bytes, access, "the address is no multiple of the size");
  check_access(at, bytes, access, code);
}

}  // namespace

bool watches_accesses() { return watches; }

void next_epoch() {
  ++epoch;
  read_by_many.clear();
}
void next_block() {
  read_by_many.clear();
  block_start = ++epoch;
  ++epoch;  // so that no access has the epoch of the start itself
}
void next_launch() {
  if (watches && !notes) {
    notes = static_cast<Note*>(reserve(kRegion / kGranule * sizeof(Note)));
    byte_notes = static_cast<Note*>(reserve(kRegion * sizeof(Note)));
  }
  launch_start = ++epoch;
}

void come_after_all_blocks() { launch_start = ++epoch; }

void see_access(const void* address, size_t bytes, Access access) {
  if (watches) check(address, bytes, access);
}

void see_arrival(const void* address, size_t bytes) {
  if (!watches) return;
  const size_t at = reinterpret_cast<uintptr_t>(address) - region_start;
  for (size_t first = at / kGranule * kGranule; first < at + bytes; first += kGranule)
    notes[first / kGranule] = {block_start, 0, 0, 0, 0, 0, 0, 0, false};
}

}  // namespace llm::simt::bed

// The functions that the compiler's code calls, in place of ThreadSanitizer's own library.
using llm::simt::bed::Access;
using llm::simt::bed::check;

extern "C" {
void __tsan_init() { llm::simt::bed::watches = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define LLM_ACCESS(bytes)                                                              \
  void __tsan_read##bytes(void* p) { check(p, bytes, Access::read); }                  \
  void __tsan_write##bytes(void* p) { check(p, bytes, Access::write); }                \
  void __tsan_unaligned_read##bytes(void* p) { check(p, bytes, Access::read, false); } \
  void __tsan_unaligned_write##bytes(void* p) { check(p, bytes, Access::write, false); }
LLM_ACCESS(1)
LLM_ACCESS(2)
LLM_ACCESS(4)
LLM_ACCESS(8)
LLM_ACCESS(16)
#undef LLM_ACCESS
void __tsan_read_range(void* p, size_t bytes) { check(p, bytes, Access::read, false); }
void __tsan_write_range(void* p, size_t bytes) { check(p, bytes, Access::write, false); }

// These are for std::atomic and the guards of static variables, in the host's part of the kernels' files.
#define LLM_ATOMICS(bits, T)                                                                                        \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_or(volatile T* p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }   \
  T __tsan_atomic##bits##_fetch_and(volatile T* p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); } \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T v, int, int) {                    \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                  \
  }                                                                                                                 \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T v, int, int) {                      \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                  \
  }
LLM_ATOMICS(8, uint8_t)
LLM_ATOMICS(16, uint16_t)
LLM_ATOMICS(32, uint32_t)
LLM_ATOMICS(64, uint64_t)
#undef LLM_ATOMICS
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
}
