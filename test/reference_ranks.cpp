// What several ranks add up, once more from the formulas.
#include <cmath>

#include "test/reference.h"

namespace llm::reference {
namespace {

using Arrays = std::vector<Array>;

Arrays square_sums(const Attributes& a, const Arrays& in, const StepState&) {
  constexpr int64_t kBlock = 16384;
  const int64_t slots = a.integer("slots");
  Array sums = zeros({a.integer("ranks"), slots});
  for (size_t i = 0; i < in.size(); ++i)
    for (size_t e = 0; e < in[i].values.size(); ++e)
      sums[a.integer("rank") * slots + a.list("first_slots")[i] + static_cast<int64_t>(e) / kBlock] +=
          in[i].values[e] * in[i].values[e];
  return {sums};
}

Arrays gradient_norm(const Attributes&, const Arrays& in, const StepState&) {
  double squares = 0;
  for (const double sum : in[0].values) squares += sum;
  return {{Shape{1}, {std::sqrt(squares)}}};
}

// All sums of a piece, in any order.
Arrays ordered_sum(const Attributes& a, const Arrays& in, const StepState&) {
  const auto bounds = a.list("bounds");
  const auto ranks = static_cast<size_t>(a.integer("ranks")), rank = static_cast<size_t>(a.integer("rank"));
  const size_t tensors = bounds.size() / (ranks + 1), own = (in.size() - 1) / tensors;
  const int64_t rows = in[0].shape[0], row = in[0].shape[1];
  Arrays sums;
  int64_t place = 0;
  for (size_t t = 0; t < tensors; ++t) {
    const int64_t first = bounds[t * (ranks + 1) + rank], count = bounds[t * (ranks + 1) + rank + 1] - first;
    if (count == 0) {
      sums.emplace_back();
      continue;
    }
    Array sum = zeros({count});
    for (int64_t e = 0; e < count; ++e) {
      for (int64_t r = 0; r < rows; ++r) sum[e] += in[0][r * row + place + e];
      for (size_t s = 0; s < own; ++s) sum[e] += in[1 + s * tensors + t][first + e];
    }
    place += (count + 3) / 4 * 4;
    sums.push_back(sum);
  }
  return sums;
}

Arrays fold(const Attributes& a, const Arrays& in, const StepState&) {
  Arrays out;
  for (size_t i = 0; i < in.size(); i += 2) {
    out.push_back(in[i + 1]);
    for (size_t e = 0; e < in[i].values.size() && !a.flag("save"); ++e) out.back().values[e] += in[i].values[e];
  }
  return out;
}

// One rank alone: everything is there.
Arrays all_there(const Attributes& a, const Arrays& in, const StepState&) {
  const size_t arrivals = a.has("arrivals") ? static_cast<size_t>(a.integer("arrivals")) : in.size();
  return {in.begin(), in.begin() + static_cast<std::ptrdiff_t>(arrivals)};
}

Arrays first_half(const Attributes&, const Arrays& in, const StepState&) {
  return {in.begin(), in.begin() + static_cast<std::ptrdiff_t>(in.size() / 2)};
}

Arrays sum_partials(const Attributes& a, const Arrays& in, const StepState&) {
  const Shape all = in[1].shape;
  const int64_t rank = a.integer("rank"), ranks = a.integer("ranks");
  const bool zigzag = a.flag("zigzag");
  Array sum = zeros(zigzag ? Shape{all[0], all[1] / ranks, all[2]}
                           : Shape{a.list("shape")[0], a.list("shape")[1], a.list("shape")[2]});
  const auto elements = static_cast<int64_t>(sum.values.size());
  for (int64_t i = 0; i < elements; ++i) {
    int64_t mine = rank * elements + i;
    if (zigzag) {
      const int64_t row = i / all[2], own = all[1] / ranks, chunk = own / 2, t = row % own;
      const int64_t position = t < chunk ? rank * chunk + t : (2 * ranks - 1 - rank) * chunk + t - chunk;
      mine = (row / own * all[1] + position) * all[2] + i % all[2];
    }
    sum[i] = in[1][mine];
    for (int64_t r = 0; r + 1 < ranks; ++r) sum[i] += in[0][r * elements + i];
    if (in.size() > 2 && !in[2].values.empty()) sum[i] += in[2][i % all[2]];
  }
  return {sum};
}

Arrays copy_parts(const Attributes& a, const Arrays& in, const StepState&) {
  const auto s = a.list("shape"), p = a.list("parts");
  Array out = zeros(s.size() == 1 ? Shape{s[0]} : Shape{s[0], s[1]});
  for (size_t i = 0; i < p.size(); i += 7)
    for (int64_t row = 0; row < p[i + 5]; ++row)
      for (int64_t c = 0; c < p[i + 6]; ++c)
        out[p[i + 3] + row * p[i + 4] + c] = in[static_cast<size_t>(p[i])][p[i + 1] + row * p[i + 2] + c];
  return {out};
}

Arrays take_tokens(const Attributes& a, const Arrays& in, const StepState&) {
  const Shape x = in[0].shape;
  const int64_t first = a.integer("first"), tokens = a.integer("tokens");
  const bool is_last = a.integer("axis") == 2;
  Array y = zeros(is_last ? Shape{x[0], x[1], tokens} : Shape{x[0], tokens, x[2]});
  for (int64_t i = 0, at = 0; i < x[0]; ++i)
    for (int64_t j = 0; j < x[1]; ++j)
      for (int64_t k = 0; k < x[2]; ++k)
        if (const int64_t t = is_last ? k : j; t >= first && t < first + tokens)
          y[at++] = in[0][(i * x[1] + j) * x[2] + k];
  return {y};
}

Arrays add_tokens(const Attributes& a, const Arrays& in, const StepState&) {
  Array sum = in[0];
  const Shape part = in[1].shape;
  for (int64_t b = 0; b < part[0]; ++b)
    for (int64_t t = 0; t < part[1]; ++t)
      for (int64_t c = 0; c < part[2]; ++c)
        sum[(b * sum.shape[1] + a.integer("first") + t) * part[2] + c] += in[1][(b * part[1] + t) * part[2] + c];
  return {sum};
}

// By the sums of exponentials themselves.
Arrays merge_attention(const Attributes& a, const Arrays& in, const StepState&) {
  Array out = in[0], sums = in[1];
  const Shape part = in[3].shape;  // (B, H, t)
  const int64_t T = sums.shape[2], D = out.shape[2] / part[1];
  for (int64_t b = 0; b < part[0]; ++b)
    for (int64_t h = 0; h < part[1]; ++h)
      for (int64_t t = 0; t < part[2]; ++t) {
        const int64_t at = (b * part[1] + h) * T + a.integer("first") + t;
        const double first = std::exp(sums[at]), second = std::exp(in[3][(b * part[1] + h) * part[2] + t]);
        for (int64_t c = 0; c < D; ++c) {
          double& value = out[((b * T + a.integer("first") + t) * part[1] + h) * D + c];
          value = (value * first + in[2][((b * part[2] + t) * part[1] + h) * D + c] * second) / (first + second);
        }
        sums[at] = std::log(first + second);
      }
  return {out, sums};
}

// Counts the keys before each query's document.
Arrays query_starts(const Attributes& a, const Arrays& in, const StepState&) {
  const auto firsts = a.list("firsts"), key_firsts = a.list("key_firsts");
  const int64_t tokens = a.integer("tokens"), chunk = tokens / static_cast<int64_t>(firsts.size());
  Array starts = zeros({in[0].shape[0], tokens});
  for (int64_t i = 0; i < starts.shape.elements(); ++i) {
    const int64_t t = i % tokens, position = firsts[static_cast<size_t>(t / chunk)] + t % chunk;
    for (const int64_t first : key_firsts)
      for (int64_t key = first; key < first + a.integer("key_chunk"); ++key)
        starts[i] += key < in[0][i / tokens * in[0].shape[1] + position];
  }
  return {starts};
}

}  // namespace

void add_rank_references(References& table) {
  table["square_sums"] = square_sums;
  table["gradient_norm"] = gradient_norm;
  table["ordered_sum"] = ordered_sum;
  table["fold"] = fold;
  table["all_gather_start"] = table["exchange_wait"] = all_there;
  table["fetch_start"] = table["copy_wait"] = all_there;
  table["store_start"] = first_half;
  table["sum_partials"] = sum_partials;
  table["copy_parts"] = copy_parts;
  table["take_tokens"] = take_tokens;
  table["add_tokens"] = add_tokens;
  table["merge_attention"] = merge_attention;
  table["query_starts"] = query_starts;
}

}  // namespace llm::reference
