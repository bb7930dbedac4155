// Few rows: reading the weights takes all the time. A core has few outstanding loads and the processor reads ahead within a
// page only, so one stream does not reach the bandwidth of memory: several panels that lie far apart are walked at once,
// which also keeps enough chains of additions going. More rows: a stage of a panel is made floats, which the microkernel
// multiplies with all rows while they are in the first-level cache. Meanwhile the next stage or panel is prefetched, evenly
// over the tiles.
#include "llm/device/gemm_panels_cpu.h"

#include <algorithm>
#include <array>
#include <utility>

#include "llm/base/error.h"
#include "llm/base/rounding.h"
#include "llm/device/cache_size.h"
#include "llm/device/microkernel_cpu.h"
#include "llm/device/pack_cpu.h"
#include "llm/device/panel_kernel_cpu.h"

namespace llm {
namespace {

using microkernel::RowPanels;
using panels::Stage;
using simd::kLanes;

static_assert(kPanelColumns == microkernel::kColumns);

constexpr bool kManyRegisters = microkernel::kRows >= 12;  // 32 and not 16
constexpr int kMostStreamedRows = kManyRegisters ? 5 : 3;
// As many panels at once as the registers hold sums of, and constants.
template <class Reader>
constexpr int panels_at_once(int rows) {
  int panels = 4;
  while (panels > 1 && 2 * panels * (rows + Reader::kConstants) > (kManyRegisters ? 28 : 12)) panels /= 2;
  return panels;
}
constexpr int64_t kChunk = 8;  // panels that meet the rows of a stage in L2

class PanelGemm {
 public:
  PanelGemm(const Gemm& g, float* workspace)
      : g_(g),
        depth_(gemm_stage_depth(g.k)),
        stages_(std::max<int64_t>(1, ceil_div(g.k, std::max<int64_t>(depth_, 1)))),
        count_(ceil_div(g.n, kPanelColumns)),
        bytes_(panel_bytes(g.packed_b.dtype, g.k)),
        workspace_(workspace) {}

  int64_t count() const { return count_; }
  bool is_few() const { return g_.m <= kMostStreamedRows && !g_.packed_b.in_rows; }

  // Panels [begin, end).
  void multiply(int64_t begin, int64_t end, int rank) const {
    if (is_few()) {
      panels::with_reader(g_.packed_b.dtype, [&](auto reader) { few<decltype(reader)>(begin, end); });
      const int64_t column = begin * kPanelColumns;
      if (g_.epilogue.apply)
        g_.epilogue.apply(g_.epilogue.context,
                          {g_.c + column, g_.c_stride, 0, g_.m, column, std::min(g_.n, end * kPanelColumns) - column});
      return;
    }
    float* const wide = workspace_ + rank * floats_of_thread(g_.k);
    const int64_t groups = ceil_div(g_.m, rows_together());
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * g_.m / groups, last = (group + 1) * g_.m / groups;
      panels::with_reader(g_.packed_b.dtype,
                          [&](auto reader) { many<decltype(reader)>(first, last - first, begin, end, wide); });
    }
  }

  static int64_t floats_of_thread(int64_t k) { return kPanelColumns * round_up(gemm_stage_depth(k), 16); }

 private:
  // A third of L2 holds the elements of A in one stage.
  int64_t rows_together() const {
    const int64_t bytes = std::max<int64_t>(depth_, 1) * static_cast<int64_t>(sizeof(float));
    return std::max<int64_t>(second_level_cache_bytes() / 3 / bytes / microkernel::kRows, 1) * microkernel::kRows;
  }
  int64_t columns_of(int64_t panel) const { return std::min<int64_t>(kPanelColumns, g_.n - panel * kPanelColumns); }

  template <class Reader>
  const std::byte* weights_at(int64_t panel, int64_t k) const {
    return g_.packed_b.data + panel * bytes_ + k / kBlockValues * Reader::kBlockBytes;
  }

  // All that a kernel needs for rows from `row` on, `panels` from `panel` on that lie `apart`, in one stage.
  template <class Reader>
  Stage stage_of(int64_t stage, int64_t row, int64_t panel, int64_t panels, int64_t apart) const {
    const int64_t k = stage * depth_, at = row * g_.c_stride + panel * kPanelColumns;
    Stage s{};
    s.k = std::min(depth_, g_.k - k);
    s.a = g_.a.data + row * g_.a.row_stride + k, s.a_stride = g_.a.row_stride;
    s.at = weights_at<Reader>(panel, k), s.apart = apart * bytes_;
    s.c = g_.c + at, s.c_stride = g_.c_stride, s.c_apart = apart * kPanelColumns;
    if (stage > 0)
      s.addend = s.c, s.addend_stride = g_.c_stride;
    else if (g_.addend)
      s.addend = g_.addend + row * g_.addend_stride + panel * kPanelColumns, s.addend_stride = g_.addend_stride;
    s.columns = columns_of(panel + (panels - 1) * apart);
    return s;
  }

