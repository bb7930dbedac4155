// The CPU's matrix product against a naive sum in double precision, and that its bits depend on nothing that they
// should not.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "llm/device/gemm_cpu.h"

namespace {

using namespace llm;

// Made-up numbers in [-1, 1).
std::vector<float> numbers(int64_t count, uint32_t seed) {
  std::vector<float> v(static_cast<size_t>(count));
  uint32_t state = seed * 2654435761u + 12345u;
  for (float& x : v) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int32_t>(state)) * (1.0f / 2147483648.0f);
  }
  return v;
}

constexpr float kUntouched = 777.0f;

// A product C = A B with all its buffers. The rows of the three matrices are wider than needed, and the gaps must stay
// untouched.
struct Problem {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  int64_t gap;
  std::vector<float> a, b, addend;

  Problem(int64_t m_, int64_t n_, int64_t k_, bool ta, bool tb, int64_t gap_ = 3)
      : m(m_), n(n_), k(k_), transpose_a(ta), transpose_b(tb), gap(gap_) {
    a = numbers((ta ? k : m) * ((ta ? m : k) + gap), 1);
    b = numbers((tb ? n : k) * ((tb ? k : n) + gap), 2);
    addend = numbers(m * (n + gap), 3);
  }
  MatrixView view_a() const { return transpose_a ? transposed(a.data(), m + gap) : row_major(a.data(), k + gap); }
  MatrixView view_b() const { return transpose_b ? transposed(b.data(), k + gap) : row_major(b.data(), n + gap); }
  static double at(MatrixView v, int64_t i, int64_t j) { return v.data[i * v.row_stride + j * v.column_stride]; }

  enum class Addend { kNone, kOther, kSame };
  std::vector<float> run(int threads, Addend with = Addend::kNone, Epilogue epilogue = {}) const {
    std::vector<float> c = with == Addend::kSame ? addend : std::vector<float>(addend.size(), kUntouched);
    Gemm g{m, n, k, view_a(), view_b(), c.data(), n + gap};
    g.addend = with == Addend::kNone ? nullptr : with == Addend::kSame ? c.data() : addend.data();
    g.addend_stride = n + gap;
    g.epilogue = epilogue;
    std::vector<float> workspace(static_cast<size_t>(gemm_workspace(m, n, k, threads)) + 1, kUntouched);
    ThreadTeam team(threads);
    gemm(team, g, workspace.data());
    CHECK(workspace.back() == kUntouched);
    return c;
  }

  void check(const std::vector<float>& c, bool with_addend) const {
    int64_t wrong = 0, spilled = 0;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0, magnitude = 1;
        for (int64_t x = 0; x < k; ++x) {
          const double product = at(view_a(), i, x) * at(view_b(), x, j);
          sum += product;
          magnitude += std::abs(product);
        }
        if (with_addend) sum += addend[static_cast<size_t>(i * (n + gap) + j)];
        const double error = std::abs(c[static_cast<size_t>(i * (n + gap) + j)] - sum);
        wrong += !(error <= 1e-6 * magnitude);
      }
      for (int64_t j = n; j < n + gap; ++j) {
        const float c_gap = c[static_cast<size_t>(i * (n + gap) + j)];
        spilled += c_gap != kUntouched && c_gap != addend[static_cast<size_t>(i * (n + gap) + j)];
      }
    }
    INFO(m, " x ", n, " x ", k, " transposed ", transpose_a, transpose_b);
    CHECK(wrong == 0);
    CHECK(spilled == 0);
  }
};

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

TEST_CASE("gemm agrees with the naive product at ragged sizes, in every layout") {
  const int64_t sizes[] = {1, 2, 8, 9, 13, 14, 15, 31, 32, 33, 65};
  for (int64_t m : sizes)
    for (int64_t n : sizes)
      for (int64_t k : {1, 15, 16, 33})
        for (int layout = 0; layout < 4; ++layout) {
          const Problem p(m, n, k, layout & 1, layout & 2, (m + n + k) % 3);
          p.check(p.run(1), false);
        }
}

