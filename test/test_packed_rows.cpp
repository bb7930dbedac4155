// Weights in bf16, 8 and 4 bits: what their rows stand for, and that products with them have the bits of products with
// the floats that they stand for.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "llm/base/fp16.h"
#include "llm/base/packed_rows.h"
#include "llm/base/random.h"
#include "llm/device/gemm_cpu.h"

namespace {

using namespace llm;

constexpr DType kTypes[] = {DType::bf16, DType::int8, DType::int4};

std::vector<float> normals(int64_t count, uint64_t seed) {
  const Random random(seed, stream_of("test/packed rows"));
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.normal(i));
  return values;
}

std::vector<std::byte> packed(DType dtype, const std::vector<float>& values, int64_t columns) {
  const int64_t bytes = packed_row_bytes(dtype, columns), rows = static_cast<int64_t>(values.size()) / columns;
  std::vector<std::byte> to(static_cast<size_t>(rows * bytes));
  for (int64_t i = 0; i < rows; ++i) pack_row(dtype, values.data() + i * columns, columns, to.data() + i * bytes);
  return to;
}

std::vector<float> unpacked(DType dtype, const std::vector<std::byte>& from, int64_t columns) {
  const int64_t bytes = packed_row_bytes(dtype, columns), rows = static_cast<int64_t>(from.size()) / bytes;
  std::vector<float> to(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows; ++i) unpack_row(dtype, from.data() + i * bytes, columns, to.data() + i * columns);
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

TEST_CASE("packed rows: values come back to half a step, and packing them again changes nothing") {
  for (const DType dtype : kTypes)
    for (const int64_t columns : {1, 31, 32, 64, 172, 200, 1024}) {
      CAPTURE(name_of(dtype));
      CAPTURE(columns);
      const std::vector<float> values = normals(5 * columns, static_cast<uint64_t>(columns));
      const std::vector<std::byte> rows = packed(dtype, values, columns);
      const std::vector<float> back = unpacked(dtype, rows, columns);
      int wrong = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        float largest = 0;  // of the block
        const size_t row = i / static_cast<size_t>(columns) * static_cast<size_t>(columns),
                     first = row + (i - row) / 32 * 32;
        for (size_t j = first; j < std::min(first + 32, row + static_cast<size_t>(columns)); ++j)
          largest = std::max(largest, std::fabs(values[j]));
        // The scale is rounded, too. In 4 bits the largest value may be clipped by the smallest of the candidates.
        const float step = dtype == DType::bf16   ? std::fabs(values[i]) / 256
                           : dtype == DType::int8 ? largest / 127 * 0.51f
                                                  : largest / 6.5f * 0.51f + largest * 2.5f / 9.5f;
        wrong += !(std::fabs(back[i] - values[i]) <= step);
      }
      CHECK(wrong == 0);
      CHECK(unpacked(dtype, packed(dtype, back, columns), columns) == back);
    }
}

TEST_CASE("packed rows: 4 bits are the nearest of a few scales, not only the largest value's") {
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

TEST_CASE("packed rows: values that are not finite, too large or all zero") {
  for (const DType dtype : {DType::int8, DType::int4}) {
    std::vector<float> values(32, 0.0f);
    CHECK(unpacked(dtype, packed(dtype, values, 32), 32) == values);
    values[3] = std::numeric_limits<float>::infinity(), values[4] = std::nanf(""), values[5] = -1e30f;
    for (const float v : unpacked(dtype, packed(dtype, values, 32), 32)) CHECK(std::isfinite(v));
  }
}

TEST_CASE("gemm: a product with packed rows has the bits of one with the floats that they stand for") {
  for (const DType dtype : kTypes)
    for (const auto& [n, k] : {std::array<int64_t, 2>{65, 128}, {7, 32}, {1, 1}, {50, 172}, {17, 1024}, {33, 8300}}) {
      const std::vector<float> values = normals(n * k, 1);
      const std::vector<std::byte> rows = packed(dtype, values, k);
      const std::vector<float> floats = unpacked(dtype, rows, k);
      for (const int64_t m : {1, 2, 3, 4, 5, 6, 9, 33, 70}) {
        const int64_t stride = k + 3;
        const std::vector<float> a = normals(m * stride, 2), addend = normals(n, 3);
        const auto product = [&](bool is_packed, int team) {
          std::vector<float> c(static_cast<size_t>(m * n)),
              workspace(static_cast<size_t>(gemm_workspace(m, n, k, team, true)) + 1, 777.0f);
          Gemm g{m, n, k, row_major(a.data(), stride), transposed(floats.data(), k), c.data(), n, addend.data()};
          g.row_invariant = true;
          if (is_packed) g.b = {}, g.packed_b = rows.data(), g.packed_dtype = dtype;
          ThreadTeam threads(team);
          gemm(threads, g, workspace.data());
          CHECK(workspace.back() == 777.0f);
          return c;
        };
        INFO(name_of(dtype), " ", m, " x ", n, " x ", k);
        const std::vector<float> expected = product(false, 1);
        CHECK(same_bits(expected, product(true, 1)));
        CHECK(same_bits(expected, product(true, 3)));
      }
    }
}

}  // namespace
