// The blocked product. C is cut into blocks, each of which one thread computes alone: no thread waits for another. A
// block is a few column panels wide. For each stage of k the thread packs the block's piece of B, then multiplies it
// with A, row panel after row panel. The microkernel broadcasts A's elements, so a row-major A is read in place. A
// transposed A is packed a few row panels at a time: its elements of one k are a part of a row that lies on a page of
// its own, which all column panels would look up again. The first column panel reads it in place and packs it on the way.
// Where the elements of a row of B are contiguous, the first row panel does the same with B.
#include "llm/device/gemm_cpu.h"

#include <algorithm>
#include <limits>

#include "llm/base/error.h"
#include "llm/base/quantize_blocks.h"
#include "llm/base/rounding.h"
#include "llm/device/cache_size.h"
#include "llm/device/gemm_few_rows_cpu.h"
#include "llm/device/gemm_panels_cpu.h"
#include "llm/device/gemm_rounded_cpu.h"
#include "llm/device/microkernel_cpu.h"
#include "llm/device/pack_cpu.h"

namespace llm {
namespace {

using microkernel::kColumns;
using microkernel::kRows;
using microkernel::RowPanels;
using simd::kLanes;

// How a product is cut: the steps of k in a stage, the most column panels of a block, and the most row panels that are
// multiplied with one of them before the next one's turn. With AVX-512 a row panel of a row-major A stays in L1 and meets
// all column panels, which stay in L2. Otherwise a column panel of B meets many row panels, which stay in L2: tiles of fewer
// registers read more of B for each multiply-add, and a transposed A is packed, once for all column panels of a block.
struct Cut {
  int64_t depth, panels, row_panels;
};
#if defined(__AVX512F__)
constexpr Cut kRowMajor = {768, 2, 1}, kTransposed = {384, 24, 16};
#else
constexpr Cut kRowMajor = {384, 24, 32}, kTransposed = {384, 24, 32};
#endif
constexpr const Cut& cut_of(bool a_row_major) { return a_row_major ? kRowMajor : kTransposed; }
constexpr int64_t kDeepest = std::max(kRowMajor.depth, kTransposed.depth);
constexpr int64_t kWidest = std::max(kRowMajor.panels, kTransposed.panels);
// What packing a row of a transposed A costs, in panels of that row.
constexpr double kRowPackingPanels = 0.8;
constexpr int64_t kMostRows = 4096;  // of a block: so many rows of A stay in L3 for the blocks beside it
constexpr int64_t kBlocksPerThread = 2;
// The fewest rows of a block for which packing its piece of B pays: in a pass of its own, and on the way.
constexpr int64_t kLeastRowsPacking = 256, kLeastRowsOnTheWay = 128;
// The next block's piece of B is prefetched during the last so many row panels: lines that come sooner are evicted
// again.
constexpr int64_t kFetchingPanels = 6;
constexpr int64_t kTrickleTiles = 16 / microkernel::kTrickle;  // tiles that it takes to fetch 16 columns of a panel
constexpr double kSerialWork = 1e6;  // multiply-adds below which waking the team costs more time than it saves

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The i-th of `count` nearly equal parts of [0, n).
Range part(int64_t n, int64_t count, int64_t i) { return {i * n / count, (i + 1) * n / count}; }

// The steps of k in each of the fewest stages of at most `most` steps, a multiple of `unit`.
int64_t even_depth(int64_t k, int64_t most, int64_t unit) {
  return round_up(ceil_div(k, std::max<int64_t>(1, ceil_div(k, most))), unit);
}

// How C is cut. Of all this only the stages affect the bits, and they depend on k and the layout of A alone.
struct Plan {
  int64_t depth, stages;
  int64_t column_panels, column_blocks, row_blocks;
  int64_t panels;            // of the widest block
  int64_t room_of_rows = 0;  // for a transposed A

