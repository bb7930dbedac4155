// Barriers in shared memory, copies of tiles, products of warpgroups and named barriers: the instructions that the
// wrappers of llm/device/hopper.h stand for.
//
// What a thread knows of other threads' accesses (Actor::others) travels with arrivals and waits: a thread that arrives
// at a barrier leaves there what it knows, and a thread that sees the end of the phase takes it.
#include <algorithm>
#include <cstring>
#include <map>

#include "llm/base/error.h"
#include "test/simt/bed.h"
#include "test/simt/region.h"

namespace llm::simt::bed {

bool notes_plain_writes = false;

namespace {

using Knowledge = std::vector<uint32_t>;  // by thread

struct Copy {
  std::byte* shared;
  BoxMap map;  // !is_box: sizes[0] bytes in a row
  std::array<int, 4> at;
  size_t bytes;
  bool is_box;
};

struct SharedBarrier {
  unsigned arrivals = 0, pending = 0, phase = 0;
  int64_t expected = 0, issued = 0;  // bytes of this phase
  std::vector<Copy> copies, done;    // of this phase; of earlier phases whose end no thread has seen
  Knowledge left, taken;             // by arrivals in this phase; for threads that see the end of an earlier phase
};
struct NamedBarrier {
  int threads = 0, arrived = 0;
  uint64_t meetings = 0;
  Knowledge left, taken;
};
// What accumulators held when the first product under way began.
struct Accumulators {
  float (*d)[4];
  std::vector<float> values;
};
struct AsynchronousThread {
  Knowledge knowledge;
  uint32_t fences = 0;
  bool products_may_begin = false;
  std::vector<std::vector<Product>> groups;  // committed, the oldest first
  std::vector<Product> open;
  std::vector<Accumulators> accumulators;
};
struct PlainWrite {
  uint32_t block, fences;
  uint16_t thread;
};

struct Asynchronous {
  bool used = false;
  uint32_t block = 0;
  std::map<const void*, SharedBarrier> barriers;
  std::map<int, NamedBarrier> named;
  std::vector<AsynchronousThread> threads;
  std::vector<PlainWrite> plain_writes;  // by four bytes of shared memory
};
Asynchronous all;

AsynchronousThread& running() { return all.threads[actor->thread]; }

void join(Knowledge& into, const Knowledge& from) {
  if (into.empty()) into.assign(from.size(), 0);
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}
void leave(Knowledge& at) {
  Knowledge& mine = running().knowledge;
  const uint32_t first = actor->thread / 32 * 32;
  for (uint32_t lane = 0; lane < 32 && first + lane < mine.size(); ++lane)
    mine[first + lane] = std::max(mine[first + lane], actor->known[lane]);
  mine[actor->thread] = actor->clock++;
  join(at, mine);
}
void take(const Knowledge& from) {
  if (!from.empty()) join(running().knowledge, from);
}

SharedBarrier& barrier_at(const void* address, const Site& site) {
  const auto found = all.barriers.find(address);
  if (found == all.barriers.end()) fail_thread(site, "a barrier that is not initialised");
  return found->second;
}

void land(const Copy& copy) {
  if (!copy.is_box) {
    std::memcpy(copy.shared, copy.map.tensor, copy.bytes);
    return see_arrival(copy.shared, copy.bytes);
  }
  const BoxMap& m = copy.map;
  size_t to = 0;
  for (int w = 0; w < m.box[3]; ++w)
    for (int z = 0; z < m.box[2]; ++z)
      for (int y = 0; y < m.box[1]; ++y)
        for (int x = 0; x < m.box[0]; ++x, to += 2) {
          const int64_t i[4] = {copy.at[0] + x, copy.at[1] + y, copy.at[2] + z, copy.at[3] + w};
          int64_t from = 0;
          bool inside = true;
          for (int k = 0; k < 4; ++k) from += i[k] * m.strides[k], inside = inside && i[k] >= 0 && i[k] < m.sizes[k];
          std::byte* const at = copy.shared + (to ^ (to >> 7 & 7) << 4);
          if (inside)
            std::memcpy(at, m.tensor + from, 2);
          else
            std::memset(at, 0, 2);
        }
  see_arrival(copy.shared, copy.bytes);
}

// Fails the thread when a copy or product would not see a thread's write to these bytes.
void check_fenced(const void* address, size_t bytes, const Site& site) {
  const size_t at = reinterpret_cast<uintptr_t>(address) - region_start - kShared;
  for (size_t i = at / 4; i < (at + bytes) / 4; ++i) {
    const PlainWrite& write = all.plain_writes[i];
    if (write.block == all.block && all.threads[write.thread].fences == write.fences)
      fail_thread(site, concat("shared memory at ", 4 * i, ", which thread ", write.thread,
                               " wrote and did not fence for copies and products (fence_async_proxy)"));
  }
}

void start_copy(Copy copy, const void* barrier, const Site& site) {
  SharedBarrier& b = barrier_at(barrier, site);
  const size_t offset = static_cast<size_t>(copy.shared - shared_base());
  if (offset >= kHopperSharedBytes) fail_thread(site, "an asynchronous copy goes to shared memory");
  if (offset % (copy.is_box ? 1024 : 16))
    fail_thread(site, "a copy with 128-byte swizzle goes to a multiple of 1024 bytes, another one to a multiple of 16");
  check_fenced(copy.shared, copy.bytes, site);
  notes_plain_writes = false;
  for (size_t i = 0; i < copy.bytes; i += 16) see_access(copy.shared + i, 16, Access::write);
  notes_plain_writes = true;
  std::memset(copy.shared, 0xff, copy.bytes);
  b.issued += static_cast<int64_t>(copy.bytes);
  b.copies.push_back(copy);
}

void end_phase_if_complete(SharedBarrier& b) {
  if (b.pending > 0 || b.expected != b.issued) return;
  ++b.phase;
  b.pending = b.arrivals;
  b.expected = b.issued = 0;
  b.done.insert(b.done.end(), b.copies.begin(), b.copies.end());
  b.copies.clear();
  join(b.taken, b.left);
}

}  // namespace

void initialize_barrier(const void* barrier, unsigned arrivals, const Site& site) {
  if (all.barriers.contains(barrier)) fail_thread(site, "a barrier that is initialised already");
  if (!all.used) {
    all.used = notes_plain_writes = true;
    ++all.block;
    all.plain_writes.resize(kHopperSharedBytes / 4 + 64);
  }
  SharedBarrier& b = all.barriers[barrier];
  b.arrivals = b.pending = arrivals;
}

void arrive_at(const void* barrier, unsigned bytes, const Site& site) {
  SharedBarrier& b = barrier_at(barrier, site);
  if (b.pending == 0) fail_thread(site, concat("more than ", b.arrivals, " arrivals in a phase"));
  leave(b.left);
  --b.pending;
  b.expected += bytes;
  end_phase_if_complete(b);
}

void wait_for_phase(const void* barrier, unsigned parity, const Site& site) {
  SharedBarrier& b = barrier_at(barrier, site);
  meet_others({.operation = Operation::phase, .site = site, .value = parity, .barrier = barrier});
  for (const Copy& copy : b.done) land(copy);
  b.done.clear();
  take(b.taken);
}

void copy_box(void* shared, const BoxMap& map, const std::array<int, 4>& at, const void* barrier, const Site& site) {
  size_t bytes = sizeof(bf16);
  for (const int n : map.box) bytes *= static_cast<size_t>(n);
  start_copy({static_cast<std::byte*>(shared), map, at, bytes, true}, barrier, site);
  end_phase_if_complete(barrier_at(barrier, site));
}

void copy_bytes(void* shared, const void* global, size_t bytes, const void* barrier, const Site& site) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail_thread(site, "a copy of bytes in a row takes multiples of 16 from an address that is one");
  if (!is_device_memory(global, bytes)) fail_thread(site, "an asynchronous copy from outside the device's memory");
  start_copy({static_cast<std::byte*>(shared), {static_cast<const std::byte*>(global), {}, {}, {}}, {}, bytes, false},
             barrier, site);
  end_phase_if_complete(barrier_at(barrier, site));
}

