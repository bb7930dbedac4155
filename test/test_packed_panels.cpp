// Weights that lie as packed panels, in fp32, bf16, 8 and 4 bits: what they stand for, and that products with them have the
// bits of products with the floats that they stand for. Rows of keys and values in fewer bits: that they come back.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "llm/base/error.h"
#include "llm/base/fp16.h"
#include "llm/base/packed_panels.h"
#include "llm/base/packed_rows.h"
#include "llm/base/random.h"
#include "llm/device/gemm_cpu.h"

namespace {

using namespace llm;

constexpr DType kTypes[] = {DType::fp32, DType::bf16, DType::int8, DType::int4};

std::vector<float> normals(int64_t count, uint64_t seed) {
  const Random random(seed, stream_of("test/packed rows"));
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.normal(i));
  return values;
}

// Values (rows, columns).
std::vector<std::byte> packed(DType dtype, const std::vector<float>& values, int64_t columns) {
  const int64_t rows = static_cast<int64_t>(values.size()) / columns;
  std::vector<std::byte> to(static_cast<size_t>(packed_panels_bytes(dtype, rows, columns)));
  for (int64_t row = 0; row < rows; row += kPanelColumns)
    pack_panel(dtype, values.data() + row * columns, columns, std::min(kPanelColumns, rows - row), columns,
               to.data() + row / kPanelColumns * panel_bytes(dtype, columns));
  return to;
}

std::vector<float> unpacked(DType dtype, const std::vector<std::byte>& from, int64_t rows, int64_t columns) {
  std::vector<float> to(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows; ++i) unpack_panel_row(dtype, from.data(), i, columns, to.data() + i * columns);
  return to;
}

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

TEST_CASE("fp16: each half is the nearest to its float, and to all floats up to half a step from it") {
  int wrong = 0;
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float x = float_of_half(static_cast<uint16_t>(bits)), up = float_of_half(static_cast<uint16_t>(bits + 1));
    const uint32_t even = bits % 2 ? bits + 1 : bits;
    wrong += nearest_half(x) != bits || nearest_half(-x) != (bits | 0x8000);
    if (bits == 0x7bff) continue;  // an infinity follows
    const float middle = (x + up) / 2;
    wrong += nearest_half(middle) != even || nearest_half(std::nextafter(middle, 0.0f)) != bits ||
             nearest_half(std::nextafter(middle, 1e9f)) != bits + 1;
  }
  CHECK(wrong == 0);
  CHECK(nearest_half(65519) == 0x7bff);
  CHECK(nearest_half(65520) == 0x7c00);
  CHECK(nearest_half(-std::numeric_limits<float>::infinity()) == 0xfc00);
  CHECK(std::isnan(float_of_half(nearest_half(std::nanf("")))));
}

// What is off by more than half a step of its block of a row.
int64_t count_wrong(DType dtype, const std::vector<float>& values, const std::vector<float>& back, int64_t columns) {
  int64_t wrong = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    float largest = 0;  // of the block
    const size_t row = i / static_cast<size_t>(columns) * static_cast<size_t>(columns),
                 first = row + (i - row) / 32 * 32;
    for (size_t j = first; j < std::min(first + 32, row + static_cast<size_t>(columns)); ++j)
      largest = std::max(largest, std::fabs(values[j]));
    // The scale is rounded, too. In 4 bits the largest value may be clipped by the smallest of the candidates.
    const float step = dtype == DType::fp32   ? 0
                       : dtype == DType::bf16 ? std::fabs(values[i]) / 256
                       : dtype == DType::int8 ? largest / 127 * 0.51f
                                              : largest / 6.5f * 0.51f + largest * 2.5f / 9.5f;
    wrong += !(std::fabs(back[i] - values[i]) <= step);
  }
  return wrong;
}

TEST_CASE("packed panels: values come back to half a step, and packing them again changes nothing") {
  for (const DType dtype : kTypes)
    for (const int64_t columns : {1, 31, 32, 64, 172, 200, 1024})
      for (const int64_t rows : {1, 5, 16, 37}) {
        CAPTURE(name_of(dtype));
        CAPTURE(columns);
        const std::vector<float> values = normals(rows * columns, static_cast<uint64_t>(columns));
        const std::vector<float> back = unpacked(dtype, packed(dtype, values, columns), rows, columns);
        CHECK(count_wrong(dtype, values, back, columns) == 0);
        CHECK(unpacked(dtype, packed(dtype, back, columns), rows, columns) == back);
        std::vector<float> rounded = values;
        for (int64_t i = 0; i < rows; ++i) round_row(dtype, rounded.data() + i * columns, columns);
        CHECK(rounded == back);
      }
}

