// Reference loops of the ops on single rows or elements.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "llm/base/random.h"
#include "llm/ops/dropout_mask.h"
#include "llm/ops/sampling.h"
#include "test/reference.h"

namespace llm::reference {
namespace {

using Arrays = std::vector<Array>;

// The position of token t of T, which are some chunks of a sequence where the attributes say so.
int64_t position_of(const Attributes& a, int64_t T, int64_t t) {
  if (!a.has("firsts")) return t;
  const int64_t chunk = T / static_cast<int64_t>(a.list("firsts").size());
  return a.list("firsts")[static_cast<size_t>(t / chunk)] + t % chunk;
}

Arrays embedding(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t B = in[0].shape[0], T = in[0].shape[1], C = in[1].shape[1];
  const bool positions = in.size() > 2 && in[2].present();
  Array x = zeros({B, T, C});
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t)
      for (int64_t c = 0; c < C; ++c) {
        const auto token = static_cast<int64_t>(in[0][b * T + t]);
        const int64_t at =
            in.size() > 3 ? std::max<int64_t>(0, static_cast<int64_t>(in[3][b * T + t])) : position_of(a, T, t);
        x[(b * T + t) * C + c] = in[1][token * C + c] + (positions ? in[2][at * C + c] : 0.0);
      }
  return {x};
}

Arrays add(const Attributes&, const Arrays& in, const StepState&) {
  Array c = in[0];
  for (int64_t i = 0; i < c.shape.elements(); ++i) c[i] += in[1][i];
  return {c};
}

// x, or x + delta where the input `delta` is there.
Array residual_sum(const Arrays& in, size_t delta) {
  if (in.size() <= delta || !in[delta].present()) return in[0];
  return add({}, {in[0], in[delta]}, {})[0];
}

Arrays layernorm(const Attributes& a, const Arrays& in, const StepState&) {
  const Array x = residual_sum(in, 3);
  const int64_t rows = x.shape.rows(), C = x.shape.last();
  Array y = zeros(x.shape), means = zeros({rows}), rstds = zeros({rows});
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < C; ++c) mean += x[r * C + c] / static_cast<double>(C);
    for (int64_t c = 0; c < C; ++c) variance += std::pow(x[r * C + c] - mean, 2) / static_cast<double>(C);
    const double rstd = 1 / std::sqrt(variance + a.number("epsilon"));
    for (int64_t c = 0; c < C; ++c) y[r * C + c] = (x[r * C + c] - mean) * rstd * in[1][c] + in[2][c];
    means[r] = mean;
    rstds[r] = rstd;
  }
  return {y, means, rstds, x};
}

// Divides the `count` values from x[at] on by their root mean square and multiplies them by the weight; returns 1 /
// rms.
double normalise(const Array& x, int64_t at, int64_t count, const Array& weight, double epsilon, Array& y) {
  double squares = 0;
  for (int64_t c = 0; c < count; ++c) squares += x[at + c] * x[at + c];
  const double rstd = 1 / std::sqrt(squares / static_cast<double>(count) + epsilon);
  for (int64_t c = 0; c < count; ++c) y[at + c] = x[at + c] * rstd * weight[c];
  return rstd;
}

Arrays rmsnorm(const Attributes& a, const Arrays& in, const StepState&) {
  const Array x = residual_sum(in, 2);
  const int64_t rows = x.shape.rows(), C = x.shape.last();
  Array y = zeros(x.shape), rstds = zeros({rows});
  for (int64_t r = 0; r < rows; ++r) rstds[r] = normalise(x, r * C, C, in[1], a.number("epsilon"), y);
  return {y, rstds, x};
}

Arrays qk_norm(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t H = a.integer("heads"), K = a.integer("kv_heads"), D = a.integer("head_size");
  const int64_t rows = in[0].shape.rows(), width = in[0].shape.last();
  Array y = in[0], rstds = zeros({rows, H + K});
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t head = 0; head < H + K; ++head)
      rstds[r * (H + K) + head] =
          normalise(in[0], r * width + head * D, D, in[head < H ? 1 : 2], a.number("epsilon"), y);
  return {y, rstds};
}

