// The blocked product. k is cut into stages. In each stage the smaller operand is packed once for all threads
// ("shared"), then chunks of the larger one are packed and multiplied by the thread that claims them ("private"): so
// the shared panels stay in cache while every element of the larger operand is read from memory once.
//
// There is one list of tasks in a fixed order, claimed from one counter. Stage s + 1 is packed before stage s is
// multiplied, into a ring of three buffers, and a task waits only for tasks claimed long before it. Hence no barriers,
// at which the threads would wait for the slowest.
#include "llm/device/gemm_cpu.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "llm/base/simd.h"
#include "llm/device/microkernel_cpu.h"
#include "llm/device/pack_cpu.h"

namespace llm {
namespace {

using microkernel::kColumns;
using microkernel::kRows;
using microkernel::RowPanels;
using simd::kLanes;
using simd::Vec;

constexpr int64_t kMaxDepth = 768;       // of a stage: a panel of B fills about a tenth of a 1 MiB L2
constexpr int64_t kRing = 3;             // buffers for the shared operand
constexpr int64_t kPackGrain = 1 << 14;  // elements, about the least that is worth a claim
constexpr int64_t kSmallRows = 8;        // up to here the weights' way from memory is all that counts
constexpr int64_t kSmallChunk = 32;      // columns a claim in the small path
constexpr double kSerialWork = 1e6;      // multiply-adds below which waking the team costs more than it brings

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

float* aligned(float* p) { return reinterpret_cast<float*>(round_up(reinterpret_cast<intptr_t>(p), 64)); }

struct Plan {
  int64_t depth, stages;  // the k of a stage, and how many: of k alone, for the bits
  bool share_a;
  RowPanels row_panels;
  int64_t column_panels;
  int64_t chunk, chunks;           // panels of the private operand in a claim, and claims in a stage
  int64_t pack_grain, pack_items;  // panels of the shared operand in a claim, and claims in a stage
  int64_t shared_floats, private_floats, progress_floats;