TEST_CASE("gemm agrees with the naive product where k takes several stages, with threads") {
  for (int layout = 0; layout < 4; ++layout) {
    for (const auto& [m, n, k] :
         {std::array<int64_t, 3>{30, 67, 3100}, {67, 30, 3100}, {7, 40, 1000}, {150, 70, 769}}) {
      const Problem p(m, n, k, layout & 1, layout & 2);
      p.check(p.run(3), false);
      p.check(p.run(2, Problem::Addend::kOther), true);
    }
  }
}

TEST_CASE("gemm agrees with the naive product in several blocks of rows, and where rows share a set of the cache") {
  for (int layout = 0; layout < 4; ++layout) {
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{4100, 33, 20}, {800, 20, 33}}) {
      const Problem p(m, n, k, layout & 1, layout & 2);
      p.check(p.run(3, Problem::Addend::kSame), true);
    }
    const Problem p(45, 70, 1024, layout & 1, layout & 2, 0);
    p.check(p.run(2), false);
  }
}

TEST_CASE("gemm adds the addend, also when it is C itself, to the same bits") {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{33, 65, 40}, {3, 65, 40}, {40, 33, 1600}, {5, 40, 0}, {20, 40, 0}}) {
    const Problem p(m, n, k, false, true);
    const auto other = p.run(2, Problem::Addend::kOther), same = p.run(2, Problem::Addend::kSame);
    p.check(other, true);
    p.check(same, true);
    for (int64_t i = 0; i < m; ++i)
      CHECK(std::memcmp(&other[static_cast<size_t>(i * (n + 3))], &same[static_cast<size_t>(i * (n + 3))],
                        static_cast<size_t>(n) * sizeof(float)) == 0);
  }
}

TEST_CASE("gemm adds one row to all rows, and sums the rows of a transposed A") {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{33, 65, 40}, {3, 65, 40}, {40, 33, 1600}, {1, 1, 600}})
    for (const bool ta : {false, true}) {
      const Problem p(m, n, k, ta, true, 0);
      std::vector<float> c(static_cast<size_t>(m * n)), sums(static_cast<size_t>(m), 2.0f), plain = p.run(2);
      Gemm g{m, n, k, p.view_a(), p.view_b(), c.data(), n, p.addend.data(), 0};
      if (ta) g.row_sums = sums.data(), g.add_to_row_sums = true;
      std::vector<float> workspace(static_cast<size_t>(gemm_workspace(m, n, k, 3)));
      ThreadTeam team(3);
      gemm(team, g, workspace.data());
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          const auto at = static_cast<size_t>(i * n + j);
          CHECK(c[at] == doctest::Approx(plain[at] + p.addend[static_cast<size_t>(j)]).epsilon(1e-5));
        }
      for (int64_t i = 0; i < m && ta; ++i) {
        double sum = 2;
        for (int64_t x = 0; x < k; ++x) sum += Problem::at(p.view_a(), i, x);
        CHECK(sums[static_cast<size_t>(i)] == doctest::Approx(sum).epsilon(1e-5));
      }
    }
}

TEST_CASE("gemm of a matrix and its transpose takes one triangle, to the bits of the whole product") {
  for (const auto& [m, k] : {std::array<int64_t, 2>{9, 20}, {33, 40}, {70, 1700}, {200, 70}, {300, 520}})
    for (const bool ta : {false, true}) {
      const std::vector<float> a = numbers(m * k, 4);
      const MatrixView left = ta ? transposed(a.data(), m) : row_major(a.data(), k);
      const MatrixView right = ta ? row_major(a.data(), m) : transposed(a.data(), k);
      for (const int threads : {1, 3}) {
        ThreadTeam team(threads);
        std::vector<float> workspace(static_cast<size_t>(gemm_workspace(m, m, k, threads)));
        std::vector<float> whole(static_cast<size_t>(m * m), 1.0f), half(static_cast<size_t>(m * m), kUntouched);
        Gemm g{m, m, k, left, right, whole.data(), m};
        gemm(team, g, workspace.data());
        g.c = half.data(), g.symmetric = true;
        gemm(team, g, workspace.data());
        CHECK(same_bits(whole, half));
      }
    }
}