void meet_at(int id, int threads, bool waits, const Site& site) {
  NamedBarrier& b = all.named[id];
  if (id < 1 || id > 15 || threads % 32) fail_thread(site, "named barriers are 1 to 15, of whole warps");
  if (b.arrived > 0 && b.threads != threads)
    fail_thread(site, concat("barrier ", id, " of ", threads, " threads, but others are there for ", b.threads));
  b.threads = threads;
  const uint64_t meeting = b.meetings;
  leave(b.left);
  if (++b.arrived == threads) {
    b.arrived = 0;
    ++b.meetings;
    b.taken = b.left;
  }
  if (!waits) return;
  meet_others({.operation = Operation::meeting, .site = site, .value = meeting, .lane = id});
  take(b.taken);
}

void fence_async_proxy() { ++running().fences; }

void note_plain_write(size_t at, size_t bytes) {
  for (size_t i = (at - kShared) / 4; i < (at - kShared + bytes) / 4; ++i)
    if (i < all.plain_writes.size())
      all.plain_writes[i] = {all.block, running().fences, static_cast<uint16_t>(actor->thread)};
}

// Products.

void products_begin() { running().products_may_begin = true; }

void multiply(const Product& product, const Site& site) {
  AsynchronousThread& t = running();
  if (!t.products_may_begin) fail_thread(site, "a product without a products_begin after the last wait");
  const bool known = std::any_of(t.accumulators.begin(), t.accumulators.end(),
                                 [&](const Accumulators& a) { return a.d == product.d; });
  if (!known) {
    const float* const first = product.d[0];
    t.accumulators.push_back({product.d, {first, first + 4 * product.parts}});
    std::memset(product.d, 0xff, sizeof(float) * 4 * static_cast<size_t>(product.parts));
  }
  t.open.push_back(product);
}

