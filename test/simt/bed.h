// The SIMT test bed: runs the project's CUDA kernels, compiled as C++, on the CPU. Each thread of a block is a fiber;
// fibers switch only where CUDA's threads meet (barriers, warp operations), and blocks run one after another. So a run
// depends on nothing but the order in which threads and blocks are taken, which is a setting.
//
// The bed sees threads that do not meet where they must, reads of shared memory that no thread wrote (it starts as
// NaNs), copies that were not waited for (they arrive at the wait) and accesses outside an allocation. Where the
// compiler reports the kernels' accesses (-fsanitize=thread without the sanitizer's library, in whose place watch.cpp
// stands: every build but AddressSanitizer's), the bed also sees each access to global or shared memory that no barrier
// orders after another thread's. Each of these is an Error thrown from the launch.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "llm/base/bf16.h"

namespace llm::simt::bed {

// The place of a barrier, wait, bounds test or warp operation in a kernel, which messages name and mutations switch
// off.
enum class Kind : uint8_t { none, barrier, warp_barrier, copy_wait, in_bounds, phase, fence, expected_bytes };
struct Site {
  const char* file;
  int line;
  Kind kind = Kind::none;
  std::string text() const;
};

enum class Order : uint8_t { random, ascending, descending };  // in which warps, lanes and blocks are taken
struct Settings {
  Order order = Order::random;
  int compute_capability = 90;  // what the device says that it has
  uint64_t seed = 0;            // of the random order; the environment variable SIMT_SEED sets its first value
};
Settings& settings();

// Mutation: the bed notes the sites that kernels meet, while it is told to, and treats the disabled site as if it were
// not there: a barrier lets every thread pass, a copy_wait waits for nothing, in_bounds is true.
void watch_sites(bool on);          // starts with an empty list
std::vector<Site> watched_sites();  // ordered by file and line
void disable(const Site& site);     // Kind::none: no site

// Whether accesses are watched: some code compiled with -fsanitize=thread has run.
bool watches_accesses();

struct LaunchShape {
  unsigned grid[3], block[3];
  size_t shared_bytes;
};
// Runs a launch: calls body(arguments) once for each thread. `site` is the place of the launch.
void run(const LaunchShape& shape, const Site& site, void (*body)(const void*), const void* arguments);
// Throws Error when the address, an argument of a kernel, is neither null nor device memory.
void check_pointer(const void* address, const Site& site);

// The functions from here on are called by the threads of a kernel.

[[noreturn]] void fail_thread(const Site& site, const std::string& message);

extern bool sites_matter;  // whether some are watched or disabled
bool meet(const Site& site);
inline bool is_disabled(const char* file, int line, Kind kind) {
  return __builtin_expect(sites_matter, 0) && meet({file, line, kind});
}

enum class Operation : uint8_t {
  none,
  barrier,  // these four: the whole block; the value is a predicate
  barrier_or,
  barrier_and,
  barrier_count,
  warp_barrier,  // from here on the lanes of a mask
  shuffle,
  shuffle_xor,
  shuffle_up,
  shuffle_down,
  ballot,
  mma,
  load_matrix,
  load_matrix_transposed,
  products,  // a wait for the products of a warpgroup
  phase,     // from here on each thread by itself: a wait for a barrier in shared memory
  meeting,   // a wait at a named barrier
};
struct Deposit {
  Operation operation = Operation::none;
  uint32_t mask = 0;
  Site site{};
  uint64_t value = 0;             // shuffles, votes
  int lane = 0, width = 32;       // shuffles: CUDA's last two arguments
  float* d = nullptr;             // mma
  uint32_t* a = nullptr;          // mma's operand; ldmatrix's result
  const uint32_t* b = nullptr;    // mma
  const uint16_t* row = nullptr;  // ldmatrix
  const void* barrier = nullptr;  // phase
};
// Waits for the threads that must take part, and returns the operation's result.
uint64_t meet_others(const Deposit& deposit);

void* shared_memory(size_t bytes, const Site& site);
void copy_async(void* shared, const void* global, bool valid, const Site& site);
void copy_commit();
void copy_wait(int still_under_way);

// Hopper's asynchronous instructions (asynchronous.cpp). They act as late as they may: copies arrive when a thread sees
// the end of their phase, products are done at the wait for them. Until then NaNs stand where they will write.

struct BoxMap {
  const std::byte* tensor;
  int64_t sizes[4], strides[4];  // in elements; in bytes
  int box[4];
};
// One side of a product, for one step of k: 16 columns of the rows of a tile with 128-byte swizzle, or all columns of
// 16 rows.
struct Operand {
  const bf16* tile = nullptr;  // null: the operand is in registers
  int rows = 0, columns = 0, row = 0, step = 0;
  bool by_columns = false;
};
struct Product {
  float (*d)[4] = nullptr;
  int parts = 0;  // of d: 64 x 8 each
  bool add = false;
  const uint32_t* left_registers = nullptr;
  Operand left{}, right{};
};
void initialize_barrier(const void* barrier, unsigned arrivals, const Site& site);
void arrive_at(const void* barrier, unsigned bytes, const Site& site);
void wait_for_phase(const void* barrier, unsigned parity, const Site& site);
void copy_box(void* shared, const BoxMap& map, const std::array<int, 4>& at, const void* barrier, const Site& site);
void copy_bytes(void* shared, const void* global, size_t bytes, const void* barrier, const Site& site);
void meet_at(int id, int threads, bool waits, const Site& site);
void fence_async_proxy();
void products_begin();
void multiply(const Product& product, const Site& site);
void products_commit();
void products_wait(int pending, const Site& site);

// The scheduler's questions.
void start_asynchronous_block(unsigned threads);
std::string left_behind();                           // what is still under way at a block's end; empty: nothing
bool is_over(const Deposit& deposit);                // whether a phase or meeting is over
const uint32_t* knowledge_of(unsigned thread);       // Actor::others
void share_knowledge(unsigned warp, uint32_t mask);  // at a __syncwarp

// The device's memory (memory.cpp).

void* allocate(size_t bytes);                              // 256-byte aligned, full of NaNs; null when there is no more
bool release(void* memory);                                // whether it was allocated
bool is_device_memory(const void* address, size_t bytes);  // wholly inside one allocation
size_t free_bytes();
inline constexpr size_t kDeviceBytes = size_t{1} << 30;
// The shared memory that a block may have: the least of today's GPUs (compute capability 8.9 and 12.0; the H100 has 227
// KiB), so that kernels run on all of them.
inline constexpr size_t kSharedBytes = 99 << 10;
inline constexpr size_t kHopperSharedBytes = 227 << 10;  // for kernels that are for Hopper alone
std::byte* shared_base();
void set_shared_bytes(size_t bytes);

// Watching accesses (watch.cpp).

// A thread as the race detector sees it. An access at `clock` of lane m comes before whatever lane l does once
// l.known[m] >= clock. Clocks count the lane's __syncwarps and never go back; epochs count the barriers of a block.
struct Actor {
  uint32_t thread = 0;  // in its block
  uint32_t clock = 1;
  uint32_t known[32] = {};
  const uint32_t* others = nullptr;  // `known` for all threads of the block, where barriers in shared memory are used
};
extern Actor* actor;  // the thread that is running; null: the host
void next_epoch();
void next_block();             // what follows is unordered with the launch's other blocks
void next_launch();            // what follows is ordered after everything
void come_after_all_blocks();  // the rest of this block, which has waited for all others, is ordered after them
enum class Access : uint8_t { read, write, atomic };
// Fails the thread where something is wrong with the access; does nothing where accesses are not watched.
void see_access(const void* address, size_t bytes, Access access);
void see_arrival(const void* address, size_t bytes);  // of a copy that all threads which go on have waited for
// Notes a thread's write to shared memory, to find writes that asynchronous copies and products do not see.
void note_plain_write(size_t at, size_t bytes);
extern bool notes_plain_writes;

}  // namespace llm::simt::bed