TEST_CASE("packed rows: values come back to half a step") {
  for (const DType dtype : {DType::fp32, DType::bf16, DType::int8})
    for (const int64_t columns : {1, 31, 32, 64, 172, 200, 1024}) {
      const std::vector<float> values = normals(columns, static_cast<uint64_t>(columns));
      std::vector<std::byte> row(static_cast<size_t>(packed_row_bytes(dtype, columns)));
      std::vector<float> back(values.size()), rounded = values;
      pack_row(dtype, values.data(), columns, row.data());
      unpack_row(dtype, row.data(), columns, back.data());
      CHECK(count_wrong(dtype, values, back, columns) == 0);
      round_row(dtype, rounded.data(), columns);
      CHECK(rounded == back);
    }
  CHECK_THROWS_AS(packed_row_bytes(DType::int4, 32), Error);
}

TEST_CASE("quantized blocks: 4 bits are the nearest of a few scales, not only the largest value's") {
  // One value that sticks out: a scale that clips it serves the other 31 better.
  std::vector<float> values = normals(32, 3);
  values[7] = -9;
  const QuantizedBlock block = quantize_to_4_bits(values.data());
  double chosen = 0, plain = 0;
  for (size_t i = 0; i < 32; ++i) {
    const float scale = 9.0f / 8;
    chosen += std::pow(values[i] - float_of_half(block.scale) * static_cast<float>(block.numbers[i]), 2);
    plain += std::pow(values[i] - scale * std::clamp(std::nearbyint(values[i] / scale), -8.0f, 7.0f), 2);
  }
  CHECK(chosen < plain);
}

TEST_CASE("packed panels: values that are not finite, too large or all zero") {
  for (const DType dtype : {DType::int8, DType::int4}) {
    std::vector<float> values(32, 0.0f);
    CHECK(unpacked(dtype, packed(dtype, values, 32), 1, 32) == values);
    values[3] = std::numeric_limits<float>::infinity(), values[4] = std::nanf(""), values[5] = -1e30f;
    for (const float v : unpacked(dtype, packed(dtype, values, 32), 1, 32)) CHECK(std::isfinite(v));
  }
}

// Products with packed weights, and with the floats that they stand for as rows.
struct Products {
  DType dtype;
  int64_t n, k;
  std::vector<std::byte> panels;
  std::vector<float> floats;
  std::vector<bf16> halves;

  Products(DType type, int64_t n_, int64_t k_) : dtype(type), n(n_), k(k_) {
    const std::vector<float> values = normals(n * k, 1);
    panels = packed(dtype, values, k), floats = unpacked(dtype, panels, n, k);
    if (dtype == DType::bf16)
      for (const float x : floats) halves.push_back(nearest_bf16(x));
  }
  enum class Form { floats, panels, halves };
  std::vector<float> product(Form form, int64_t m, int team, bool adds = true, Epilogue epilogue = {}) const {
    const int64_t stride = k + 3;
    const std::vector<float> a = normals(m * stride, 2), addend = normals(n, 3);
    const bool is_packed = form != Form::floats;
    std::vector<float> c(static_cast<size_t>(m * n)),
        workspace(
            static_cast<size_t>(is_packed ? gemm_packed_workspace(dtype, m, k, team) : gemm_workspace(m, n, k, team)) +
                1,
            777.0f);
    Gemm g{m, n, k, row_major(a.data(), stride), transposed(floats.data(), k), c.data(), n};
    g.addend = adds ? addend.data() : nullptr, g.epilogue = epilogue;
    if (form == Form::panels) g.b = {}, g.packed_b = {panels.data(), dtype, false};
    if (form == Form::halves) g.b = {}, g.packed_b = {reinterpret_cast<const std::byte*>(halves.data()), dtype, true};
    ThreadTeam threads(team);
    gemm(threads, g, workspace.data());
    CHECK(workspace.back() == 777.0f);
    return c;
  }
};
using Form = Products::Form;

constexpr std::array<int64_t, 2> kShapes[] = {{65, 128},   {7, 32},    {1, 1},    {50, 172},
                                              {130, 1024}, {33, 3100}, {17, 785}, {300, 416}};

TEST_CASE("gemm: a product with packed weights has the bits of one with the floats that they stand for") {
  for (const DType dtype : kTypes)
    for (const auto& [n, k] : kShapes) {
      const Products p(dtype, n, k);
      for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 70, 300}) {
        INFO(name_of(dtype), " ", m, " x ", n, " x ", k);
        const std::vector<float> expected = p.product(Form::floats, m, 1);
        CHECK(same_bits(expected, p.product(Form::panels, m, 1)));
        CHECK(same_bits(expected, p.product(Form::panels, m, 3)));
        if (dtype == DType::bf16) CHECK(same_bits(expected, p.product(Form::halves, m, 2)));
        CHECK(same_bits(p.product(Form::floats, m, 1, false), p.product(Form::panels, m, 2, false)));
      }
    }
}

