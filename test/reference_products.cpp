// Reference loops of the matrix products, attention, the losses and the optimizer.
#include <algorithm>
#include <cmath>
#include <limits>

#include "test/reference.h"

namespace llm::reference {
namespace {

using Arrays = std::vector<Array>;

Shape with_last(const Shape& s, int64_t last) {
  return s.rank() == 1 ? Shape{last} : s.rank() == 2 ? Shape{s[0], last} : Shape{s[0], s[1], last};
}

// The second output is there only with the attribute "activation".
Arrays linear(const Attributes& a, const Arrays& in, const StepState& step) {
  const int64_t rows = in[0].shape.rows(), O = in[1].shape[0], I = in[1].shape[1];
  Array y = zeros(with_last(in[0].shape, O));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < O; ++o) {
      double sum = in.size() > 2 && in[2].present() ? in[2][o] : 0.0;
      for (int64_t i = 0; i < I; ++i) sum += in[0][r * I + i] * in[1][o * I + i];
      y[r * O + o] = sum;
    }
  switch (static_cast<ActivationKind>(a.integer("activation", 0))) {
    case ActivationKind::none:
    case ActivationKind::swiglu: return {y};
    case ActivationKind::gelu: return {y, references().at("gelu")({}, {y}, step)[0]};
    case ActivationKind::relu2: return {y, references().at("relu2")({}, {y}, step)[0]};
  }
  return {};
}

// Attention of one query (D) to positions [first, positions), whose keys and values begin at key(t) and value(t): adds
// its result to out and returns log(sum(exp(scores))).
template <class Key, class Value>
double attend(const Array& query, int64_t query_at, const Array& keys, Key key, const Array& values, Value value,
              int64_t positions, int64_t D, Array& out, int64_t out_at, int64_t first = 0) {
  std::vector<double> scores(static_cast<size_t>(positions));
  double top = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t t = first; t < positions; ++t) {
    double dot = 0;
    for (int64_t d = 0; d < D; ++d) dot += query[query_at + d] * keys[key(t) + d];
    scores[static_cast<size_t>(t)] = dot / std::sqrt(static_cast<double>(D));
    top = std::max(top, scores[static_cast<size_t>(t)]);
  }
  for (int64_t t = first; t < positions; ++t) {
    double& score = scores[static_cast<size_t>(t)];
    sum += score = std::exp(score - top);
  }
  for (int64_t t = first; t < positions; ++t)
    for (int64_t d = 0; d < D; ++d) out[out_at + d] += scores[static_cast<size_t>(t)] / sum * values[value(t) + d];
  return top + std::log(sum);
}

// The position of query t of T, where these are chunks of a sequence.
int64_t query_position(const Attributes& a, bool is_packed, int64_t T, int64_t t) {
  if (is_packed) return t;
  const auto firsts = a.list("firsts");
  const int64_t chunk = T / static_cast<int64_t>(firsts.size());
  return firsts[static_cast<size_t>(t / chunk)] + t % chunk;
}

Arrays attention(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t H = a.integer("heads"), K = a.integer("kv_heads"), D = a.integer("head_size");
  const bool is_packed = in.size() < 3 || !in[2].present();
  const Array &q = in[0], &kv = is_packed ? in[0] : in[2];
  const int64_t B = q.shape[0], T = q.shape[1], keys = kv.shape[1], before = is_packed ? H : 0;
  Array out = zeros({B, T, H * D}), log_sum_exp = zeros({B, H, T});
  const bool has_starts = in.size() > 1 && in[1].present();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t t = 0; t < T; ++t) {
        const int64_t of_group = h / (H / K), position = query_position(a, is_packed, T, t);
        const auto key = [&](int64_t s) { return (b * keys + s) * kv.shape[2] + (before + of_group) * D; };
        const auto value = [&](int64_t s) { return key(s) + K * D; };
        log_sum_exp[(b * H + h) * T + t] =
            attend(q, (b * T + t) * q.shape[2] + h * D, kv, key, kv, value, std::min(position + 1, keys), D, out,
                   ((b * T + t) * H + h) * D, has_starts ? static_cast<int64_t>(in[1][b * T + t]) : 0);
      }
  return {out, log_sum_exp};
}

Arrays document_starts(const Attributes& a, const Arrays& in, const StepState&) {
  Array starts = in[0];
  const int64_t T = in[0].shape.last();
  for (int64_t i = 0; i < in[0].shape.elements(); ++i) {
    starts[i] = 0;
    for (int64_t t = i / T * T; t <= i; ++t)
      if (in[0][t] == a.number("end_of_text")) starts[i] = static_cast<double>(t % T);
  }
  return {starts};
}

