// Runs blocks: the scheduler of their threads, and what threads do together.
#include "test/simt/bed.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <tuple>

#include "llm/base/bf16.h"
#include "llm/base/error.h"
#include "llm/base/random.h"
#include "test/simt/cuda_runtime.h"
#include "test/simt/fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace llm::simt::bed {

Actor* actor = nullptr;
bool sites_matter = false;

namespace {

enum class State : uint8_t { ready, waits, finished };

struct Copy {
  std::byte* shared;
  const std::byte* global;
  bool valid;
  int64_t group;
};

struct Thread : Actor {
  Fiber fiber;
  State state = State::ready;
  uint3 index{};
  Deposit deposit;
  uint64_t result = 0;
  std::vector<Copy> copies;
  int64_t groups = 0;  // committed
};

// The running launch and its running block. Only the scheduler, on the stack of the OS thread, changes them.
struct Bed {
  std::vector<std::unique_ptr<Thread>> threads;  // as many as the largest block so far had
  unsigned count = 0;                            // threads of this block
  Fiber scheduler;
  LaunchShape shape{};
  Site site{};
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  std::string error;
  unsigned finished = 0, at_barrier = 0;
  uint32_t waiting[32] = {};  // by warp: the lanes in a warp operation
  uint64_t draws = 0;         // orders drawn so far, so that every launch has another one
  Thread* running = nullptr;
};
Bed bed;

struct Mutation {
  bool watching = false;
  Site disabled{nullptr, 0};
  std::set<std::tuple<std::string, int, Kind>> watched;
  struct Seen {
    const char* file = nullptr;
    int line = 0;
    Kind kind = Kind::none;
    bool disabled = false;
  } recent[1024];  // sites by address and line: most calls are answered here
};
Mutation mutation;

template <class Indices>
void put_in_order(Indices& order) {
  std::iota(order.begin(), order.end(), 0);
  if (settings().order == Order::descending) std::reverse(order.begin(), order.end());
  if (settings().order != Order::random) return;
  const Random random(settings().seed, ++bed.draws);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.bits(i) % i]);
}

std::string text_of(const uint3& i) { return concat(i.x, ",", i.y, ",", i.z); }
std::string text_of(const Thread& t) { return concat("thread ", text_of(t.index)); }

[[noreturn]] void fail_block(const std::string& message) {
  fail(bed.site.text(), ": kernel of ", bed.shape.grid[0], "x", bed.shape.grid[1], "x", bed.shape.grid[2],
       " blocks of ", bed.shape.block[0], "x", bed.shape.block[1], "x", bed.shape.block[2], " threads, block ",
       text_of(blockIdx), ", ", message);
}

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::barrier: return "__syncthreads";
    case Operation::barrier_or: return "__syncthreads_or";
    case Operation::barrier_and: return "__syncthreads_and";
    case Operation::barrier_count: return "__syncthreads_count";
    case Operation::warp_barrier: return "__syncwarp";
    case Operation::shuffle: return "__shfl_sync";
    case Operation::shuffle_xor: return "__shfl_xor_sync";
    case Operation::shuffle_up: return "__shfl_up_sync";
    case Operation::shuffle_down: return "__shfl_down_sync";
    case Operation::ballot: return "a vote";
    case Operation::mma: return "mma";
    case Operation::load_matrix:
    case Operation::load_matrix_transposed: return "ldmatrix";
    case Operation::products: return "products_wait";
    case Operation::phase: return "a wait for a phase";
    case Operation::meeting: return "a named barrier";
    case Operation::none: break;
  }
  return "nothing";
}
std::string text_of(const Deposit& d) { return concat(name_of(d.operation), " at ", d.site.text()); }
bool same_place(const Deposit& a, const Deposit& b) {
  return a.operation == b.operation && a.site.line == b.site.line &&
         (a.site.file == b.site.file || std::strcmp(a.site.file, b.site.file) == 0);
}
bool is_block_wide(Operation o) { return o >= Operation::barrier && o <= Operation::barrier_count; }

void finish_thread() {
  bed.running->state = State::finished;
  switch_fiber(bed.running->fiber, bed.scheduler);
}