  template <class Reader>
  void few(int64_t begin, int64_t end) const {
    panels::for_constants<kMostStreamedRows>([&](auto i) {
      constexpr int kRows = i + 1, kAtOnce = panels_at_once<Reader>(kRows);
      if (g_.m != kRows) return;
      const int64_t apart = (end - begin) / kAtOnce;
      for (int64_t panel = begin; panel < begin + apart; ++panel)
        for (int64_t stage = 0; stage < stages_; ++stage)
          panels::multiply<Reader, kRows, kAtOnce>(stage_of<Reader>(stage, 0, panel, kAtOnce, apart));
      for (int64_t panel = begin + kAtOnce * apart; panel < end; ++panel)
        for (int64_t stage = 0; stage < stages_; ++stage)
          panels::multiply<Reader, kRows, 1>(stage_of<Reader>(stage, 0, panel, 1, 0));
    });
  }

  template <class Reader>
  void many(int64_t row, int64_t rows, int64_t begin, int64_t end, float* wide) const {
    constexpr bool kInPlace = std::is_same_v<Reader, panels::Fp32>;
    const bool in_rows = g_.packed_b.in_rows;
    // Rows of A whose distance is a multiple of 4 KiB share one set of the first-level cache.
    const int64_t most = g_.a.row_stride % 1024 == 0 ? std::min(microkernel::kRows, 10) : microkernel::kRows;
    const RowPanels row_panels(rows, most);
    const int64_t tiles = row_panels.count;
    for (int64_t stage = 0; stage < stages_; ++stage)
      for (int64_t panel = begin; panel < end; ++panel) {
        const bool last_panel = panel + 1 == end, last = stage + 1 == stages_;
        const std::byte* const next = weights_at<Reader>(last_panel ? (last ? end : begin) : panel + 1,
                                                         (last_panel ? (last ? 0 : stage + 1) : stage) * depth_);
        const int64_t step = ceil_div(Reader::kBlockBytes, kBlockValues * tiles * 4) * 4;  // bytes of it for each k
        const Stage s = stage_of<Reader>(stage, row, panel, 1, 0);
        if (in_rows)
          microkernel::pack_columns(
              true, reinterpret_cast<const bf16*>(g_.packed_b.data) + panel * kPanelColumns * g_.k + stage * depth_,
              g_.k, s.columns, s.k, wide);
        else if (!kInPlace)
          panels::widen<Reader>(s.at, s.k, wide);
        microkernel::Tile t{};
        t.k = s.k, t.a_row = s.a_stride, t.a_step = 1, t.b_step = kPanelColumns, t.c_stride = s.c_stride;
        t.addend_stride = s.addend_stride, t.columns = s.columns;
        t.b = kInPlace ? reinterpret_cast<const float*>(s.at) : wide;
        t.fetch_step = step / 4, t.fetch_block = 16 * t.fetch_step;
        for (int64_t i = 0; i < tiles; ++i) {
          const int64_t at = row_panels.begin(i), height = row_panels.begin(i + 1) - at;
          t.a = s.a + at * s.a_stride, t.c = s.c + at * s.c_stride;
          t.addend = s.addend ? s.addend + at * s.addend_stride : nullptr;
          if (!in_rows) t.fetch = reinterpret_cast<const float*>(next) + i * s.k * t.fetch_step;
          if (last && g_.epilogue.beside)
            t.beside = g_.epilogue.beside + (row + at) * g_.c_stride + panel * kPanelColumns;
          microkernel::multiply_tile(height, t);
          if (last && g_.epilogue.apply)
            g_.epilogue.apply(g_.epilogue.context,
                              {t.c, g_.c_stride, row + at, height, panel * kPanelColumns, s.columns});
        }
      }
  }

  const Gemm& g_;
  const int64_t depth_, stages_, count_, bytes_;
  float* const workspace_;
};

}  // namespace

int64_t gemm_panels_workspace(int64_t k, int threads) { return threads * PanelGemm::floats_of_thread(k); }

void gemm_panels(ThreadTeam& threads, const Gemm& g, bool alone, float* workspace) {
  const PanelGemm product(g, workspace);
  const int64_t of_thread = product.count() / (4 * threads.size());
  const int64_t width = product.is_few() ? (alone ? product.count() : std::max<int64_t>(of_thread, 4))
                                         : std::clamp<int64_t>(of_thread, 1, kChunk);
  const auto item = [&](int64_t i, int rank) {
    product.multiply(i * width, std::min(product.count(), (i + 1) * width), rank);
  };
  const int64_t items = ceil_div(product.count(), width);
  if (!alone) return threads.for_items(items, item);
  for (int64_t i = 0; i < items; ++i) item(i, 0);
}

}  // namespace llm