  Plan(int64_t m, int64_t n, int64_t k, int64_t threads) : row_panels(m), column_panels(ceil_div(n, kColumns)) {
    stages = std::max<int64_t>(1, ceil_div(k, kMaxDepth));
    depth = round_up(ceil_div(k, stages), 16);
    share_a = m <= n;
    const int64_t private_panels = share_a ? column_panels : row_panels.count;
    const int64_t shared_panels = share_a ? row_panels.count : column_panels;
    chunk = std::clamp<int64_t>(private_panels / (16 * threads), 1, share_a ? 4 : 8);
    chunks = ceil_div(private_panels, chunk);
    const int64_t shared_panel_floats = (share_a ? kRows : kColumns) * depth;
    pack_grain = std::clamp<int64_t>(kPackGrain / std::max<int64_t>(1, shared_panel_floats), 1,
                                     std::max<int64_t>(1, shared_panels));
    pack_items = ceil_div(shared_panels, pack_grain);
    shared_floats = round_up((share_a ? m : column_panels * kColumns) * depth, 16);
    private_floats = round_up(chunk * (share_a ? kColumns : kRows) * depth, 16);
    progress_floats = stages > 1 ? round_up(chunks, 16) : 0;
  }
  int64_t floats(int64_t threads) const {
    return std::min(stages, kRing) * shared_floats + threads * private_floats + progress_floats + 16;
  }
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Spins, then yields: the awaited task is at work, unless its thread has lost the core.
template <class Ready>
void wait_until(Ready ready) {
  for (int spins = 0; !ready(); ++spins) {
    if (spins > 1000) std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

class BlockedGemm {
 public:
  BlockedGemm(const Gemm& g, const Plan& plan, float* workspace, int64_t threads)
      : g_(g), plan_(plan), shared_(aligned(workspace)) {
    private_ = shared_ + std::min(plan.stages, kRing) * plan.shared_floats;
    progress_ = reinterpret_cast<int32_t*>(private_ + threads * plan.private_floats);
    if (plan.stages > 1) std::fill_n(progress_, plan.chunks, 0);
  }

  // The part of one thread.
  void work(int64_t rank) {
    const int64_t p = plan_.pack_items, x = plan_.chunks;
    const int64_t tasks = plan_.stages * (p + x);
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      // The order: pack 0 | pack 1, multiply 0 | pack 2, multiply 1 | ... | multiply of the last stage.
      if (task < p) {
        pack_shared(0, task);
        continue;
      }
      const int64_t round = (task - p) / (p + x), at = (task - p) % (p + x);
      const bool last = round == plan_.stages - 1;
      if (!last && at < p)
        pack_shared(round + 1, at);
      else
        multiply(round, last ? at : at - p, private_ + rank * plan_.private_floats);
    }
  }

 private:
  Range depth(int64_t stage) const {
    return {std::min(g_.k, stage * plan_.depth), std::min(g_.k, (stage + 1) * plan_.depth)};
  }
  float* shared(int64_t stage) const { return shared_ + stage % kRing * plan_.shared_floats; }

  void pack_a(int64_t panel, Range k, float* out) const {
    const int64_t row = plan_.row_panels.begin(panel), rows = plan_.row_panels.begin(panel + 1) - row;
    const MatrixView& a = g_.a;
    const bool along_k = a.column_stride == 1;
    microkernel::pack_rows(along_k, a.data + row * a.row_stride + k.begin * a.column_stride,
                           along_k ? a.row_stride : a.column_stride, rows, k.size(), out);
  }
  void pack_b(int64_t panel, Range k, float* out) const {
    const MatrixView& b = g_.b;
    const int64_t column = panel * kColumns, columns = std::min<int64_t>(kColumns, g_.n - column);
    const bool along_k = b.column_stride != 1;
    microkernel::pack_columns(along_k, b.data + column * b.column_stride + k.begin * b.row_stride,
                              along_k ? b.column_stride : b.row_stride, columns, k.size(), out);
  }

  void pack_shared(int64_t stage, int64_t item) {
    std::atomic<int64_t>& done = packed_[stage % kRing];
    if (stage >= kRing) {  // the stage that had this buffer before
      const int64_t wanted = stage / kRing * plan_.chunks;
      wait_until([&] { return multiplied_[stage % kRing].load(std::memory_order_acquire) >= wanted; });
    }
    const Range k = depth(stage);
    const int64_t panels = plan_.share_a ? plan_.row_panels.count : plan_.column_panels;
    const int64_t end = std::min(panels, (item + 1) * plan_.pack_grain);
    for (int64_t panel = item * plan_.pack_grain; panel < end; ++panel) {
      if (plan_.share_a)
        pack_a(panel, k, shared(stage) + plan_.row_panels.begin(panel) * k.size());
      else
        pack_b(panel, k, shared(stage) + panel * kColumns * k.size());
    }
    done.fetch_add(1, std::memory_order_release);
  }

  void multiply(int64_t stage, int64_t chunk, float* own) {
    const Range k = depth(stage);
    const int64_t private_panels = plan_.share_a ? plan_.column_panels : plan_.row_panels.count;
    const Range mine = {chunk * plan_.chunk, std::min(private_panels, (chunk + 1) * plan_.chunk)};
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
      if (plan_.share_a)
        pack_b(panel, k, own + (panel - mine.begin) * kColumns * k.size());
      else
        pack_a(panel, k, own + own_row_offset(panel, mine) * k.size());
    }
    const int64_t wanted = (stage / kRing + 1) * plan_.pack_items;
    wait_until([&] { return packed_[stage % kRing].load(std::memory_order_acquire) >= wanted; });
    std::atomic_ref<int32_t> progress(progress_[plan_.stages > 1 ? chunk : 0]);
    if (stage > 0) wait_until([&] { return progress.load(std::memory_order_acquire) >= stage; });

    if (plan_.share_a) {
      for (int64_t i = 0; i < plan_.row_panels.count; ++i)
        for (int64_t j = mine.begin; j < mine.end; ++j)
          tile(stage, k, i, j, shared(stage) + plan_.row_panels.begin(i) * k.size(),
               own + (j - mine.begin) * kColumns * k.size());
    } else {
      for (int64_t j = 0; j < plan_.column_panels; ++j)
        for (int64_t i = mine.begin; i < mine.end; ++i)
          tile(stage, k, i, j, own + own_row_offset(i, mine) * k.size(), shared(stage) + j * kColumns * k.size());
    }
    if (plan_.stages > 1) {
      progress.store(static_cast<int32_t>(stage + 1), std::memory_order_release);
      multiplied_[stage % kRing].fetch_add(1, std::memory_order_release);
    }
  }

  int64_t own_row_offset(int64_t panel, Range mine) const {
    return plan_.row_panels.begin(panel) - plan_.row_panels.begin(mine.begin);
  }

  void tile(int64_t stage, Range k, int64_t row_panel, int64_t column_panel, const float* a, const float* b) const {
    const int64_t row = plan_.row_panels.begin(row_panel), rows = plan_.row_panels.begin(row_panel + 1) - row;
    const int64_t column = column_panel * kColumns, columns = std::min<int64_t>(kColumns, g_.n - column);
    const int64_t at = row * g_.c_stride + column;
    const float* addend = stage > 0 ? g_.c + at : g_.addend ? g_.addend + at : nullptr;
    microkernel::multiply_tile(rows, {k.size(), a, rows, b, kColumns, g_.c + at, g_.c_stride, addend, columns});
    if (g_.epilogue.apply && stage == plan_.stages - 1)
      for (int64_t i = 0; i < rows; ++i)
        g_.epilogue.apply(g_.epilogue.context, g_.c + at + i * g_.c_stride, row + i, column, columns);
  }

  const Gemm& g_;
  const Plan& plan_;
  float* shared_;
  float* private_;
  int32_t* progress_;  // for each chunk the stages it has behind it
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> packed_[kRing] = {};  // claims done, over all stages that had the buffer
  alignas(64) std::atomic<int64_t> multiplied_[kRing] = {};
};

// The product for few rows: each row of the transposed B is read once, straight from memory, against all rows of A.
template <int Rows, int Columns>
void dot_products(const Gemm& g, int64_t column) {
  Vec sum[Rows][Columns] = {};
  const float* a = g.a.data;
  const float* b = g.b.data + column * g.b.column_stride;
  int64_t k = 0;
  for (; k + kLanes <= g.k; k += kLanes) {
    Vec b_part[Columns];
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) {
      b_part[j] = simd::load(b + j * g.b.column_stride + k);
      __builtin_prefetch(b + (Columns + j) * g.b.column_stride + k);  // of the next call
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Vec a_part = simd::load(a + i * g.a.row_stride + k);
#pragma GCC unroll 8
      for (int j = 0; j < Columns; ++j) sum[i][j] += a_part * b_part[j];
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Columns; ++j) {
      Vec total = sum[i][j];
      if (k < g.k)
        total += simd::load_part(a + i * g.a.row_stride + k, g.k - k) *
                 simd::load_part(b + j * g.b.column_stride + k, g.k - k);
      const float product = simd::reduce_add(total);
      const int64_t at = i * g.c_stride + column + j;
      g.c[at] = g.addend ? g.addend[at] + product : product;
    }
}

template <int Rows>
void small_columns(const Gemm& g, int64_t begin, int64_t end) {
  constexpr int kStep = Rows == 1 ? 8 : Rows <= 4 ? 4 : 2;
  int64_t j = begin;
  for (; j + kStep <= end; j += kStep) dot_products<Rows, kStep>(g, j);
  for (; j < end; ++j) dot_products<Rows, 1>(g, j);
  if (g.epilogue.apply)
    for (int64_t i = 0; i < Rows; ++i)
      g.epilogue.apply(g.epilogue.context, g.c + i * g.c_stride + begin, i, begin, end - begin);
}

bool is_small(const Gemm& g) { return g.m <= kSmallRows && g.a.column_stride == 1 && g.b.row_stride == 1; }

void small_block(const Gemm& g, int64_t begin, int64_t end) {
  switch (g.m) {
    case 1: return small_columns<1>(g, begin, end);
    case 2: return small_columns<2>(g, begin, end);
    case 3: return small_columns<3>(g, begin, end);
    case 4: return small_columns<4>(g, begin, end);
    case 5: return small_columns<5>(g, begin, end);
    case 6: return small_columns<6>(g, begin, end);
    case 7: return small_columns<7>(g, begin, end);
    default: return small_columns<8>(g, begin, end);
  }
}

}  // namespace

int64_t gemm_workspace(int64_t m, int64_t n, int64_t k, int threads) {
  return m > 0 && n > 0 ? Plan(m, n, k, threads).floats(threads) : 0;
}

void gemm(ThreadTeam& threads, const Gemm& g, float* workspace) {
  if (g.m <= 0 || g.n <= 0) return;
  const bool alone = static_cast<double>(g.m) * g.n * g.k < kSerialWork;
  if (is_small(g)) {
    if (alone) return small_block(g, 0, g.n);
    return threads.for_blocks(g.n, kSmallChunk, [&](int64_t begin, int64_t end) { small_block(g, begin, end); });
  }
  const Plan plan(g.m, g.n, g.k, threads.size());
  BlockedGemm blocked(g, plan, workspace, threads.size());
  if (alone) return blocked.work(0);
  threads.run([&](int rank) { blocked.work(rank); });
}

int64_t gemm_serial_workspace(int64_t m, int64_t n, int64_t k) { return gemm_workspace(m, n, k, 1); }

void gemm_serial(const Gemm& g, float* workspace) {
  if (g.m <= 0 || g.n <= 0) return;
  if (is_small(g)) return small_block(g, 0, g.n);
  const Plan plan(g.m, g.n, g.k, 1);
  BlockedGemm blocked(g, plan, workspace, 1);
  blocked.work(0);
}

}  // namespace llm
