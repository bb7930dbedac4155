// One row: the weights are widened on the way from memory, several panels at once. More rows: a stage of a panel is widened
// to whole units, which tiles of rows read from the first-level cache.
#include "llm/device/gemm_rounded_cpu.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "llm/base/error.h"
#include "llm/base/rounding.h"
#include "llm/device/cache_size.h"
#include "llm/device/rounded_kernel_cpu.h"

namespace llm {
namespace {

using namespace rounded;

constexpr bool kManyRegisters = microkernel::kRows >= 12;
constexpr int kTileRows = kManyRegisters ? 8 : 4;
constexpr int kPanelsAtOnce = kManyRegisters ? 4 : 2;
constexpr int64_t kStage = kLanes == 16 ? 8 : 12;  // blocks: about 12 KiB
constexpr int64_t kChunk = 8;                      // panels that meet the rows of a stage in L2

int64_t blocks_of(int64_t k) { return ceil_div(k, kBlockValues); }

constexpr int64_t units_of(bool is_8) { return is_8 ? Numbers8::kUnits : Numbers4::kUnits; }

template <class Numbers>
struct Tile {
  int64_t blocks;
  const WideBlock<Numbers>* weights;
  Row rows[kTileRows];
  float* c;
  int64_t c_stride;
  const float* first;  // what the sums begin with, or null: zero
  int64_t first_stride;
  int64_t columns;
  const std::byte* fetch;  // what is read next: so many bytes of it for each block and unit
  int64_t fetch_step;
};

void write(Vec sum, float* c, int64_t columns) {
  if (columns >= kLanes)
    simd::store(c, sum);
  else if (columns > 0)
    simd::store_part(c, sum, columns);
}
Vec read(const float* from, int64_t columns) {
  return !from || columns <= 0 ? Vec{} : columns >= kLanes ? simd::load(from) : simd::load_part(from, columns);
}

template <class Numbers, int Rows>
void multiply_tile(const Tile<Numbers>& t) {
  Vec sum[Rows][2];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
      sum[i][half] = read(t.first ? t.first + i * t.first_stride + half * kLanes : nullptr, t.columns - half * kLanes);
  const std::byte* fetch = t.fetch;
  for (int64_t b = 0; b < t.blocks; ++b) {
    const WideBlock<Numbers>& w = t.weights[b];
    const int32_t* a[Rows];
    typename Numbers::Sum block[Rows][2];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
      a[i] = t.rows[i].units + b * Numbers::kUnits, block[i][0] = block[i][1] = typename Numbers::Sum{};
#pragma GCC unroll 4
    for (int64_t u = 0; u < Numbers::kUnits; ++u) {
      __builtin_prefetch(fetch, 0, 2);
      fetch += t.fetch_step;
      const Shorts low = w.units[u][0], high = w.units[u][1];
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        const Shorts unit = broadcast_unit(a[i][u]);
        block[i][0] = Numbers::add(block[i][0], low, unit);
        block[i][1] = Numbers::add(block[i][1], high, unit);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        sum[i][half] = add_block(sum[i][half], Numbers::total(block[i][half], t.rows[i].offsets[b]), w.scales[half],
                                 t.rows[i].scales[b]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
      write(sum[i][half], t.c + i * t.c_stride + half * kLanes, t.columns - half * kLanes);
}

template <class Numbers>
using TileKernel = void (*)(const Tile<Numbers>&);
template <class Numbers, int... I>
constexpr std::array<TileKernel<Numbers>, sizeof...(I)> tile_kernels(std::integer_sequence<int, I...>) {
  return {&multiply_tile<Numbers, I + 1>...};
}

// One row times `Panels` panels that lie `apart` bytes apart: sums (Panels, 2), which begin with what is there.
template <class Numbers, int Panels>
void multiply_row(const Row& row, int64_t blocks, const std::byte* at, int64_t apart, Vec (&sums)[Panels][2]) {
  Vec sum[Panels][2];
#pragma GCC unroll 4
  for (int p = 0; p < Panels; ++p) sum[p][0] = sums[p][0], sum[p][1] = sums[p][1];
  for (int64_t b = 0; b < blocks; ++b, at += Numbers::kBlockBytes) {
    typename Numbers::Sum block[Panels][2] = {};
    const int32_t* const a = row.units + b * Numbers::kUnits;
    panels::for_constants<Numbers::kUnits>([&](auto u) __attribute__((always_inline)) {
      const Shorts unit = broadcast_unit(a[u]);
#pragma GCC unroll 4
      for (int p = 0; p < Panels; ++p)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
          block[p][half] =
              Numbers::add(block[p][half], Numbers::template unit<u>(at + p * apart + 2 * kPanelColumns, half), unit);
    });
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        sum[p][half] = add_block(sum[p][half], Numbers::total(block[p][half], row.offsets[b]),
                                 panels::widen_halves(at + p * apart + 2 * half * kLanes), row.scales[b]);
  }
#pragma GCC unroll 4
  for (int p = 0; p < Panels; ++p) sums[p][0] = sum[p][0], sums[p][1] = sum[p][1];
}

class RoundedGemm {
 public:
  RoundedGemm(const Gemm& g, int threads, float* workspace)
      : g_(g),
        blocks_(blocks_of(g.k)),
        count_(ceil_div(g.n, kPanelColumns)),
        bytes_(panel_bytes(g.packed_b.dtype, g.k)),
        is_8_(g.packed_b.dtype == DType::w8a8),
        wide_(aligned(workspace)),
        units_(reinterpret_cast<int32_t*>(wide_ + threads * kWideFloats)),
        offsets_(units_ + g.m * blocks_ * units_of(is_8_)),
        scales_(reinterpret_cast<float*>(offsets_ + g.m * blocks_)) {}

  static int64_t workspace(int64_t m, int64_t k, int threads) {
    return threads * kWideFloats + m * blocks_of(k) * (units_of(true) + 2) + 16;
  }
  int64_t count() const { return count_; }

  void round_rows(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i)
      round_activations(g_.a.data + i * g_.a.row_stride, g_.k, !is_8_, units_ + i * blocks_ * units_of(is_8_),
                        scales_ + i * blocks_, offsets_ + i * blocks_);
  }

  // Panels [begin, end).
  void multiply(int64_t begin, int64_t end, int rank) const {
    if (g_.m == 1) return is_8_ ? one<Numbers8>(begin, end) : one<Numbers4>(begin, end);
    const int64_t most = std::max<int64_t>(second_level_cache_bytes() / 3 / (kStage * kBlockValues * 2), kTileRows);
    const int64_t groups = ceil_div(g_.m, most);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * g_.m / groups, last = (group + 1) * g_.m / groups;
      is_8_ ? many<Numbers8>(first, last, begin, end, wide_ + rank * kWideFloats)
            : many<Numbers4>(first, last, begin, end, wide_ + rank * kWideFloats);
    }
  }

 private:
  static constexpr auto kWideFloats = kStage * static_cast<int64_t>(sizeof(WideBlock<Numbers8>) / sizeof(float));
  Row row_of(int64_t row, int64_t block) const {
    const int64_t at = row * blocks_ + block;
    return {units_ + at * units_of(is_8_), scales_ + at, offsets_ + at};
  }
  int64_t columns_of(int64_t panel) const { return std::min<int64_t>(kPanelColumns, g_.n - panel * kPanelColumns); }
  void finish(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    if (g_.epilogue.apply)
      g_.epilogue.apply(g_.epilogue.context,
                        {g_.c + row * g_.c_stride + column, g_.c_stride, row, rows, column, columns});
  }

  template <class Numbers, int Panels>
  void walk(int64_t panel, int64_t apart) const {
    Vec sums[Panels][2];
    for (int p = 0; p < Panels; ++p)
      for (int half = 0; half < 2; ++half)
        sums[p][half] = read(g_.addend ? g_.addend + (panel + p * apart) * kPanelColumns + half * kLanes : nullptr,
                             columns_of(panel + p * apart) - half * kLanes);
    multiply_row<Numbers, Panels>(row_of(0, 0), blocks_, g_.packed_b.data + panel * bytes_, apart * bytes_, sums);
    for (int p = 0; p < Panels; ++p)
      for (int half = 0; half < 2; ++half)
        write(sums[p][half], g_.c + (panel + p * apart) * kPanelColumns + half * kLanes,
              columns_of(panel + p * apart) - half * kLanes);
  }
  template <class Numbers>
  void one(int64_t begin, int64_t end) const {
    const int64_t apart = (end - begin) / kPanelsAtOnce;
    for (int64_t panel = begin; panel < begin + apart; ++panel) walk<Numbers, kPanelsAtOnce>(panel, apart);
    for (int64_t panel = begin + kPanelsAtOnce * apart; panel < end; ++panel) walk<Numbers, 1>(panel, 0);
    finish(0, 1, begin * kPanelColumns, std::min(g_.n, end * kPanelColumns) - begin * kPanelColumns);
  }

  template <class Numbers>
  void many(int64_t begin_row, int64_t end_row, int64_t begin, int64_t end, float* workspace) const {
    auto* const wide = reinterpret_cast<WideBlock<Numbers>*>(workspace);
    static constexpr auto kKernels = tile_kernels<Numbers>(std::make_integer_sequence<int, kTileRows>{});
    const microkernel::RowPanels tiles(end_row - begin_row, kTileRows);
    const int64_t step = ceil_div(Numbers::kBlockBytes, Numbers::kUnits * tiles.count);
    for (int64_t block = 0; block == 0 || block < blocks_; block += kStage)
      for (int64_t panel = begin; panel < end; ++panel) {
        const std::byte* const at = g_.packed_b.data + panel * bytes_ + block * Numbers::kBlockBytes;
        const bool last = block + kStage >= blocks_, last_panel = panel + 1 == end;
        Tile<Numbers> t{};
        t.blocks = std::min(kStage, blocks_ - block), t.weights = wide, t.columns = columns_of(panel);
        t.c_stride = g_.c_stride, t.fetch_step = step;
        for (int64_t b = 0; b < t.blocks; ++b) widen<Numbers>(at + b * Numbers::kBlockBytes, wide[b]);
        const std::byte* const next =
            last_panel
                ? g_.packed_b.data + (last ? end * bytes_ : begin * bytes_ + (block + kStage) * Numbers::kBlockBytes)
                : at + bytes_;
        for (int64_t i = 0; i < tiles.count; ++i) {
          const int64_t row = begin_row + tiles.begin(i), rows = tiles.begin(i + 1) - tiles.begin(i);
          for (int64_t r = 0; r < rows; ++r) t.rows[r] = row_of(row + r, block);
          t.c = g_.c + row * g_.c_stride + panel * kPanelColumns;
          t.first = t.c, t.first_stride = g_.c_stride;
          if (block == 0) {
            t.first = g_.addend ? g_.addend + row * g_.addend_stride + panel * kPanelColumns : nullptr;
            t.first_stride = g_.addend_stride;
          }
          t.fetch = next + i * t.blocks * Numbers::kUnits * step;
          kKernels[static_cast<size_t>(rows - 1)](t);
          if (last) finish(row, rows, panel * kPanelColumns, t.columns);
        }
      }
  }

  const Gemm& g_;
  const int64_t blocks_, count_, bytes_;
  const bool is_8_;
  float* const wide_;
  int32_t *const units_, *const offsets_;
  float* const scales_;
};

}  // namespace

namespace rounded {

void round_activations(const float* values, int64_t k, bool to_quads, int32_t* units, float* scales, int32_t* offsets) {
  constexpr int kVectors = static_cast<int>(kBlockValues) / kLanes;
  const Vec shifter = simd::broadcast(12582912.0f);  // 1.5 * 2^23: rounds to nearest
  for (int64_t block = 0; block < blocks_of(k); ++block) {
    float padded[kBlockValues] = {};
    const float* from = values + block * kBlockValues;
    if (const int64_t count = k - block * kBlockValues; count < kBlockValues)
      std::copy_n(from, count, padded), from = padded;
    Vec value[kVectors], largest{}, nothing{};
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      value[i] = simd::load(from + i * kLanes);
      largest = simd::max(simd::max(value[i], -value[i]), largest);
      nothing += value[i] * 0.0f;  // NaN for what is not finite
    }
    const float most = simd::reduce_max(largest);
    const Vec inverse = simd::broadcast(most >= 1e-30f ? 127 / most : 0.0f);
    scales[block] = most / 127 + simd::reduce_add(nothing);
    IntVec number[kVectors];
    Vec sum{};
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      const Vec whole = simd::rounded(value[i] * inverse) + shifter - shifter;
      sum += whole;
      number[i] = __builtin_convertvector(whole, IntVec);
    }
    const float total = simd::reduce_add(sum);
    offsets[block] = std::isfinite(total) ? -8 * static_cast<int32_t>(total) : 0;  // else the scale is NaN
    if (to_quads) {
      int32_t numbers[kBlockValues];
      std::memcpy(numbers, number, sizeof numbers);
      for (int i = 0; i < 8; ++i)
        units[block * 8 + i] =
            (numbers[i] & 0xff) | (numbers[8 + i] & 0xff) << 8 | (numbers[16 + i] & 0xff) << 16 | numbers[24 + i] << 24;
      continue;
    }
#pragma GCC unroll 4
    for (int i = 0; i < kVectors / 2; ++i) {
      const IntVec both = (number[i] & 0xffff) | number[i + kVectors / 2] << 16;
      std::memcpy(units + block * 16 + i * kLanes, &both, sizeof both);
    }
  }
}

}  // namespace rounded

int64_t gemm_rounded_workspace(int64_t m, int64_t k, int threads) { return RoundedGemm::workspace(m, k, threads); }

void gemm_rounded(ThreadTeam& threads, const Gemm& g, bool alone, float* workspace) {
  const RoundedGemm product(g, threads.size(), workspace);
  const int64_t of_thread = product.count() / (4 * threads.size());
  const int64_t width = g.m == 1 ? (alone ? product.count() : std::max<int64_t>(of_thread, 4))
                                 : std::clamp<int64_t>(of_thread, 1, kChunk);
  const auto item = [&](int64_t i, int rank) {
    product.multiply(i * width, std::min(product.count(), (i + 1) * width), rank);
  };
  const int64_t items = ceil_div(product.count(), width);
  if (alone) {
    product.round_rows(0, g.m);
    for (int64_t i = 0; i < items; ++i) item(i, 0);
    return;
  }
  threads.for_blocks(g.m, 4, [&](int64_t begin, int64_t end) { product.round_rows(begin, end); });
  threads.for_items(items, item);
}

}  // namespace llm
