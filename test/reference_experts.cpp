// Reference loops of the ops of layers with experts.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "test/reference.h"

namespace llm::reference {
namespace {

using Arrays = std::vector<Array>;

std::vector<double> softmax(const Array& logits, int64_t at, int64_t count) {
  std::vector<double> p(logits.values.begin() + at, logits.values.begin() + at + count);
  double sum = 0;
  for (double& v : p) sum += v = std::exp(v);
  for (double& v : p) v /= sum;
  return p;
}

Arrays route(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t E = in[0].shape.last(), K = a.integer("chosen");
  const Shape shape = {in[0].shape[0], in[0].shape[1], K};
  Array experts = zeros(shape), weights = zeros(shape);
  for (int64_t r = 0; r < shape.rows(); ++r) {
    std::vector<double> scores(in[0].values.begin() + r * E, in[0].values.begin() + (r + 1) * E);
    if (in.size() > 1 && in[1].present()) {
      scores = softmax(in[0], r * E, E);
      for (int64_t e = 0; e < E; ++e) scores[static_cast<size_t>(e)] += in[1][e];
    }
    std::vector<int64_t> order(static_cast<size_t>(E));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
      return scores[static_cast<size_t>(x)] > scores[static_cast<size_t>(y)];
    });
    double sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += std::exp(in[0][r * E + order[static_cast<size_t>(k)]]);
    for (int64_t k = 0; k < K; ++k) {
      experts[r * K + k] = static_cast<double>(order[static_cast<size_t>(k)]);
      weights[r * K + k] = std::exp(in[0][r * E + order[static_cast<size_t>(k)]]) / sum;
    }
  }
  return {experts, weights};
}

Arrays expert_load(const Attributes& a, const Arrays& in, const StepState&) {
  Array load = zeros({a.integer("experts")});
  const auto E = static_cast<double>(load.values.size());
  for (const double e : in[0].values) {
    load[static_cast<int64_t>(e)] += 1;
    for (double& v : load.values) v -= 1 / E;
  }
  return {load};
}

struct Terms {
  double balance = 0, square = 0, entropy = 0;
};
Terms terms_of(const Attributes& a, const Arrays& in, int64_t row) {
  const int64_t E = in[0].shape.last();
  const auto choices = static_cast<double>(in[0].shape.rows() * a.integer("chosen") * a.integer("ranks", 1));
  Terms t;
  double sum = 0;
  for (int64_t e = 0; e < E; ++e) sum += std::exp(in[0][row * E + e]);
  t.square = std::log(sum) * std::log(sum);
  for (int64_t e = 0; e < E; ++e) {
    const double p = std::exp(in[0][row * E + e]) / sum;
    t.balance += static_cast<double>(E) * in[1][e] / choices * p;
    t.entropy -= p * std::log(p);
  }
  return t;
}

Arrays router_loss(const Attributes& a, const Arrays& in, const StepState&) {
  Array losses = zeros({in[0].shape[0], in[0].shape[1]});
  for (int64_t r = 0; r < in[0].shape.rows(); ++r) {
    const Terms t = terms_of(a, in, r);
    losses[r] = a.number("balance_weight") * t.balance + a.number("z_weight") * t.square;
  }
  return {losses};
}

Arrays router_statistics(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t E = in[0].shape.last();
  Array sums = zeros({E + 3});
  std::copy(in[1].values.begin(), in[1].values.end(), sums.values.begin());
  for (int64_t r = 0; r < in[0].shape.rows(); ++r) {
    const Terms t = terms_of(a, in, r);
    sums[E] += t.balance, sums[E + 1] += t.square, sums[E + 2] += t.entropy;
  }
  return {sums};
}

Arrays expert_counts(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t E = in[0].shape.last(), each = E / a.integer("ranks");
  Array own = zeros({each}), all = zeros({E});
  for (int64_t row = 0; row < in[0].shape.rows(); ++row)
    for (int64_t e = 0; e < E; ++e) {
      all[e] += in[0][row * E + e];
      const int64_t from_first = row - a.integer("first_row"), distance = a.integer("row_distance");
      const bool shares = from_first >= 0 && from_first % distance == 0 && from_first / distance < a.integer("ranks");
      if (shares && e / each == a.integer("rank")) own[e % each] += in[0][row * E + e];
    }
  return {own, all};
}

Arrays expert_order(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t E = a.integer("experts"), N = in[0].shape.elements();
  Array order = zeros({N}), place = zeros(in[0].shape), counts = zeros({E});
  int64_t row = 0;
  for (int64_t e = 0; e <= E; ++e)
    for (int64_t i = 0; i < N; ++i) {
      if (static_cast<int64_t>(in[0][i]) != (e < E ? e : -1)) continue;
      if (e < E) counts[e] += 1;
      place[i] = static_cast<double>(row);
      order[row++] = static_cast<double>(i);
    }
  return {order, place, counts};
}

Arrays expert_rows(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t N = in[1].shape.elements(), K = in[2].shape.last(), C = in[0].shape.last();
  Array rows = zeros({1, N, C});
  for (int64_t r = 0; r < N; ++r)
    for (int64_t c = 0; c < C; ++c) rows[r * C + c] = in[0][static_cast<int64_t>(in[1][r]) / K * C + c];
  return {rows};
}

Arrays expert_sum(const Attributes&, const Arrays& in, const StepState&) {
  const Shape choices = in[1].shape;
  const int64_t C = in[0].shape.last();
  Array out = zeros({choices[0], choices[1], C});
  for (int64_t i = 0; i < choices.elements(); ++i)
    for (int64_t c = 0; c < C; ++c)
      out[i / choices[2] * C + c] += in[1][i] * in[0][static_cast<int64_t>(in[3][i]) * C + c];
  return {out};
}

