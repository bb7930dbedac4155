// The CPU's attention against the naive formula in double precision: outputs, gradients, parts of sequences, and that
// its bits depend on nothing that they should not.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "llm/ops/attention_cpu.h"

namespace {

using namespace llm;

// Made-up numbers in [-scale, scale).
std::vector<float> numbers(int64_t count, uint32_t seed, float scale) {
  std::vector<float> v(static_cast<size_t>(count));
  uint32_t state = seed * 2654435761u + 12345u;
  for (float& x : v) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int32_t>(state)) * (scale / 2147483648.0f);
  }
  return v;
}

bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

int64_t stride_of(const AttentionShape& s) { return (s.heads + 2 * s.kv_heads) * s.head_size; }

struct Result {
  std::vector<float> out, log_sum_exp, d_qkv;
};

// The plain formula: softmax of the masked scores, and its gradients by the chain rule.
struct Reference {
  std::vector<double> out, log_sum_exp, d_qkv;

  Reference(const AttentionShape& s, const std::vector<float>& qkv, const std::vector<float>& d_out) {
    const int64_t T = s.tokens, D = s.head_size, stride = stride_of(s), out_stride = s.heads * D;
    out.assign(static_cast<size_t>(s.batch * T * out_stride), 0.0);
    log_sum_exp.assign(static_cast<size_t>(s.batch * s.heads * T), 0.0);
    d_qkv.assign(qkv.size(), 0.0);
    const double scale = 1.0 / std::sqrt(static_cast<double>(D));
    std::vector<double> p(static_cast<size_t>(T)), d_p(p);
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t h = 0; h < s.heads; ++h)
        for (int64_t i = 0; i < T; ++i) {
          const int64_t kv = h / (s.heads / s.kv_heads);
          const auto at = [&](int64_t t, int64_t column) {
            return static_cast<size_t>((b * T + t) * stride + column * D);
          };
          const size_t q = at(i, h), o = static_cast<size_t>((b * T + i) * out_stride + h * D);
          double maximum = -1e300, sum = 0;
          for (int64_t j = 0; j <= i; ++j) {
            double score = 0;
            for (int64_t c = 0; c < D; ++c) score += double(qkv[q + c]) * qkv[at(j, s.heads + kv) + c];
            p[j] = score * scale;
            maximum = std::max(maximum, p[j]);
          }
          for (int64_t j = 0; j <= i; ++j) sum += p[j] = std::exp(p[j] - maximum);
          log_sum_exp[static_cast<size_t>((b * s.heads + h) * T + i)] = maximum + std::log(sum);
          double mean = 0;
          for (int64_t j = 0; j <= i; ++j) {
            p[j] /= sum;
            const size_t v = at(j, s.heads + s.kv_heads + kv);
            d_p[j] = 0;
            for (int64_t c = 0; c < D; ++c) {
              out[o + c] += p[j] * qkv[v + c];
              d_p[j] += double(d_out[o + c]) * qkv[v + c];
              d_qkv[v + c] += p[j] * d_out[o + c];
            }
            mean += p[j] * d_p[j];
          }
          for (int64_t j = 0; j <= i; ++j) {
            const double d_score = p[j] * (d_p[j] - mean) * scale;
            const size_t k = at(j, s.heads + kv);
            for (int64_t c = 0; c < D; ++c) {
              d_qkv[q + c] += d_score * qkv[k + c];
              d_qkv[k + c] += d_score * qkv[q + c];
            }
          }
        }
  }
};

// Buffers start as NaN, which shows what a kernel leaves out or reads too early.
std::vector<float> nans(int64_t count) { return std::vector<float>(static_cast<size_t>(count), std::nanf("")); }

Result run(const AttentionShape& s, const std::vector<float>& qkv, const std::vector<float>& d_out, int threads,
           const int32_t* starts = nullptr) {
  ThreadTeam team(threads);
  Result r{nans(s.batch * s.tokens * s.heads * s.head_size), nans(s.batch * s.heads * s.tokens),
           nans(static_cast<int64_t>(qkv.size()))};
  auto workspace = nans(attention_workspace(s, threads) + 1);
  workspace.back() = 1.0f;
  attention_forward(team, s, qkv.data(), r.out.data(), r.log_sum_exp.data(), workspace.data(), starts);
  CHECK(workspace.back() == 1.0f);
  workspace = nans(attention_backward_workspace(s, threads) + 1);
  workspace.back() = 1.0f;
  attention_backward(team, s, qkv.data(), r.out.data(), r.log_sum_exp.data(), d_out.data(), r.d_qkv.data(),
                     workspace.data(), starts);
  CHECK(workspace.back() == 1.0f);
  return r;
}