void products_commit() {
  AsynchronousThread& t = running();
  t.groups.push_back(std::move(t.open));
  t.open.clear();
}

namespace {

float value_at(const Operand& o, int row, int column) {
  const size_t chunk = static_cast<size_t>(column % 64 / 8 ^ row % 8);
  return to_float(o.tile[static_cast<size_t>(column / 64 * o.rows + row) * 64 + chunk * 8 + column % 8]);
}

// The values of rows [first, first + rows) of an operand, 16 of k each (rows, 16), after a check that they may be read.
std::vector<float> read(const Operand& o, int first, int rows, const Site& site) {
  std::vector<float> values(static_cast<size_t>(rows) * 16);
  const auto see = [&](int row, int column) {
    const bf16* at = o.tile + static_cast<size_t>(column / 64 * o.rows + row) * 64 + (column % 64 / 8 ^ row % 8) * 8;
    check_fenced(at, 16, site);
    see_access(at, 16, Access::read);
  };
  for (int r = 0; r < rows; ++r)
    for (int k = 0; k < 16; ++k) {
      const int row = o.by_columns ? 16 * o.step + k : o.row + first + r;
      const int column = o.by_columns ? first + r : 16 * o.step + k;
      if ((o.by_columns ? r : k) % 8 == 0) see(row, column);
      values[static_cast<size_t>(r) * 16 + static_cast<size_t>(k)] = value_at(o, row, column);
    }
  return values;
}

void complete_products(unsigned warp, size_t pending, const Site& site) {
  AsynchronousThread* threads[32];
  for (unsigned l = 0; l < 32; ++l) threads[l] = &all.threads[warp * 32 + l];
  const size_t groups = threads[0]->groups.size();
  for (const AsynchronousThread* t : threads)
    if (t->groups.size() != groups) fail_thread(site, "lanes have different numbers of groups of products");
  for (size_t g = 0; g + pending < groups; ++g)
    for (size_t p = 0; p < threads[0]->groups[g].size(); ++p) {
      const Product& product = threads[0]->groups[g][p];
      const std::vector<float> right = read(product.right, 0, 8 * product.parts, site);
      std::vector<float> left(16 * 16);
      if (!product.left_registers) left = read(product.left, static_cast<int>(warp % 4) * 16, 16, site);
      for (int r = 0; r < 16 && product.left_registers; ++r)
        for (int k = 0; k < 16; ++k) {
          const Product& of_lane = threads[4 * (r % 8) + k % 8 / 2]->groups[g][p];
          left[static_cast<size_t>(16 * r + k)] =
              float_of_bits(of_lane.left_registers[r / 8 + k / 8 * 2] >> k % 2 * 16 << 16);
        }
      for (int l = 0; l < 32; ++l) {
        AsynchronousThread& t = *threads[l];
        auto& accumulators = *std::find_if(t.accumulators.begin(), t.accumulators.end(),
                                           [&](const Accumulators& a) { return a.d == t.groups[g][p].d; });
        for (int i = 0; i < 4 * product.parts; ++i) {
          const int r = l / 4 + i % 4 / 2 * 8, c = i / 4 * 8 + l % 4 * 2 + i % 2;
          float sum = product.add ? accumulators.values[static_cast<size_t>(i)] : 0;
          for (int k = 0; k < 16; ++k)
            sum += left[static_cast<size_t>(16 * r + k)] * right[static_cast<size_t>(16 * c + k)];
          accumulators.values[static_cast<size_t>(i)] = sum;
        }
      }
    }
  for (AsynchronousThread* t : threads) {
    if (groups > pending) t->groups.erase(t->groups.begin(), t->groups.end() - static_cast<std::ptrdiff_t>(pending));
    // Accumulators to which no product under way belongs may be read from here on.
    const auto is_under_way = [&](const Accumulators& a) {
      const auto is_of = [&](const Product& p) { return p.d == a.d; };
      return std::any_of(t->open.begin(), t->open.end(), is_of) ||
             std::any_of(t->groups.begin(), t->groups.end(),
                         [&](const auto& group) { return std::any_of(group.begin(), group.end(), is_of); });
    };
    std::erase_if(t->accumulators, [&](const Accumulators& a) {
      if (is_under_way(a)) return false;
      std::memcpy(a.d, a.values.data(), a.values.size() * sizeof(float));
      return true;
    });
  }
}

}  // namespace