// A fiber's endless loop: one block's work of a thread, then back to the scheduler.
void thread_main() {
  fiber_starts(bed.scheduler);
  for (;;) {
    bed.body(bed.arguments);
    // Copies that were not waited for arrive at some time.
    copy_wait(-1);
    finish_thread();
  }
}

void resume(Thread& t) {
  bed.running = &t;
  actor = &t;
  t.others = knowledge_of(t.thread);
  threadIdx = t.index;
  switch_fiber(bed.scheduler, t.fiber);
  actor = nullptr;
  bed.running = nullptr;
}

void release_thread(Thread& t, uint64_t result) {
  t.result = result;
  t.state = State::ready;
}

void multiply(Thread* const* lanes) {
  for (int group = 0; group < 8; ++group)
    for (int column = 0; column < 8; ++column) {
      // Lane 4 group + member holds rows group and group + 8 of d; a column of b is held by the lanes of the group of
      // that number.
      float* d = lanes[4 * group + column / 2]->deposit.d + column % 2;
      for (int half = 0; half < 2; ++half) {  // row group, then row group + 8
        float sum = d[2 * half];
        for (int k = 0; k < 16; ++k) {
          const int member = k % 8 / 2, shift = k % 2 * 16;
          const uint32_t a = lanes[4 * group + member]->deposit.a[half + (k < 8 ? 0 : 2)] >> shift << 16;
          const uint32_t b = lanes[4 * column + member]->deposit.b[k < 8 ? 0 : 1] >> shift << 16;
          sum += float_of_bits(a) * float_of_bits(b);
        }
        d[2 * half] = sum;
      }
    }
}

void load_matrices(Thread* const* lanes, bool transposed) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      uint32_t pair = 0;
      for (int j = 0; j < 2; ++j) {
        const int row = lane / 4, column = lane % 4 * 2 + j;
        const uint16_t v =
            transposed ? lanes[8 * i + column]->deposit.row[row] : lanes[8 * i + row]->deposit.row[column];
        pair |= static_cast<uint32_t>(v) << 16 * j;
      }
      lanes[lane]->deposit.a[i] = pair;
    }
}

// The lane that a shuffle reads, in a subsection of `width` lanes (CUDA C++ Programming Guide, "Warp Shuffle
// Functions").
int source_of(const Deposit& d, int lane) {
  const int start = lane / d.width * d.width, end = start + d.width;
  switch (d.operation) {
    case Operation::shuffle: return start + (d.lane & (d.width - 1));
    case Operation::shuffle_xor: return (lane ^ d.lane) < end ? lane ^ d.lane : lane;
    case Operation::shuffle_up: return lane - d.lane >= start ? lane - d.lane : lane;
    default: return lane + d.lane < end ? lane + d.lane : lane;
  }
}

// Does the warp operation, once all lanes of its mask have come.
void complete(unsigned warp, const Deposit& call) {
  Thread* lanes[32] = {};
  for (unsigned l = 0; l < 32; ++l)
    if (call.mask >> l & 1) lanes[l] = bed.threads[warp * 32 + l].get();
  uint64_t results[32] = {};
  switch (call.operation) {
    case Operation::warp_barrier: {
      uint32_t known[32] = {};
      for (const Thread* t : lanes)
        for (int m = 0; t && m < 32; ++m) known[m] = std::max(known[m], t->known[m]);
      // A note of reads holds one clock for the whole warp, so its lanes go on with the same clock.
      uint32_t clock = 0;
      for (const Thread* t : lanes)
        if (t) clock = std::max(clock, t->clock);
      for (int m = 0; m < 32; ++m)
        if (lanes[m]) known[m] = clock, lanes[m]->clock = clock + 1;
      for (Thread* t : lanes)
        if (t) std::copy_n(known, 32, t->known);
      share_knowledge(warp, call.mask);
      break;
    }
    case Operation::products: break;
    case Operation::ballot:
      for (int l = 0; l < 32; ++l)
        if (lanes[l] && lanes[l]->deposit.value) results[0] |= uint64_t{1} << l;
      std::fill_n(results, 32, results[0]);
      break;
    case Operation::mma: multiply(lanes); break;
    case Operation::load_matrix:
    case Operation::load_matrix_transposed:
      load_matrices(lanes, call.operation == Operation::load_matrix_transposed);
      break;
    default:
      for (int l = 0; l < 32; ++l) {
        if (!lanes[l]) continue;
        const int from = source_of(lanes[l]->deposit, l);
        if (!lanes[from])
          fail_block(concat(text_of(*lanes[l]), ": ", text_of(call), " reads lane ", from, ", which takes no part"));
        results[l] = lanes[from]->deposit.value;
      }
  }
  for (int l = 0; l < 32; ++l)
    if (lanes[l]) release_thread(*lanes[l], results[l]);
}