double largest_error(const std::vector<float>& found, const std::vector<double>& expected) {
  double largest = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double error = std::abs(found[i] - expected[i]);
    if (!(error <= largest)) largest = error;  // a NaN must not get lost
    if (std::isnan(error)) return error;
  }
  return largest;
}

const AttentionShape kShapes[] = {
    {1, 1, 1, 1, 8},   {2, 2, 2, 1, 20},   {1, 63, 2, 2, 33},  {2, 64, 3, 3, 16},  {1, 65, 4, 2, 64},
    {1, 130, 6, 1, 7}, {1, 300, 2, 1, 40}, {1, 560, 1, 1, 24}, {17, 33, 1, 1, 32},
};

TEST_CASE("attention and its gradients agree with the naive formula") {
  for (const AttentionShape& s : kShapes) {
    const auto qkv = numbers(s.batch * s.tokens * stride_of(s), 1, 2.0f);
    const auto d_out = numbers(s.batch * s.tokens * s.heads * s.head_size, 2, 1.0f);
    const Reference reference(s, qkv, d_out);
    const Result r = run(s, qkv, d_out, 2);
    INFO("tokens ", s.tokens, " heads ", s.heads, "/", s.kv_heads, " size ", s.head_size);
    CHECK(largest_error(r.out, reference.out) < 3e-6);
    CHECK(largest_error(r.log_sum_exp, reference.log_sum_exp) < 3e-6);
    CHECK(largest_error(r.d_qkv, reference.d_qkv) < 2e-5);
  }
}

// What a rank with two chunks of each sequence computes, whose keys and values lie by themselves.
struct PartOfRank {
  AttentionShape shape;
  std::vector<float> queries, keys_values, d_out;

  PartOfRank(const AttentionShape& whole, int64_t rank, int64_t ranks, const std::vector<float>& qkv,
             const std::vector<float>& d_out_whole)
      : shape(whole) {
    const int64_t T = whole.tokens, chunk = T / (2 * ranks), out_stride = whole.heads * whole.head_size;
    shape.tokens = 2 * chunk, shape.keys = T, shape.chunks = 2, shape.firsts = {rank * chunk, T - (rank + 1) * chunk};
    for (int64_t b = 0; b < whole.batch; ++b) {
      for (int64_t t = 0; t < shape.tokens; ++t) {
        const auto row = qkv.begin() + (b * T + position(t)) * stride_of(whole);
        queries.insert(queries.end(), row, row + out_stride);
        const auto d = d_out_whole.begin() + (b * T + position(t)) * out_stride;
        d_out.insert(d_out.end(), d, d + out_stride);
      }
      for (int64_t t = 0; t < T; ++t) {
        const auto row = qkv.begin() + (b * T + t) * stride_of(whole);
        keys_values.insert(keys_values.end(), row + out_stride, row + stride_of(whole));
      }
    }
  }
  int64_t position(int64_t t) const { return t + shape.shift(t / shape.chunk()); }
};