  Plan(int64_t m, int64_t n, int64_t k, bool a_row_major, bool b_along_k, int64_t threads)
      : column_panels(ceil_div(n, kColumns)) {
    depth = a_row_major ? gemm_stage_depth(k) : even_depth(k, kTransposed.depth, 16);
    stages = std::max<int64_t>(1, ceil_div(k, std::max<int64_t>(depth, 1)));
    const int64_t least_rows = b_along_k ? kLeastRowsPacking : kLeastRowsOnTheWay;
    const int64_t most_row_blocks = std::max<int64_t>(1, m / least_rows);
    // Where A (m, k) is larger than B (k, n), each thread gets rows of its own, as in the ops before and after.
    const int64_t least_row_blocks = std::max(ceil_div(m, kMostRows), m > n ? std::min(most_row_blocks, threads) : 1);
    // Chooses, among the cuts into enough blocks, the one whose slowest thread has the least work. Work is counted in
    // rows times panels; packing a panel counts as some more rows, and packing a row as a part of a panel.
    const int64_t wanted = std::min(threads > 1 ? kBlocksPerThread * threads : 1, column_panels * most_row_blocks);
    const int64_t widest = cut_of(a_row_major).panels;
    double least = std::numeric_limits<double>::max();
    for (int64_t width = widest; width >= 1; --width)
      for (int64_t rows = least_row_blocks; rows <= most_row_blocks; ++rows) {
        const int64_t of_columns = ceil_div(column_panels, width), blocks = of_columns * rows;
        const int64_t of_thread = ceil_div(blocks, threads);
        const auto panels_of_thread = static_cast<double>(std::min(of_thread * width, column_panels * rows));
        const double height = static_cast<double>(ceil_div(m, rows));
        double time = panels_of_thread * (height + static_cast<double>(least_rows) / 10);
        if (!a_row_major) time += static_cast<double>(of_thread) * height * kRowPackingPanels;
        if (blocks < wanted || time >= least) continue;
        least = time, row_blocks = rows, column_blocks = of_columns;
      }
    panels = ceil_div(column_panels, column_blocks);
    if (!a_row_major) room_of_rows = floats_of_rows(m, depth);
  }
  // A third of L2 holds the row panels that meet one column panel after the other.
  int64_t row_panels_together(bool a_row_major) const {
    const int64_t bytes = kRows * std::max<int64_t>(depth, 1) * static_cast<int64_t>(sizeof(float));
    return std::clamp<int64_t>(second_level_cache_bytes() / 3 / bytes, 1, cut_of(a_row_major).row_panels);
  }
  // Room for the row panels of a transposed A that are packed together, each with what a copy writes behind it.
  static int64_t floats_of_rows(int64_t m, int64_t depth) {
    return std::min(ceil_div(m, kRows), kTransposed.row_panels) * packed_panel(depth);
  }
  static int64_t packed_panel(int64_t depth) { return depth * kRows + microkernel::kRowsMoved; }

  int64_t blocks() const { return row_blocks * column_blocks; }
  int64_t floats_of_panels() const { return panels * kColumns * depth; }
  int64_t floats_of_thread() const { return floats_of_panels() + round_up(room_of_rows, 16); }
};

class BlockedGemm {
 public:
  BlockedGemm(const Gemm& g, const Plan& plan, float* workspace) : g_(g), plan_(plan), packed_(aligned(workspace)) {}