Arrays attention_paged(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t H = a.integer("heads"), K = a.integer("kv_heads"), D = a.integer("head_size");
  const Array &qkv = in[0], &positions = in[3], &slots = in[4], &tables = in[5];
  Array keys = in[1], values = in[2];
  const int64_t R = qkv.shape[1], width = qkv.shape[2], P = keys.shape[2], M = tables.shape[1];
  Array out = zeros({1, R, H * D});
  const auto place = [&](int64_t row, int64_t position, int64_t head) {
    const auto slot = static_cast<int64_t>(slots[row]), block = static_cast<int64_t>(tables[slot * M + position / P]);
    return ((block * K + head) * P + position % P) * D;
  };
  for (int64_t row = 0; row < R; ++row)
    for (int64_t head = 0; head < K && positions[row] >= 0; ++head)
      for (int64_t i = 0; i < D; ++i) {
        const int64_t to = place(row, static_cast<int64_t>(positions[row]), head) + i;
        keys[to] = qkv[row * width + (H + head) * D + i];
        values[to] = qkv[row * width + (H + K + head) * D + i];
      }
  for (int64_t row = 0; row < R; ++row)
    for (int64_t h = 0; h < H && positions[row] >= 0; ++h) {
      const auto key = [&](int64_t s) { return place(row, s, h / (H / K)); };
      attend(qkv, row * width + h * D, keys, key, values, key, static_cast<int64_t>(positions[row]) + 1, D, out,
             (row * H + h) * D);
    }
  return {out, keys, values};
}

double capped(const Attributes& a, double logit) {
  const double cap = a.number("softcap", 0);
  return cap > 0 ? cap * std::tanh(logit / cap) : logit;
}

Arrays cross_entropy(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t V = in[0].shape.last();
  Array losses = zeros(in[1].shape), log_sum_exp = zeros(in[1].shape);
  for (int64_t r = 0; r < in[0].shape.rows(); ++r) {
    double top = capped(a, in[0][r * V]), sum = 0;
    for (int64_t v = 0; v < V; ++v) top = std::max(top, capped(a, in[0][r * V + v]));
    for (int64_t v = 0; v < V; ++v) sum += std::exp(capped(a, in[0][r * V + v]) - top);
    log_sum_exp[r] = top + std::log(sum);
    const auto target = static_cast<int64_t>(in[1][r]);
    if (target < 0) continue;
    losses[r] = log_sum_exp[r] - capped(a, in[0][r * V + target]);
    losses[r] += a.number("z_loss", 0) * log_sum_exp[r] * log_sum_exp[r];
  }
  return {losses, log_sum_exp};
}

Arrays head_loss(const Attributes& a, const Arrays& in, const StepState& step) {
  const Array &x = in[0], &weight = in[1], &targets = in[2];
  const int64_t V = weight.shape[0], C = weight.shape[1];
  const Array logits = linear({}, {x, weight}, step)[0];
  const Arrays loss = cross_entropy(a, {logits, targets}, step);
  if (in.size() < 4 || !in[3].present()) return {loss[0]};
  Array dx = zeros(x.shape), d_weight = zeros(weight.shape);
  const double cap = a.number("softcap", 0);
  for (int64_t r = 0; r < x.shape.rows(); ++r) {
    const auto target = static_cast<int64_t>(targets[r]);
    if (target < 0) continue;
    for (int64_t v = 0; v < V; ++v) {
      const double softmax = std::exp(capped(a, logits[r * V + v]) - loss[1][r]);
      const double z = 2 * a.number("z_loss", 0) * loss[1][r];
      const double slope = cap > 0 ? 1 / std::pow(std::cosh(logits[r * V + v] / cap), 2) : 1;
      const double d = (softmax * (1 + z) - (v == target ? 1 : 0)) * slope * in[3][r];
      for (int64_t c = 0; c < C; ++c) {
        dx[r * C + c] += d * weight[v * C + c];
        d_weight[v * C + c] += d * x[r * C + c];
      }
    }
  }
  return {loss[0], dx, d_weight};
}

