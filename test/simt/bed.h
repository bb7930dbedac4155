// The SIMT test bed: runs the project's CUDA kernels, compiled as C++, on the CPU. A block is run by fibers, one a thread,
// that switch only where CUDA's threads meet (barriers, warp operations); blocks run one after another. So a run depends on
// nothing but the order in which threads and blocks are taken, which is a setting.
//
// What the bed sees: threads that do not meet where they must, shared memory that nobody wrote (it starts as NaNs), copies that
// were not waited for (they arrive at the wait), accesses outside an allocation, and, where the kernels are compiled with
// -fsanitize=thread but linked without it (watch.cpp then stands in for the sanitizer's library), every access to global
// or shared memory that no barrier orders after another thread's. Each is an Error thrown from the launch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Code that a sanitizer must not see: what moves between fibers under the hood is no race of the kernel's.
#define LLM_BED_UNSEEN __attribute__((no_sanitize("thread"), noinline))

namespace llm::simt::bed {

// The place of a barrier, wait, bounds test or warp operation in a kernel: what messages name and mutations switch off.
enum class Kind : uint8_t { none, barrier, warp_barrier, copy_wait, in_bounds };
struct Site {
  const char* file;
  int line;
  Kind kind = Kind::none;
  std::string text() const;
};

enum class Order : uint8_t { random, ascending, descending };  // of warps, lanes and blocks
struct Settings {
  Order order = Order::random;
  uint64_t seed = 0;  // of the random order; at first the environment variable SIMT_SEED
};
Settings& settings();

// Mutation: the bed notes the sites that kernels meet, while told to, and treats `disabled` as if it were not there: a
// barrier lets everyone pass, a copy_wait waits for nothing, in_bounds is true.
void watch_sites(bool on);          // starts with an empty list
std::vector<Site> watched_sites();  // by file and line
void disable(const Site& site);     // Kind::none: nothing

// Whether accesses are watched: some code compiled with -fsanitize=thread has run.
bool watches_accesses();

struct LaunchShape {
  unsigned grid[3], block[3];
  size_t shared_bytes;
};
// Calls body(arguments) once for each thread. `site` is that of the launch.
void run(const LaunchShape& shape, const Site& site, void (*body)(const void*), const void* arguments);
// Must the address, an argument of a kernel, be device memory? Then this throws when it is not.
void check_pointer(const void* address, const Site& site);

// From here on: called by a kernel's threads.

[[noreturn]] void fail_thread(const Site& site, const std::string& message);

extern bool sites_matter;  // some are watched or disabled
bool meet(const Site& site);
inline bool is_disabled(const char* file, int line, Kind kind) {
  return __builtin_expect(sites_matter, 0) && meet({file, line, kind});
}

enum class Operation : uint8_t {
  none,
  barrier,  // whole block; the value is a predicate
  barrier_or,
  barrier_and,
  barrier_count,
  warp_barrier,  // from here on: the lanes of a mask
  shuffle,
  shuffle_xor,
  shuffle_up,
  shuffle_down,
  ballot,
  mma,
  load_matrix,
  load_matrix_transposed,
};
struct Deposit {
  Operation operation = Operation::none;
  uint32_t mask = 0;
  Site site{};
  uint64_t value = 0;             // shuffles, votes
  int lane = 0, width = 32;       // shuffles: CUDA's last two arguments
  float* d = nullptr;             // mma
  uint32_t* a = nullptr;          // mma; what ldmatrix gives
  const uint32_t* b = nullptr;    // mma
  const uint16_t* row = nullptr;  // ldmatrix
};
// Waits for the threads that must take part, and gives the operation's result.
uint64_t meet_others(const Deposit& deposit);

void* shared_memory(size_t bytes, const Site& site);
void copy_async(void* shared, const void* global, bool valid, const Site& site);
void copy_commit();
void copy_wait(int still_under_way);

// Memory of the device (memory.cpp).

void* allocate(size_t bytes);                              // 256-byte aligned, full of NaNs; null when there is no more
bool release(void* memory);                                // whether it was allocated
bool is_device_memory(const void* address, size_t bytes);  // wholly inside one allocation
size_t free_bytes();
inline constexpr size_t kDeviceBytes = size_t{1} << 30;
// What a block may have: the least of today's (compute capability 8.9 and 12.0; the H100 has 227 KiB), so that kernels run there
// too.
inline constexpr size_t kSharedBytes = 99 << 10;
std::byte* shared_base();
void set_shared_bytes(size_t bytes);

// Accesses (watch.cpp).

// A thread as the race detector sees it. Clocks: an access at `clock` of lane m comes before whatever lane l does once
// l.known[m] >= clock. They count the lane's __syncwarps and never go back. A block's barriers count an epoch for all.
struct Actor {
  uint32_t thread = 0;  // in its block
  uint32_t clock = 1;
  uint32_t known[32] = {};
};
extern Actor* actor;  // the thread that is running, null: the host
void next_epoch();
void next_block();             // what follows is unordered with the launch's other blocks
void next_launch();            // what follows is ordered after everything
void come_after_all_blocks();  // the same, for the rest of a block that has waited for all others, at its barrier
enum class Access : uint8_t { read, write, atomic };
// Throws into the bed what is wrong with the access; does nothing where accesses are not watched.
void see_access(const void* address, size_t bytes, Access access);

}  // namespace llm::simt::bed