TEST_CASE("gemm's epilogue sees each final element exactly once") {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{33, 65, 40}, {6, 130, 40}, {40, 33, 1600}, {300, 200, 30}})
    for (int threads : {1, 3}) {
      Problem p(m, n, k, false, true);
      struct Context {
        const Problem* p;
        const float* expected;
        std::vector<int> seen;
        bool final = true;
      } context{&p, nullptr, std::vector<int>(static_cast<size_t>(m * n), 0)};
      const auto expected = p.run(threads);
      context.expected = expected.data();
      const Epilogue epilogue{[](const void* opaque, const FinishedTile& t) {
                                auto& at = *static_cast<Context*>(const_cast<void*>(opaque));
                                for (int64_t i = 0; i < t.rows; ++i)
                                  for (int64_t j = 0; j < t.columns; ++j) {
                                    float& c = t.c[i * t.stride + j];
                                    const int64_t row = t.row + i, column = t.column + j;
                                    ++at.seen[static_cast<size_t>(row * at.p->n + column)];
                                    if (c != at.expected[row * (at.p->n + at.p->gap) + column]) at.final = false;
                                    c += 1.0f;
                                  }
                              },
                              &context};
      const auto c = p.run(threads, Problem::Addend::kNone, epilogue);
      bool once = true, applied = true;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          const auto at = static_cast<size_t>(i * (n + p.gap) + j);
          once = once && context.seen[static_cast<size_t>(i * n + j)] == 1;
          applied = applied && c[at] == expected[at] + 1.0f;
        }
      CHECK(context.final);
      CHECK(once);
      CHECK(applied);
    }
}

TEST_CASE("gemm has the same bits for any number of threads") {
  for (int layout = 0; layout < 4; ++layout)
    for (const auto& [m, n, k] :
         {std::array<int64_t, 3>{65, 130, 900}, {130, 65, 900}, {4, 700, 400}, {40, 40, 5000}, {257, 64, 65}}) {
      const Problem p(m, n, k, layout & 1, layout & 2);
      const auto one = p.run(1, Problem::Addend::kOther);
      for (int threads : {2, 3, 5}) CHECK(same_bits(one, p.run(threads, Problem::Addend::kOther)));
    }
}

// The first `m` rows of a larger A: the product's rows must have the same bits as in the larger product.
void check_rows(int64_t m, const std::vector<float>& full, int64_t n, int64_t k, bool tb) {
  const Problem p(m, n, k, false, tb);
  const auto part = p.run(2);
  INFO("rows ", m, " of n ", n, " k ", k);
  CHECK(std::memcmp(part.data(), full.data(), static_cast<size_t>(m * (n + p.gap)) * sizeof(float)) == 0);
}

TEST_CASE("a row of gemm has the same bits in a batch of any size") {
  for (bool tb : {false, true})
    for (const auto& [n, k] : {std::array<int64_t, 2>{65, 100}, {33, 1700}, {200, 770}}) {
      const auto full = Problem(131, n, k, false, tb).run(2);
      for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 28, 64, 130}) check_rows(m, full, n, k, tb);
    }
}

TEST_CASE("gemm of nothing does nothing, and of depth zero is the addend") {
  ThreadTeam team(2);
  gemm(team, {0, 5, 5, {nullptr, 5, 1}, {nullptr, 5, 1}, nullptr, 5}, nullptr);
  gemm(team, {5, 0, 5, {nullptr, 5, 1}, {nullptr, 5, 1}, nullptr, 5}, nullptr);
  const Problem p(12, 33, 0, false, false);
  const auto c = p.run(2);
  for (int64_t i = 0; i < 12; ++i)
    for (int64_t j = 0; j < 33; ++j) CHECK(c[static_cast<size_t>(i * 36 + j)] == 0.0f);
}

}  // namespace