Arrays step_guard(const Attributes& a, const Arrays& in, const StepState&) {
  Array statistics = in[2];
  bool sticks_out = false;
  for (int which = 0; which < 2; ++which) {
    double &mean = statistics[1 + 2 * which], &variance = statistics[2 + 2 * which];
    const double limit = std::max(a.number("deviations") * std::sqrt(variance), which == 0 ? 0.5 : std::log(4.0));
    double distance = (which == 0 ? in[1][0] : std::log(in[0][0])) - mean;
    if (in[2][0] >= a.number("after") && distance > limit) sticks_out = true, distance = limit;
    const double weight = std::max(0.02, 5 / (in[2][0] + 5));
    mean += weight * distance;
    variance = (1 - weight) * (variance + weight * distance * distance);
  }
  statistics[0] += 1;
  return {{Shape{1}, {sticks_out ? std::numeric_limits<double>::infinity() : in[0][0]}}, statistics};
}

// torch.optim.AdamW after torch.nn.utils.clip_grad_norm_. This loop takes the master for the parameter, which it does
// not round.
Arrays adamw(const Attributes& a, const Arrays& in, const StepState& step) {
  Arrays outputs;
  const double clip = a.number("grad_clip"), norm = in[0][0];
  const double scale = clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0;
  const double beta1 = a.number("beta1"), beta2 = a.number("beta2"), steps = static_cast<double>(step.step + 1);
  const double learning_rate = step.learning_rate * a.number("learning_rate_scale");
  for (size_t p = 1; p < in.size(); p += 5) {
    const bool has_master = in[p + 4].present();
    Array parameter = in[has_master ? p + 4 : p], first = in[p + 2], second = in[p + 3];
    for (int64_t i = 0; i < parameter.shape.elements(); ++i) {
      const double g = in[p + 1][i] * scale;
      first[i] = beta1 * first[i] + (1 - beta1) * g;
      second[i] = beta2 * second[i] + (1 - beta2) * g * g;
      const double m = first[i] / (1 - std::pow(beta1, steps)), v = second[i] / (1 - std::pow(beta2, steps));
      parameter[i] *= 1 - learning_rate * a.number("weight_decay");
      parameter[i] -= learning_rate * m / (std::sqrt(v) + a.number("epsilon"));
    }
    outputs.insert(outputs.end(), {parameter, first, second, has_master ? parameter : Array{}});
  }
  return outputs;
}

Arrays bias_gradient(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t O = in[0].shape.last();
  Array db = zeros({O});
  for (int64_t i = 0; i < in[0].shape.elements(); ++i) db[i % O] += in[0][i];
  return {db};
}

// The values are not rounded: the error of the kernel's results is their rounding.
Arrays quantize(const Attributes& a, const Arrays& in, const StepState&) {
  double most = 0;
  for (double v : in[0].values) most = std::max(most, std::abs(v));
  if (in.size() > 1) most = in[1][0];
  const int64_t rows = in[0].shape.rows(), C = in[0].shape.last();
  const double scale = most > 0 ? most / (a.flag("e5m2") ? 57344 : 448) : 1;
  Array q = in[0], transposed = zeros({C, rows});
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < C; ++c) transposed[c * rows + r] = q[r * C + c] /= scale;
  return {a.flag("rows") ? q : Array{}, a.flag("transposed") ? transposed : Array{}, {Shape{1}, {scale}}};
}

Arrays product_fp8(const Attributes&, const Arrays& in, const StepState& step) {
  Arrays factors = {in[0], in[2]};
  if (in.size() > 4 && in[4].present()) factors.push_back(in[4]);
  for (double& v : factors[0].values) v *= in[1][0];
  for (double& v : factors[1].values) v *= in[3][0];
  return linear({}, factors, step);
}

Arrays mean_loss(const Attributes&, const Arrays& in, const StepState&) {
  double sum = 0;
  for (int64_t i = 0; i < in[0].shape.elements(); ++i) sum += in[0][i] * in[1][i];
  return {{Shape{1}, {sum}}};
}

}  // namespace

void add_product_references(References& table) {
  table["linear"] = linear;
  table["document_starts"] = document_starts;
  table["attention"] = attention;
  table["attention_paged"] = attention_paged;
  table["cross_entropy"] = cross_entropy;
  table["head_loss"] = head_loss;
  table["step_guard"] = step_guard;
  table["adamw"] = adamw;
  table["mean_loss"] = mean_loss;
  table["bias_gradient"] = bias_gradient;
  table["quantize"] = quantize;
  table["product_fp8"] = product_fp8;
  table["cast"] = [](const Attributes&, const Arrays& in, const StepState&) { return Arrays{in[0]}; };
}

}  // namespace llm::reference