void arrive_in_warp(const Thread& t) {
  const unsigned warp = t.thread / 32, lane = t.thread % 32;
  const Deposit& mine = t.deposit;
  const auto complain = [&](auto... parts) { fail_block(concat(text_of(t), ": ", text_of(mine), parts...)); };
  if (!(mine.mask >> lane & 1)) complain(": the mask ", mine.mask, " does not name the lane ", lane, " itself");
  if (mine.operation >= Operation::mma && mine.mask != 0xffffffff) complain(" takes a whole warp");
  if (warp * 32 + 32 > bed.count && mine.mask >> (bed.count % 32))
    complain(": the mask ", mine.mask, " names lanes that the block does not have");
  uint32_t& waiting = bed.waiting[warp];
  waiting |= 1u << lane;
  if ((waiting & mine.mask) != mine.mask) return;  // a lane that never comes is found when no thread can go on
  for (unsigned l = 0; l < 32; ++l) {
    if (!(mine.mask >> l & 1)) continue;
    const Deposit& other = bed.threads[warp * 32 + l]->deposit;
    if (!same_place(mine, other)) complain(": lane ", l, " of its mask is at ", text_of(other));
    if (mine.mask != other.mask) complain(": lane ", l, " gives another mask: ", mine.mask, " and ", other.mask);
  }
  waiting &= ~mine.mask;
  complete(warp, mine);
}

void arrive(Thread& t) {
  if (t.state == State::finished) {
    ++bed.finished;
  } else if (is_block_wide(t.deposit.operation)) {
    ++bed.at_barrier;
  } else if (t.deposit.operation < Operation::phase) {
    arrive_in_warp(t);
  }
}

void complete_barrier() {
  const Deposit& call = bed.threads[0]->deposit;
  uint64_t count = 0;
  for (unsigned i = 0; i < bed.count; ++i) {
    const Thread& t = *bed.threads[i];
    if (!same_place(t.deposit, call))
      fail_block(concat(text_of(t), " is at ", text_of(t.deposit), " while thread 0,0,0 is at ", text_of(call)));
    count += t.deposit.value != 0;
  }
  const uint64_t result = call.operation == Operation::barrier_or    ? count > 0
                          : call.operation == Operation::barrier_and ? count == bed.count
                                                                     : count;
  for (unsigned i = 0; i < bed.count; ++i) release_thread(*bed.threads[i], result);
  bed.at_barrier = 0;
  next_epoch();
}

// No thread can go on: names one that waits for a thread that never comes.
[[noreturn]] void fail_stuck() {
  const auto find = [&](auto matches) -> const Thread* {
    for (unsigned i = 0; i < bed.count; ++i)
      if (matches(*bed.threads[i])) return bed.threads[i].get();
    return nullptr;
  };
  const auto at_barrier = [](const Thread& t) { return t.state == State::waits && is_block_wide(t.deposit.operation); };
  const Thread* waiting = find(at_barrier);
  if (!waiting) waiting = find([](const Thread& t) { return t.state == State::waits; });
  const Thread* other =
      find([&](const Thread& t) { return t.state == State::finished || !same_place(t.deposit, waiting->deposit); });
  const std::string where = text_of(*waiting) + " waits for ever in " + text_of(waiting->deposit);
  if (!other) fail_block(where);
  fail_block(concat(where, ": ", text_of(*other),
                    other->state == State::finished ? " has finished" : " is in " + text_of(other->deposit)));
}