TEST_CASE("gemm: the epilogue of a product with packed weights sees each final element once") {
  for (const DType dtype : kTypes)
    for (const int64_t m : {1, 3, 5, 40, 150})
      for (const int team : {1, 3}) {
        const Products p(dtype, 200, 800);
        const std::vector<float> expected = p.product(Form::floats, m, 1);
        struct Context {
          const std::vector<float>& expected;
          std::vector<int> seen;
          bool final = true;
        } context{expected, std::vector<int>(expected.size())};
        p.product(Form::panels, m, team, true,
                  {[](const void* opaque, const FinishedTile& t) {
                     auto& at = *static_cast<Context*>(const_cast<void*>(opaque));
                     for (int64_t i = 0; i < t.rows; ++i)
                       for (int64_t j = 0; j < t.columns; ++j) {
                         const auto element = static_cast<size_t>((t.row + i) * 200 + t.column + j);
                         ++at.seen[element];
                         if (t.c[i * t.stride + j] != at.expected[element]) at.final = false;
                       }
                   },
                   &context});
        CHECK(context.final);
        CHECK(context.seen == std::vector<int>(expected.size(), 1));
      }
}

// The products of A's rows with weights, both as whole numbers times scales: in double precision, from the definition.
std::vector<double> rounded_products(const std::vector<float>& a, int64_t stride, int64_t m, const Products& p) {
  std::vector<double> c(static_cast<size_t>(m * p.n));
  std::vector<double> row(static_cast<size_t>(p.k));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t first = 0; first < p.k; first += 32) {
      double largest = 0;
      const int64_t end = std::min(p.k, first + 32);
      for (int64_t k = first; k < end; ++k)
        largest = std::max(largest, std::fabs(double{a[static_cast<size_t>(i * stride + k)]}));
      for (int64_t k = first; k < end; ++k)
        row[static_cast<size_t>(k)] =
            largest == 0 ? 0 : std::nearbyint(a[static_cast<size_t>(i * stride + k)] / largest * 127) * (largest / 127);
    }
    for (int64_t j = 0; j < p.n; ++j)
      for (int64_t k = 0; k < p.k; ++k)
        c[static_cast<size_t>(i * p.n + j)] += row[static_cast<size_t>(k)] * p.floats[static_cast<size_t>(j * p.k + k)];
  }
  return c;
}

TEST_CASE("gemm: products that round activations, too, are those of the rounded numbers, for any number of rows") {
  for (const DType dtype : {DType::w8a8, DType::w4a8})
    for (const auto& [n, k] : kShapes) {
      const Products p(dtype, n, k);
      const std::vector<float> all = p.product(Form::panels, 70, 1, false), a = normals(70 * (k + 3), 2);
      const std::vector<double> expected = rounded_products(a, k + 3, 70, p);
      int64_t wrong = 0;
      for (size_t i = 0; i < all.size(); ++i)
        wrong += !(std::fabs(all[i] - expected[i]) <= 2e-5 * std::sqrt(static_cast<double>(k)));
      INFO(name_of(dtype), " ", n, " x ", k);
      // A value halfway between two numbers may be rounded to the other one.
      CHECK(wrong <= static_cast<int64_t>(all.size()) / 50);
      for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 33}) {
        const std::vector<float> some = p.product(Form::panels, m, 1, false), added = p.product(Form::panels, m, 1);
        CHECK(std::memcmp(some.data(), all.data(), some.size() * sizeof(float)) == 0);
        CHECK(same_bits(some, p.product(Form::panels, m, 3, false)));
        CHECK(same_bits(added, p.product(Form::panels, m, 2)));
        const std::vector<float> addend = normals(n, 3);
        int64_t far = 0;
        for (size_t i = 0; i < some.size(); ++i)
          far += !(std::fabs(some[i] + addend[i % static_cast<size_t>(n)] - added[i]) <=
                   1e-4f * (1 + std::fabs(added[i])));
        CHECK(far == 0);
      }
    }
}

TEST_CASE("gemm: an activation that is not finite makes products of rounded activations NaN") {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()})
    for (const int64_t m : {1, 3}) {
      const Products p(DType::w4a8, 20, 100);
      std::vector<float> a = normals(m * 100, 5), c(static_cast<size_t>(m * 20)),
                         workspace(static_cast<size_t>(gemm_packed_workspace(p.dtype, m, 100, 1)));
      a[static_cast<size_t>(m * 100 - 5)] = bad;
      Gemm g{m, 20, 100, row_major(a.data(), 100), {}, c.data(), 20};
      g.packed_b = {p.panels.data(), p.dtype, false};
      ThreadTeam team(1);
      gemm(team, g, workspace.data());
      for (int64_t i = 0; i < m * 20; ++i) CHECK(std::isnan(c[static_cast<size_t>(i)]) == (i >= (m - 1) * 20));
    }
}

TEST_CASE("gemm: packed weights go with a row-major A alone") {
  const Products p(DType::bf16, 5, 5);
  std::vector<float> c(25);
  Gemm g{5, 5, 5, transposed(c.data(), 5), {}, c.data(), 5};
  g.packed_b = {p.panels.data(), DType::bf16, false};
  ThreadTeam team(1);
  CHECK_THROWS_AS(gemm(team, g, c.data()), Error);
}

}  // namespace