TEST_CASE(
    "attention of chunks of sequences is that of whole ones, and their gradients of keys and values add up to it") {
  for (const auto& [s, ranks] :
       {std::pair{AttentionShape{2, 66, 4, 2, 20}, 3}, {{1, 600, 2, 1, 24}, 2}, {{1, 1040, 2, 2, 16}, 4}})
    for (const bool documents : {false, true}) {
      CAPTURE(s.tokens);
      CAPTURE(documents);
      const int64_t T = s.tokens, D = s.head_size, out_stride = s.heads * D, key_stride = 2 * s.kv_heads * D;
      const auto qkv = numbers(s.batch * T * stride_of(s), 1, 2.0f), d_out = numbers(s.batch * T * out_stride, 2, 1.0f);
      std::vector<int32_t> starts;
      for (int64_t b = 0; b < s.batch; ++b)
        for (int64_t t = 0; t < T; ++t) starts.push_back(static_cast<int32_t>(t / 47 * 47));
      const int32_t* given = documents ? starts.data() : nullptr;
      const Result whole = run(s, qkv, d_out, 1, given);
      std::vector<double> d_keys_values(static_cast<size_t>(s.batch * T * key_stride), 0.0);
      double error = 0, gradient_error = 0;
      const auto note = [](double& largest, double difference) {
        if (!(std::abs(difference) <= largest)) largest = std::isnan(difference) ? 1 : std::abs(difference);
      };
      for (int64_t rank = 0; rank < ranks; ++rank) {
        const PartOfRank part(s, rank, ranks, qkv, d_out);
        const AttentionShape& own = part.shape;
        std::vector<int32_t> own_starts;
        for (int64_t b = 0; b < s.batch && documents; ++b)
          for (int64_t t = 0; t < own.tokens; ++t)
            own_starts.push_back(starts[static_cast<size_t>(b * T + part.position(t))]);
        const int32_t* const own_given = documents ? own_starts.data() : nullptr;
        ThreadTeam team(2);
        auto out = nans(s.batch * own.tokens * out_stride), log_sum_exp = nans(s.batch * s.heads * own.tokens);
        auto d_queries = nans(s.batch * own.tokens * out_stride), d_keys = nans(s.batch * T * key_stride);
        auto workspace = nans(attention_workspace(own, 2));
        attention_forward(team, own, part.queries.data(), out.data(), log_sum_exp.data(), workspace.data(), own_given,
                          part.keys_values.data());
        workspace = nans(attention_backward_workspace(own, 2));
        attention_backward(team, own, part.queries.data(), out.data(), log_sum_exp.data(), part.d_out.data(),
                           d_queries.data(), workspace.data(), own_given, part.keys_values.data(), d_keys.data());
        for (size_t i = 0; i < d_keys.size(); ++i) d_keys_values[i] += d_keys[i];
        for (int64_t b = 0; b < s.batch; ++b)
          for (int64_t t = 0; t < own.tokens; ++t)
            for (int64_t c = 0; c < out_stride; ++c) {
              const auto at = static_cast<size_t>((b * own.tokens + t) * out_stride + c);
              const auto of_whole = static_cast<size_t>((b * T + part.position(t)) * out_stride + c);
              const auto of_qkv = static_cast<size_t>((b * T + part.position(t)) * stride_of(s) + c);
              note(error, out[at] - whole.out[of_whole]);
              note(gradient_error, d_queries[at] - whole.d_qkv[of_qkv]);
            }
      }
      for (int64_t row = 0; row < s.batch * T; ++row)
        for (int64_t c = 0; c < key_stride; ++c) {
          const double sum = d_keys_values[static_cast<size_t>(row * key_stride + c)];
          const double expected = whole.d_qkv[static_cast<size_t>(row * stride_of(s) + out_stride + c)];
          note(gradient_error, sum - expected);
        }
      CHECK(error < 3e-6);
      CHECK(gradient_error < 2e-5);
    }
}

TEST_CASE("attention stays finite and exact for large scores") {
  const AttentionShape s{1, 70, 1, 1, 16};
  const auto qkv = numbers(s.batch * s.tokens * stride_of(s), 5, 30.0f);
  const auto d_out = numbers(s.batch * s.tokens * s.heads * s.head_size, 6, 1.0f);
  const Reference reference(s, qkv, d_out);
  const Result r = run(s, qkv, d_out, 1);
  CHECK(largest_error(r.out, reference.out) <
        1e-2);  // scores reach thousands here, and their rounding alone makes 1e-4
  CHECK(largest_error(r.log_sum_exp, reference.log_sum_exp) < 1e-2);
}

TEST_CASE("attention has the same bits for any number of threads") {
  for (const AttentionShape& s : {AttentionShape{1, 300, 2, 1, 20}, {3, 65, 2, 2, 32}, {1, 600, 1, 1, 16}}) {
    const auto qkv = numbers(s.batch * s.tokens * stride_of(s), 3, 2.0f);
    const auto d_out = numbers(s.batch * s.tokens * s.heads * s.head_size, 4, 1.0f);
    const Result one = run(s, qkv, d_out, 1);
    for (int threads : {2, 3, 5}) {
      const Result r = run(s, qkv, d_out, threads);
      CHECK(same_bits(one.out, r.out));
      CHECK(same_bits(one.log_sum_exp, r.log_sum_exp));
      CHECK(same_bits(one.d_qkv, r.d_qkv));
    }
  }
}

}  // namespace