void products_wait(int pending, const Site& site) {
  running().products_may_begin = false;
  // One lane does the warp's products while the other lanes wait.
  const Deposit deposit{.operation = Operation::products, .mask = 0xffffffff, .site = site};
  meet_others(deposit);
  if (actor->thread % 32 == 0) complete_products(actor->thread / 32, static_cast<size_t>(pending), site);
  meet_others(deposit);
}

// For the scheduler.

void start_asynchronous_block(unsigned threads) {
  all.used = notes_plain_writes = false;
  all.barriers.clear();
  all.named.clear();
  all.threads.assign(threads, {});
  for (AsynchronousThread& t : all.threads) t.knowledge.assign(threads, 0);
}

std::string left_behind() {
  for (const auto& [address, b] : all.barriers)
    if (!b.copies.empty() || !b.done.empty()) return "a copy whose arrival nobody waited for";
  for (size_t i = 0; i < all.threads.size(); ++i)
    if (!all.threads[i].groups.empty() || !all.threads[i].open.empty())
      return concat("thread ", i, " ends with products that it did not wait for");
  return "";
}

const uint32_t* knowledge_of(unsigned thread) { return all.used ? all.threads[thread].knowledge.data() : nullptr; }

bool is_over(const Deposit& deposit) {
  if (deposit.operation == Operation::phase) return (all.barriers.at(deposit.barrier).phase & 1) != (deposit.value & 1);
  return all.named.at(deposit.lane).meetings != deposit.value;
}

void share_knowledge(unsigned warp, uint32_t mask) {
  if (!all.used) return;
  Knowledge together;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) join(together, all.threads[warp * 32 + l].knowledge);
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) std::copy(together.begin(), together.end(), all.threads[warp * 32 + l].knowledge.begin());
}

}  // namespace llm::simt::bed
