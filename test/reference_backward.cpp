// Reference loops of the backward ops, each written from the derivative of the formula: with them a whole training
// graph runs in double. (test_ops.cpp checks the kernels' gradients by finite differences and does not need these
// loops.)
#include <cmath>

#include "test/reference.h"

namespace llm::reference {
namespace {

using Arrays = std::vector<Array>;

bool present(const Arrays& in, size_t i) { return i < in.size() && in[i].present(); }

Arrays embedding_backward(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t T = in[0].shape[1], C = in[1].shape.last();
  Arrays out = {zeros(in[2].shape)};
  if (present(in, 3)) out.push_back(zeros(in[3].shape));
  for (int64_t r = 0; r < in[1].shape.rows(); ++r)
    for (int64_t c = 0; c < C; ++c) {
      out[0][static_cast<int64_t>(in[0][r]) * C + c] += in[1][r * C + c];
      if (out.size() > 1) out[1][r % T * C + c] += in[1][r * C + c];
    }
  return out;
}

Arrays linear_backward_input(const Attributes&, const Arrays& in, const StepState&) {
  const Shape s = in[0].shape;
  const int64_t O = in[1].shape[0], I = in[1].shape[1];
  Array dx = zeros(s.rank() == 2 ? Shape{s[0], I} : Shape{s[0], s[1], I});
  for (int64_t r = 0; r < s.rows(); ++r)
    for (int64_t o = 0; o < O; ++o)
      for (int64_t i = 0; i < I; ++i) dx[r * I + i] += in[0][r * O + o] * in[1][o * I + i];
  return {dx};
}

Arrays linear_backward_weight(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t O = in[0].shape.last(), I = in[1].shape.last();
  Array dw = zeros({O, I}), db = zeros({O});
  for (int64_t r = 0; r < in[0].shape.rows(); ++r)
    for (int64_t o = 0; o < O; ++o) {
      db[o] += in[0][r * O + o];
      for (int64_t i = 0; i < I; ++i) dw[o * I + i] += in[0][r * O + o] * in[1][r * I + i];
    }
  return a.flag("bias") ? Arrays{dw, db} : Arrays{dw};
}

// With x^ = (x - mean) rstd and y = x^ weight, over `count` values from `at` on: adds the weight's gradient to d_weight
// and writes dx = rstd (g - x^ average(g x^) - average(g)) for g = dy weight. RMSNorm has no mean, and so no last term.
void normalise_backward(const Array& dy, const Array& x, int64_t at, int64_t count, const Array& weight, double mean,
                        double rstd, bool centred, Array& dx, Array& d_weight) {
  double g_sum = 0, gx_sum = 0;
  for (int64_t c = 0; c < count; ++c) {
    const double normal = (x[at + c] - mean) * rstd, g = dy[at + c] * weight[c];
    g_sum += centred ? g : 0;
    gx_sum += g * normal;
    d_weight[c] += dy[at + c] * normal;
  }
  const auto n = static_cast<double>(count);
  for (int64_t c = 0; c < count; ++c) {
    const double normal = (x[at + c] - mean) * rstd;
    dx[at + c] = rstd * (dy[at + c] * weight[c] - normal * gx_sum / n - g_sum / n);
  }
}

void add_to(Array& a, const Array& b) {
  for (int64_t i = 0; i < a.shape.elements(); ++i) a[i] += b[i];
}

Arrays layernorm_backward(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t C = in[1].shape.last();
  Array dx = zeros(in[1].shape), dw = zeros({C}), db = zeros({C});
  for (int64_t r = 0; r < in[1].shape.rows(); ++r) {
    normalise_backward(in[0], in[1], r * C, C, in[2], in[3][r], in[4][r], true, dx, dw);
    for (int64_t c = 0; c < C; ++c) db[c] += in[0][r * C + c];
  }
  if (present(in, 5)) add_to(dx, in[5]);
  return {dx, dw, db};
}

Arrays rmsnorm_backward(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t C = in[1].shape.last();
  Array dx = zeros(in[1].shape), dw = zeros({C});
  for (int64_t r = 0; r < in[1].shape.rows(); ++r)
    normalise_backward(in[0], in[1], r * C, C, in[2], 0, in[3][r], false, dx, dw);
  if (present(in, 4)) add_to(dx, in[4]);
  return {dx, dw};
}

Arrays qk_norm_backward(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t H = a.integer("heads"), K = a.integer("kv_heads"), D = a.integer("head_size");
  const int64_t width = in[1].shape.last();
  Array dx = in[0];
  Arrays d_weights = {zeros({D}), zeros({D})};
  for (int64_t r = 0; r < in[1].shape.rows(); ++r)
    for (int64_t head = 0; head < H + K; ++head)
      normalise_backward(in[0], in[1], r * width + head * D, D, in[head < H ? 2 : 3], 0, in[4][r * (H + K) + head],
                         false, dx, d_weights[head < H ? 0 : 1]);
  return {dx, d_weights[0], d_weights[1]};
}

// The inverse of a rotation is the rotation by the same angle with the sine negated.
Arrays rope_backward(const Attributes& a, const Arrays& in, const StepState& step) {
  Array back = in[1];
  const int64_t R = back.shape.last();
  for (int64_t i = 0; i < back.shape.elements(); ++i)
    if (i % R >= R / 2) back[i] = -back[i];
  return references().at("rope")(a, {in[0], back}, step);
}

// P = softmax(Q K^T / sqrt(D)), O = P V: dV = P^T dO, dS = P (dO V^T - row sums of dO O), dQ = dS K / sqrt(D), dK =
// dS^T Q / sqrt(D).
Arrays attention_backward(const Attributes& a, const Arrays& in, const StepState&) {
  const int64_t H = a.integer("heads"), K = a.integer("kv_heads"), D = a.integer("head_size");
  const Array &dout = in[0], &qkv = in[1], &out = in[2], &log_sum_exp = in[3];
  if (present(in, 5)) throw std::logic_error("attention_backward: the reference takes packed heads");
  const int64_t B = qkv.shape[0], T = qkv.shape[1], width = qkv.shape[2];
  const double scale = 1 / std::sqrt(static_cast<double>(D));
  Array d = zeros(qkv.shape);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t t = 0; t < T; ++t) {
        const int64_t q = (b * T + t) * width + h * D, o = ((b * T + t) * H + h) * D;
        double row = 0;
        for (int64_t c = 0; c < D; ++c) row += dout[o + c] * out[o + c];
        for (int64_t s = present(in, 4) ? static_cast<int64_t>(in[4][b * T + t]) : 0; s <= t; ++s) {
          const int64_t k = (b * T + s) * width + (H + h / (H / K)) * D, v = k + K * D;
          double score = 0, dp = 0;
          for (int64_t c = 0; c < D; ++c) score += qkv[q + c] * qkv[k + c], dp += dout[o + c] * qkv[v + c];
          const double p = std::exp(score * scale - log_sum_exp[(b * H + h) * T + t]), ds = p * (dp - row) * scale;
          for (int64_t c = 0; c < D; ++c) {
            d[v + c] += p * dout[o + c];
            d[q + c] += ds * qkv[k + c];
            d[k + c] += ds * qkv[q + c];
          }
        }
      }
  return {d};
}

Arrays gelu_backward(const Attributes&, const Arrays& in, const StepState&) {
  Array dh = in[0];
  for (int64_t i = 0; i < dh.shape.elements(); ++i) {
    const double x = in[1][i], root = std::sqrt(2 / M_PI), tanh = std::tanh(root * (x + 0.044715 * x * x * x));
    dh[i] *= 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * root * (1 + 3 * 0.044715 * x * x);
  }
  return {dh};
}

Arrays relu2_backward(const Attributes&, const Arrays& in, const StepState&) {
  Array dh = in[0];
  for (int64_t i = 0; i < dh.shape.elements(); ++i) dh[i] *= in[1][i] > 0 ? 2 * in[1][i] : 0;
  return {dh};
}

Arrays swiglu_backward(const Attributes&, const Arrays& in, const StepState&) {
  const int64_t F = in[0].shape.last();
  Array dh = zeros(in[1].shape);
  for (int64_t r = 0; r < in[0].shape.rows(); ++r)
    for (int64_t i = 0; i < F; ++i) {
      const double da = in[0][r * F + i], gate = in[1][r * 2 * F + i], up = in[1][r * 2 * F + F + i];
      const double sigmoid = 1 / (1 + std::exp(-gate));
      dh[r * 2 * F + i] = da * up * sigmoid * (1 + gate * (1 - sigmoid));
      dh[r * 2 * F + F + i] = da * gate * sigmoid;
    }
  return {dh};
}

Arrays geglu_backward(const Attributes&, const Arrays& in, const StepState&) {
  const double a = std::sqrt(2 / std::acos(-1.0)), b = 0.044715;
  const int64_t F = in[0].shape.last();
  Array dh = zeros(in[1].shape);
  for (int64_t r = 0; r < in[0].shape.rows(); ++r)
    for (int64_t i = 0; i < F; ++i) {
      const double da = in[0][r * F + i], x = in[1][r * 2 * F + i], up = in[1][r * 2 * F + F + i];
      const double t = std::tanh(a * (x + b * x * x * x)), slope = (1 - t * t) * a * (1 + 3 * b * x * x);
      dh[r * 2 * F + i] = da * up * (0.5 * (1 + t) + 0.5 * x * slope);
      dh[r * 2 * F + F + i] = da * 0.5 * x * (1 + t);
    }
  return {dh};
}

// Soft-cap and z-loss are left out: models that train in double do not use them.
Arrays cross_entropy_backward(const Attributes& a, const Arrays& in, const StepState&) {
  if (a.has("softcap") || a.has("z_loss")) fail("cross_entropy_backward has no reference with soft-cap or z-loss");
  const int64_t V = in[1].shape.last();
  Array d = zeros(in[1].shape);
  for (int64_t r = 0; r < in[1].shape.rows(); ++r) {
    const auto target = static_cast<int64_t>(in[2][r]);
    if (target < 0) continue;
    for (int64_t v = 0; v < V; ++v)
      d[r * V + v] = in[0][r] * (std::exp(in[1][r * V + v] - in[3][r]) - (v == target ? 1 : 0));
  }
  return {d};
}

}  // namespace

void add_backward_references(References& table) {
  table["embedding_backward"] = embedding_backward;
  table["linear_backward_input"] = linear_backward_input;
  table["linear_backward_weight"] = linear_backward_weight;
  table["layernorm_backward"] = layernorm_backward;
  table["rmsnorm_backward"] = rmsnorm_backward;
  table["qk_norm_backward"] = qk_norm_backward;
  table["rope_backward"] = rope_backward;
  table["attention_backward"] = attention_backward;
  table["gelu_backward"] = gelu_backward;
  table["relu2_backward"] = relu2_backward;
  table["swiglu_backward"] = swiglu_backward;
  table["geglu_backward"] = geglu_backward;
  table["cross_entropy_backward"] = cross_entropy_backward;
}

}  // namespace llm::reference