// The frequencies of a head as transformers' modeling_rope_utils.py has them, with its names.
std::vector<double> rope_frequencies(const Attributes& a) {
  const double factor = a.number("factor", 1), pi = std::acos(-1.0), dim = static_cast<double>(a.integer("head_size"));
  const double base = a.number("theta"), low = a.number("low", 1), high = a.number("high", 4);
  const double old_context = a.number("original", 8192);
  const auto correction_dim = [&](double rotations) {
    return dim * std::log(old_context / (rotations * 2 * pi)) / (2 * std::log(base));
  };
  std::vector<double> result;
  for (double i = 0; i < dim / 2; ++i) {
    double frequency = 1 / std::pow(base, 2 * i / dim);
    const double wavelen = 2 * pi / frequency;
    if (a.integer("stretch", 0) == 1) {
      frequency /= factor;
    } else if (a.integer("stretch", 0) == 2) {
      const double first = std::max(std::floor(correction_dim(high)), 0.0);
      double last = std::min(std::ceil(correction_dim(low)), dim - 1);
      if (last == first) last += 0.001;
      const double extrapolated = 1 - std::clamp((i - first) / (last - first), 0.0, 1.0);
      frequency = frequency / factor * (1 - extrapolated) + frequency * extrapolated;
    } else if (wavelen > old_context / low) {
      frequency /= factor;
    } else if (wavelen >= old_context / high) {
      const double smooth = (old_context / wavelen - low) / (high - low);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
    result.push_back(frequency);
  }
  return result;
}

Arrays rope_angles(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t T = a.integer("tokens"), D = a.integer("head_size");
  const std::vector<double> frequencies = rope_frequencies(a);
  Array angles = zeros({T, D});
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < D / 2; ++i) {
      double turn =
          (in.empty() ? static_cast<double>(position_of(a, T, t)) : in[0][t]) * frequencies[static_cast<size_t>(i)];
      if (const bool is_far = in.size() > 1 && in[1][t] != 0; a.has("divisors"))
        turn /= a.numbers(is_far ? "long_divisors" : "divisors")[static_cast<size_t>(i)];
      angles[t * D + i] = a.number("magnitude", 1) * std::cos(turn);
      angles[t * D + D / 2 + i] = a.number("magnitude", 1) * std::sin(turn);
    }
  return {angles};
}

Arrays split_heads(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t D = a.integer("head_size"), queries = a.integer("heads") * D, keys = 2 * a.integer("kv_heads") * D;
  const Shape s = in[0].shape;
  Array q = zeros({s[0], s[1], queries}), kv = zeros({s[0], s[1], keys});
  for (int64_t r = 0; r < s.rows(); ++r)
    for (int64_t c = 0; c < queries + keys; ++c)
      (c < queries ? q[r * queries + c] : kv[r * keys + c - queries]) = in[0][r * (queries + keys) + c];
  return {q, kv};
}

Arrays rope(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t turned = a.integer("heads") + a.integer("kv_heads"), D = a.integer("head_size");
  const int64_t rows = in[0].shape.rows(), width = in[0].shape.last(), T = in[0].shape[1];
  const int64_t R = a.integer("rotary_size", D);
  Array y = in[0];
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t head = 0; head < turned; ++head)
      for (int64_t i = 0; i < R / 2; ++i) {
        const int64_t first = r * width + head * D + i, second = first + R / 2;
        const double cosine = in[1][r % T * R + i], sine = in[1][r % T * R + R / 2 + i];
        y[first] = in[0][first] * cosine - in[0][second] * sine;
        y[second] = in[0][second] * cosine + in[0][first] * sine;
      }
  return {y};
}

Arrays gelu(const Attributes&, const Arrays& in, const StepState&) {
  Array a = in[0];
  for (double& x : a.values) x = 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  return {a};
}

Arrays relu2(const Attributes&, const Arrays& in, const StepState&) {
  Array a = in[0];
  for (double& x : a.values) x = x > 0 ? x * x : 0;
  return {a};
}

Arrays swiglu(const Attributes&, const Arrays& in, const StepState&) {
  const Shape h = in[0].shape;
  const int64_t F = h[2] / 2;
  Array a = zeros({h[0], h[1], F});
  for (int64_t r = 0; r < h.rows(); ++r)
    for (int64_t i = 0; i < F; ++i) {
      const double gate = in[0][r * 2 * F + i], up = in[0][r * 2 * F + F + i];
      a[r * F + i] = gate / (1 + std::exp(-gate)) * up;
    }
  return {a};
}

Arrays geglu(const Attributes& attributes, const Arrays& in, const StepState& step) {
  const Shape h = in[0].shape;
  const int64_t F = h[2] / 2;
  Array gate = zeros({h[0], h[1], F});
  for (int64_t i = 0; i < gate.shape.elements(); ++i) gate[i] = in[0][i / F * 2 * F + i % F];
  Array a = gelu(attributes, {gate}, step)[0];
  for (int64_t i = 0; i < a.shape.elements(); ++i) a[i] *= in[0][i / F * 2 * F + F + i % F];
  return {a};
}