Arrays grouped_linear(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t E = in[2].shape.elements(), I = in[1].shape[1], O = in[1].shape[0] / E;
  Array y = zeros({1, in[0].shape.rows(), O});
  int64_t row = 0;
  for (int64_t e = 0; e < E; ++e)
    for (const int64_t end = row + static_cast<int64_t>(in[2][e]); row < end; ++row)
      for (int64_t o = 0; o < O; ++o)
        for (int64_t i = 0; i < I; ++i) y[row * O + o] += in[0][row * I + i] * in[1][(e * O + o) * I + i];
  return {y};
}

// The backward ops, each written from the derivative of the formula.

Arrays route_backward(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t E = a.integer("experts"), K = in[1].shape.last();
  Array d_logits = zeros({in[1].shape[0], in[1].shape[1], E});
  for (int64_t r = 0; r < in[1].shape.rows(); ++r)
    for (int64_t k = 0; k < K; ++k)
      for (int64_t j = 0; j < K; ++j)  // d w_k / d logit_j = w_k ((k == j) - w_j)
        d_logits[r * E + static_cast<int64_t>(in[2][r * K + j])] +=
            in[0][r * K + k] * in[1][r * K + k] * ((k == j ? 1.0 : 0.0) - in[1][r * K + j]);
  return {d_logits};
}

Arrays router_loss_backward(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t E = in[1].shape.last();
  const auto choices = static_cast<double>(in[1].shape.rows() * a.integer("chosen"));
  Array d_logits = zeros(in[1].shape);
  for (int64_t r = 0; r < in[1].shape.rows(); ++r) {
    const std::vector<double> p = softmax(in[1], r * E, E);
    double sum = 0;
    for (int64_t e = 0; e < E; ++e) sum += std::exp(in[1][r * E + e]);
    for (int64_t e = 0; e < E; ++e) {
      const double p_e = p[static_cast<size_t>(e)];
      double& d = d_logits[r * E + e];
      d += in[0][r] * a.number("z_weight") * 2 * std::log(sum) * p_e;
      for (int64_t f = 0; f < E; ++f)  // d p_f / d logit_e = p_f ((e == f) - p_e)
        d += in[0][r] * a.number("balance_weight") * static_cast<double>(E) * in[2][f] / choices *
             p[static_cast<size_t>(f)] * ((e == f ? 1.0 : 0.0) - p_e);
    }
  }
  return {d_logits};
}

Arrays expert_rows_backward(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t K = in[1].shape.last(), C = in[0].shape.last();
  Array dx = zeros({in[1].shape[0], in[1].shape[1], C});
  for (int64_t i = 0; i < in[1].shape.elements(); ++i)
    for (int64_t c = 0; c < C; ++c) dx[i / K * C + c] += in[0][static_cast<int64_t>(in[1][i]) * C + c];
  return {dx};
}

Arrays expert_sum_backward(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t K = in[2].shape.last(), C = in[0].shape.last();
  Array dy = zeros(in[1].shape), d_weights = zeros(in[2].shape);
  for (int64_t i = 0; i < in[2].shape.elements(); ++i)
    for (int64_t c = 0, row = static_cast<int64_t>(in[4][i]); c < C; ++c) {
      dy[row * C + c] = in[0][i / K * C + c] * in[2][i];
      d_weights[i] += in[0][i / K * C + c] * in[1][row * C + c];
    }
  return {dy, d_weights};
}

// Calls use(row, expert) for each row of an expert.
template <class Use>
void for_rows(const Array& counts, Use use) {
  int64_t row = 0;
  for (int64_t e = 0; e < counts.shape.elements(); ++e)
    for (const int64_t end = row + static_cast<int64_t>(counts[e]); row < end; ++row) use(row, e);
}

Arrays grouped_linear_backward_input(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t O = in[0].shape.last(), I = in[1].shape.last();
  Array dx = zeros({1, in[0].shape.rows(), I});
  for_rows(in[2], [&](int64_t row, int64_t e) {
    for (int64_t o = 0; o < O; ++o)
      for (int64_t i = 0; i < I; ++i) dx[row * I + i] += in[0][row * O + o] * in[1][(e * O + o) * I + i];
  });
  return {dx};
}

Arrays grouped_linear_backward_weight(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t O = in[0].shape.last(), I = in[1].shape.last();
  Array dw = zeros({in[2].shape.elements() * O, I});
  for_rows(in[2], [&](int64_t row, int64_t e) {
    for (int64_t o = 0; o < O; ++o)
      for (int64_t i = 0; i < I; ++i) dw[(e * O + o) * I + i] += in[0][row * O + o] * in[1][row * I + i];
  });
  return {dw};
}

}  // namespace

void add_expert_references(References& table) {
  table["route"] = route;
  table["expert_load"] = expert_load;
  table["router_loss"] = router_loss;
  table["router_statistics"] = router_statistics;
  table["expert_counts"] = expert_counts;
  table["expert_order"] = expert_order;
  table["expert_rows"] = expert_rows;
  table["expert_sum"] = expert_sum;
  table["grouped_linear"] = grouped_linear;
  table["route_backward"] = route_backward;
  table["router_loss_backward"] = router_loss_backward;
  table["expert_rows_backward"] = expert_rows_backward;
  table["expert_sum_backward"] = expert_sum_backward;
  table["grouped_linear_backward_input"] = grouped_linear_backward_input;
  table["grouped_linear_backward_weight"] = grouped_linear_backward_weight;
}

}  // namespace llm::reference