  // Computes one block of C. Blocks of successive numbers use the same rows of A.
  void multiply(int64_t block, int rank) const {
    float* packed = packed_ + rank * plan_.floats_of_thread();
    const Range panels = panels_of(block);
    const Range rows = part(g_.m, plan_.row_blocks, block / plan_.column_blocks);
    const RowPanels row_panels(rows.size(), most_rows_);
    const bool packs_a = !a_row_major_ && panels.size() > 1;
    const int64_t together = plan_.row_panels_together(a_row_major_);
    float* const packed_a = packed + plan_.floats_of_panels();
    for (int64_t stage = 0; stage < plan_.stages; ++stage) {
      const bool last = stage + 1 == plan_.stages;
      const Range k = {stage * plan_.depth, std::min(g_.k, (stage + 1) * plan_.depth)};
      const auto pack_of = [&](int64_t panel) { return packed + (panel - panels.begin) * kColumns * k.size(); };
      for (int64_t panel = panels.begin; panel < panels.end; ++panel)
        if (const Piece p = piece(panel, k.begin); !packs_on_the_way(p))
          microkernel::pack_columns(b_along_k_, p.data, b_stride_, p.columns, k.size(), pack_of(panel));
      // The piece of B that is likely to be read next. The rows of B lie far apart, so the hardware does not prefetch
      // them.
      const Piece next = last ? piece(panels_of(block + 1).begin, 0) : piece(panels.begin, k.end);
      const int64_t half_panels = 2 * panels.size();  // of 16 columns, a cache line of a row of B
      const bool trickles =
          a_row_major_ && !b_along_k_ && row_panels.count * panels.size() >= kTrickleTiles * half_panels;
      int64_t fetches = trickles ? 0 : half_panels, tiles_left = row_panels.count * panels.size();
      for (int64_t first = 0, end; first < row_panels.count; first = end) {
        end = std::min(first + together, row_panels.count);
        // All of these rows are above the diagonal.
        if (g_.symmetric && panels.begin * kColumns >= rows.begin + row_panels.begin(end)) continue;
        for (int64_t panel = panels.begin; panel < panels.end; ++panel)
          for (int64_t i = first; i < end; ++i) {
            const int64_t row = rows.begin + row_panels.begin(i);
            const int64_t height = row_panels.begin(i + 1) - row_panels.begin(i);
            if (g_.symmetric && panel * kColumns >= row + height) continue;  // above the diagonal
            const float* const a = g_.a.data + row * g_.a.row_stride + k.begin * g_.a.column_stride;
            const Piece p = piece(panel, k.begin);
            const int64_t at = row * g_.c_stride + panel * kColumns;
            microkernel::Tile t = {k.size(),       a,           g_.a.row_stride, g_.a.column_stride,
                                   pack_of(panel), kColumns,    g_.c + at,       g_.c_stride,
                                   g_.c + at,      g_.c_stride, p.columns};
            if (packs_a) {
              float* const packed_rows = packed_a + (i - first) * Plan::packed_panel(k.size());
              const bool at_the_edge = row + microkernel::kRowsMoved > g_.m;  // more cannot be read
              if (panel == panels.begin && at_the_edge) pack_rows(row, height, k, packed_rows);
              if (panel == panels.begin && !at_the_edge)
                t.a_copy = packed_rows;
              else
                t.a = packed_rows, t.a_step = kRows;
            }
            if (stage == 0) {
              t.addend = g_.addend ? g_.addend + row * g_.addend_stride + panel * kColumns : nullptr;
              t.addend_stride = g_.addend_stride;
            }
            if (last && g_.epilogue.beside) t.beside = g_.epilogue.beside + at;
            if (g_.row_sums && panel == 0)
              t.row_sums = g_.row_sums + row, t.add_to_row_sums = stage > 0 || g_.add_to_row_sums;
            if (i == 0 && packs_on_the_way(p)) t.b = p.data, t.b_step = b_stride_, t.b_copy = pack_of(panel);
            if (trickles && --tiles_left < kTrickleTiles * half_panels) {
              const int64_t step = tiles_left % kTrickleTiles * (k.size() / kTrickleTiles);
              t.trickle = next.data + tiles_left / kTrickleTiles * 16 + step * b_stride_;
              t.trickle_step = b_stride_;
            }
            // The rows of A that are read next from where they are.
            const int64_t next_rows = i + (packs_a ? together : 1);
            if (panel == (packs_a ? panels.end - 1 : panels.begin) && next_rows < row_panels.count) {
              t.fetch = a + (row_panels.begin(next_rows) - row_panels.begin(i)) * g_.a.row_stride;
              t.fetch_step = a_row_major_ ? g_.a.row_stride : g_.a.column_stride;
              t.fetch_block = 16 * g_.a.column_stride;
            } else if (fetches > 0 && row_panels.count - i <= kFetchingPanels) {
              t.fetch = next.data + --fetches * 16 * g_.b.column_stride;
              t.fetch_step = b_stride_;
              t.fetch_block = 16 * g_.b.row_stride;
            }
            microkernel::multiply_tile(height, t);
            if (last && g_.epilogue.apply)
              g_.epilogue.apply(g_.epilogue.context, {t.c, g_.c_stride, row, height, panel * kColumns, p.columns});
          }
      }
    }
  }

 private:
  // The piece of B of one column panel in one stage.
  struct Piece {
    const float* data;
    int64_t columns;
  };
  Range panels_of(int64_t block) const {
    return part(plan_.column_panels, plan_.column_blocks, block % plan_.column_blocks);
  }
  Piece piece(int64_t panel, int64_t k) const {
    return {g_.b.data + k * g_.b.row_stride + panel * kColumns * g_.b.column_stride,
            std::min<int64_t>(kColumns, g_.n - panel * kColumns)};
  }
  // Copies a row panel of a transposed A: the elements of one k lie side by side, in kRows places whatever the panel's
  // height, and those of the next k behind them.
  void pack_rows(int64_t row, int64_t height, Range k, float* packed) const {
    for (int64_t step = k.begin; step < k.end; ++step, packed += kRows)
      std::copy_n(g_.a.data + row + step * g_.a.column_stride, height, packed);
  }
  bool packs_on_the_way(Piece p) const { return !b_along_k_ && p.columns == kColumns && !g_.symmetric; }