Arrays scale(const Attributes& a, const Arrays& in, const StepState&) {
  Array y = in[0];
  for (double& v : y.values) v *= a.number("factor");
  return {y};
}

Arrays softcap(const Attributes& a, const Arrays& in, const StepState&) {
  Array y = in[0];
  for (double& v : y.values) v = a.number("cap") * std::tanh(v / a.number("cap"));
  return {y};
}

Arrays dropout(const Attributes& a, const Arrays& in, const StepState& step) {
  const double p = a.number("probability");
  const DropoutMask mask(p, a.integer("stream"));
  Array y = in[0];
  const int64_t row = y.shape.elements() / y.shape[0];
  for (int64_t i = 0; i < y.shape.elements(); ++i) {
    const int64_t e = i % row, C = y.shape.last();
    int64_t group = e / 4 + a.integer("first_group", 0);
    if (a.has("firsts")) {
      const int64_t token = 4 * group / C, chunk = a.integer("chunk");
      group += (a.list("firsts")[static_cast<size_t>(token / chunk)] - token / chunk * chunk) * C / 4;
    }
    y[i] *= mask.bits(step, i / row + a.integer("first_row", 0), group)[static_cast<size_t>(e % 4)] / 4294967296.0 >= p
                ? 1 / (1 - p)
                : 0;
  }
  return {y};
}

// The drawn token is found among the tokens in order of likelihood, or of ids where top-k and top-p leave none out.
Arrays sample(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t limit = a.integer("limit", 0), all = in[0].shape.last(), V = limit > 0 ? limit : all;
  const int64_t R = in[0].shape.rows();
  Array draws = zeros({R, 4});
  for (int64_t row = 0; row < R; ++row) {
    int32_t words[12];
    for (int64_t i = 0; i < 12; ++i) words[i] = static_cast<int32_t>(in[1][12 * row + i]);
    SampleRow o;
    std::memcpy(static_cast<void*>(&o), words, sizeof o);
    if (o.temperature < 0) continue;
    const auto logit = [&](int64_t id) { return in[0][row * all + id]; };
    std::vector<int64_t> order(static_cast<size_t>(V));
    std::iota(order.begin(), order.end(), 0);
    const auto likelier = [&](int64_t x, int64_t y) { return logit(x) > logit(y); };
    const bool cut = (o.top_k > 0 && o.top_k < V) || o.top_p < 1 || o.min_p > 0;
    const int64_t best = *std::min_element(order.begin(), order.end(), likelier);
    if (cut) std::stable_sort(order.begin(), order.end(), likelier);
    if (o.top_k > 0 && o.top_k < V) order.resize(static_cast<size_t>(o.top_k));
    const auto weight = [&](int64_t id) { return std::exp((logit(id) - logit(best)) / o.temperature); };
    const auto prefix = [&](double share, bool passes) {  // how many tokens reach (or pass) the share
      double total = 0, reached = 0;
      for (int64_t id : order) total += weight(id);
      for (size_t i = 0; i < order.size(); ++i)
        if ((reached += weight(order[i])) > share * total || (!passes && reached == share * total)) return i + 1;
      return order.size();
    };
    if (o.top_p < 1) order.resize(prefix(o.top_p, false));
    std::erase_if(order, [&](int64_t id) { return weight(id) < o.min_p; });
    const double share = Random(o.seed, stream_of("sample")).uniform(static_cast<uint64_t>(o.index));
    draws[4 * row] = static_cast<double>(o.temperature == 0 ? best : order[prefix(share, true) - 1]);
  }
  return {draws};
}

}  // namespace

void add_row_references(References& table) {
  table["embedding"] = embedding;
  table["add"] = add;
  table["layernorm"] = layernorm;
  table["rmsnorm"] = rmsnorm;
  table["qk_norm"] = qk_norm;
  table["rope_angles"] = rope_angles;
  table["rope"] = rope;
  table["split_heads"] = split_heads;
  table["gelu"] = gelu;
  table["relu2"] = relu2;
  table["swiglu"] = swiglu;
  table["geglu"] = geglu;
  table["scale"] = scale;
  table["softcap"] = softcap;
  table["dropout"] = dropout;
  table["sample"] = sample;
}

}  // namespace llm::reference