void run_block() {
  bed.finished = bed.at_barrier = 0;
  std::fill_n(bed.waiting, 32, 0);
  std::memset(shared_base(), 0xff, bed.shape.shared_bytes + 256);
  next_block();
  start_asynchronous_block(bed.count);
  for (unsigned i = 0; i < bed.count; ++i) {
    Thread& t = *bed.threads[i];
    t.state = State::ready;
    t.copies.clear();
    t.groups = 0;
    t.others = nullptr;
  }
  std::vector<uint32_t> warps((bed.count + 31) / 32), lanes(32);
  put_in_order(warps);
  put_in_order(lanes);
  while (bed.finished < bed.count) {
    bool progress = false;
    for (const uint32_t warp : warps) {
      // Runs the warp as far as it gets without the other warps.
      for (bool again = true; again;) {
        again = false;
        for (const uint32_t lane : lanes) {
          if (warp * 32 + lane >= bed.count) continue;
          Thread& t = *bed.threads[warp * 32 + lane];
          if (t.state == State::waits && t.deposit.operation >= Operation::phase && is_over(t.deposit))
            release_thread(t, 0);
          if (t.state != State::ready) continue;
          again = progress = true;
          resume(t);
          if (!bed.error.empty()) fail_block(text_of(t) + ": " + bed.error);
          arrive(t);
        }
      }
    }
    if (bed.finished < bed.count && bed.at_barrier == bed.count) {
      complete_barrier();
      put_in_order(warps);
      put_in_order(lanes);
    } else if (!progress) {
      fail_stuck();
    }
  }
  if (const std::string what = left_behind(); !what.empty()) fail_block(what);
  for (size_t i = 0; i < 256; ++i)
    if (shared_base()[bed.shape.shared_bytes + i] != std::byte{0xff})
      fail_block(concat("shared memory was written ", i, " bytes behind its end"));
}

void make_threads() {
  while (bed.threads.size() < bed.count) {
    bed.threads.push_back(std::make_unique<Thread>());
    Thread& t = *bed.threads.back();
    t.thread = static_cast<uint32_t>(bed.threads.size() - 1);
    make_stack(t.fiber);
    prepare(t.fiber, thread_main);
  }
  for (unsigned i = 0; i < bed.count; ++i) {
    const unsigned* b = bed.shape.block;
    bed.threads[i]->index = {i % b[0], i / b[0] % b[1], i / b[0] / b[1]};
  }
}

void check_shape() {
  const LaunchShape& s = bed.shape;
  const size_t threads = size_t{s.block[0]} * s.block[1] * s.block[2];
  const size_t blocks = size_t{s.grid[0]} * s.grid[1] * s.grid[2];
  if (threads == 0 || threads > 1024 || s.block[2] > 64) fail_block("a block has 1 to 1024 threads, 64 of them deep");
  if (blocks == 0 || s.grid[0] > 0x7fffffff || s.grid[1] > 65535 || s.grid[2] > 65535)
    fail_block("a grid has 1 to 2^31 - 1, 65535 and 65535 blocks");
  if (s.shared_bytes > kHopperSharedBytes)
    fail_block(concat(s.shared_bytes, " bytes of shared memory; there are ", kHopperSharedBytes));
  bed.count = static_cast<unsigned>(threads);
}

}  // namespace

std::string Site::text() const { return concat(file, ":", line); }

Settings& settings() {
  static Settings all = [] {
    const char* seed = std::getenv("SIMT_SEED");
    return Settings{.seed = seed ? std::strtoull(seed, nullptr, 10) : 1};
  }();
  return all;
}

void run(const LaunchShape& shape, const Site& site, void (*body)(const void*), const void* arguments) {
  if (bed.running) fail(site.text(), ": a kernel cannot be started by a kernel");
  bed.shape = shape;
  bed.site = site;
  bed.body = body;
  bed.arguments = arguments;
  blockIdx = {};
  check_shape();
  blockDim = {shape.block[0], shape.block[1], shape.block[2]};
  gridDim = {shape.grid[0], shape.grid[1], shape.grid[2]};
  make_threads();
  set_shared_bytes(shape.shared_bytes);
  next_launch();
  std::vector<uint32_t> blocks(size_t{shape.grid[0]} * shape.grid[1] * shape.grid[2]);
  put_in_order(blocks);
  try {
    for (const uint32_t block : blocks) {
      blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
      run_block();
    }
  } catch (...) {
    // The threads stay where they are; their stacks are used again from the top.
    bed.error.clear();
    for (auto& t : bed.threads) prepare(t->fiber, thread_main);
    throw;
  }
}