  const Gemm& g_;
  const Plan& plan_;
  float* packed_;
  const bool a_row_major_ = g_.a.column_stride == 1, b_along_k_ = g_.b.column_stride != 1;
  const int64_t b_stride_ = b_along_k_ ? g_.b.column_stride : g_.b.row_stride;
  // Rows of A whose distance is a multiple of 4 KiB share one set of the first-level cache, so a panel has no more of
  // them than the cache has ways.
  const int64_t most_rows_ = a_row_major_ && g_.a.row_stride % 1024 == 0 ? std::min(kRows, 10) : kRows;
};

// Fills the part above the diagonal of a symmetric C, in rows [begin, end), from the part below it. `begin` is a
// multiple of kLanes, and so is `end` unless it is the last row's.
void mirror_rows(const Gemm& g, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = simd::kLanes;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t rows = std::min(kBlock, end - i);
    for (int64_t j = i; j < g.n; j += kBlock) {
      if (j == i || j + kBlock > g.n) {  // at the diagonal, or at the edge
        for (int64_t to = i; to < i + rows; ++to)
          for (int64_t from = std::max(to + 1, j); from < std::min(g.n, j + kBlock); ++from)
            g.c[to * g.c_stride + from] = g.c[from * g.c_stride + to];
        continue;
      }
      simd::Vec block[kBlock];
      for (int64_t from = 0; from < kBlock; ++from) block[from] = simd::load(g.c + (j + from) * g.c_stride + i);
      simd::transpose(block);
      for (int64_t to = 0; to < kBlock; ++to) simd::store(g.c + (i + to) * g.c_stride + j, block[to]);
    }
  }
}

}  // namespace

int64_t gemm_stage_depth(int64_t k) { return even_depth(k, kRowMajor.depth, kBlockValues); }

int64_t gemm_packed_workspace(DType dtype, int64_t m, int64_t k, int threads) {
  return rounds_activations(dtype) ? gemm_rounded_workspace(m, k, threads) : gemm_panels_workspace(k, threads);
}

int64_t gemm_workspace(int64_t m, int64_t n, int64_t k, int threads) {
  if (m <= 0 || n <= 0) return 0;
  // A small product is computed by one thread alone, in wider blocks, so a team of 1 is counted too.
  int64_t floats = 0;
  for (const bool row_major : {true, false})
    for (const bool along_k : {true, false})
      for (const int team : {1, threads})
        floats = std::max(floats, team * Plan(m, n, k, row_major, along_k, team).floats_of_thread());
  return floats + 16;
}

int64_t gemm_workspace_up_to(int64_t m, int64_t n, int64_t k, int threads) {
  const int64_t panels = std::min(ceil_div(n, kColumns), kWidest);
  const int64_t depth = round_up(std::min(k, kDeepest), kBlockValues);
  return threads * (panels * kColumns * depth + round_up(Plan::floats_of_rows(m, depth), 16)) + 16;
}

void gemm(ThreadTeam& threads, const Gemm& g, float* workspace) {
  if (g.m <= 0 || g.n <= 0) return;
  const bool alone = static_cast<double>(g.m) * g.n * g.k < kSerialWork;
  if (g.symmetric && (g.m != g.n || g.addend || g.epilogue.apply || g.row_sums))
    fail("gemm: a symmetric product is square, without addend, epilogue and sums");
  if (g.packed_b.data) {
    if (g.a.column_stride != 1 || g.row_sums || g.symmetric)
      fail("gemm: packed weights are multiplied with a row-major A, without row sums, and give no symmetric product");
    const auto multiply = rounds_activations(g.packed_b.dtype) ? gemm_rounded : gemm_panels;
    return multiply(threads, g, alone || threads.size() == 1, workspace);
  }
  if (g.m <= kMostFewRows && g.a.column_stride == 1 && g.b.row_stride == 1 && g.n > 1 && !g.row_sums && !g.symmetric)
    return gemm_few_rows(threads, g, alone || threads.size() == 1);
  const int team = alone ? 1 : threads.size();
  const Plan plan(g.m, g.n, g.k, g.a.column_stride == 1, g.b.column_stride != 1, team);
  const BlockedGemm blocked(g, plan, workspace);
  if (alone) {
    for (int64_t block = 0; block < plan.blocks(); ++block) blocked.multiply(block, 0);
    if (g.symmetric) mirror_rows(g, 0, g.m);
    return;
  }
  threads.for_items(plan.blocks(), [&](int64_t block, int rank) { blocked.multiply(block, rank); });
  if (g.symmetric) threads.for_blocks(g.m, kColumns, [&](int64_t begin, int64_t end) { mirror_rows(g, begin, end); });
}

}  // namespace llm