void check_pointer(const void* address, const Site& site) {
  if (address && !is_device_memory(address, 1))
    fail(site.text(), ": a kernel is given an address that is not the device's");
}

// Called by a kernel's threads.

void fail_thread(const Site& site, const std::string& message) {
  bed.error = site.file ? site.text() + ": " + message : message;
  for (;;) switch_fiber(bed.running->fiber, bed.scheduler);
}

uint64_t meet_others(const Deposit& deposit) {
  Thread& t = *bed.running;
  t.deposit = deposit;
  t.state = State::waits;
  switch_fiber(t.fiber, bed.scheduler);
  return t.result;
}

void* shared_memory(size_t bytes, const Site& site) {
  if (bytes > bed.shape.shared_bytes)
    fail_thread(site, concat("shared memory of ", bytes, " bytes, but the launch gave ", bed.shape.shared_bytes));
  return shared_base();
}

void copy_async(void* shared, const void* global, bool valid, const Site& site) {
  auto* to = static_cast<std::byte*>(shared);
  if (to < shared_base() || to + 16 > shared_base() + bed.shape.shared_bytes)
    fail_thread(site, "an asynchronous copy goes to shared memory");
  if (valid && !is_device_memory(global, 16))
    fail_thread(site, "an asynchronous copy from outside the device's memory");
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16)
    fail_thread(site, "an asynchronous copy of 16 bytes from or to an address that is no multiple of 16");
  see_access(shared, 16, Access::write);  // the copy may arrive from now on
  bed.running->copies.push_back({to, static_cast<const std::byte*>(global), valid, bed.running->groups});
}

void copy_commit() { ++bed.running->groups; }

void copy_wait(int still_under_way) {
  Thread& t = *bed.running;
  size_t left = 0;
  for (const Copy& copy : t.copies) {
    if (still_under_way >= 0 && copy.group >= t.groups - still_under_way) {
      t.copies[left++] = copy;
      continue;
    }
    see_access(copy.shared, 16, Access::write);
    if (copy.valid) {
      see_access(copy.global, 16, Access::read);
      std::memcpy(copy.shared, copy.global, 16);
    } else {
      std::memset(copy.shared, 0, 16);
    }
  }
  t.copies.resize(left);
}

// Mutation.

bool meet(const Site& site) {
  auto& seen =
      mutation.recent[(reinterpret_cast<uintptr_t>(site.file) ^ static_cast<uintptr_t>(site.line * 37)) % 1024];
  if (seen.file != site.file || seen.line != site.line || seen.kind != site.kind) {
    const Site& off = mutation.disabled;
    seen = {site.file, site.line, site.kind,
            off.kind == site.kind && off.line == site.line && std::strcmp(off.file, site.file) == 0};
    if (mutation.watching) mutation.watched.emplace(site.file, site.line, site.kind);
  }
  return seen.disabled;
}

void watch_sites(bool on) {
  std::fill_n(mutation.recent, 1024, Mutation::Seen{});
  if (on) mutation.watched.clear();
  mutation.watching = on;
  sites_matter = on || mutation.disabled.kind != Kind::none;
}

std::vector<Site> watched_sites() {
  std::vector<Site> sites;
  for (auto& [file, line, kind] : mutation.watched) sites.push_back({file.c_str(), line, kind});
  return sites;
}

void disable(const Site& site) {
  std::fill_n(mutation.recent, 1024, Mutation::Seen{});
  static std::string file;  // a copy: the caller's text may not live long
  file = site.kind == Kind::none ? "" : site.file;
  mutation.disabled = {file.c_str(), site.line, site.kind};
  sites_matter = mutation.watching || site.kind != Kind::none;
}

}  // namespace llm::simt::bed
