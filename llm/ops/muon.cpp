// The elementwise half of Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"). The
// matrix products between its two ops are ordinary nodes, which llm/model/optimizer.cpp adds. Both ops take many
// matrices at once.
//
// muon_momentum: Nesterov's momentum, and the update of each part of a matrix divided by its own Frobenius norm, with
// which the iteration that makes it orthogonal can start.
//   norm (1), then for each matrix: gradient, momentum (both fp32)
//   -> for each matrix: momentum, in place; then for each part: x
//   g *= min(1, clip / (norm + 1e-6)); m = beta m + (1 - beta) g; u = beta m + (1 - beta) g; x = u / (margin |u|)
//   A part is some rows of a matrix: the query, key and value projections of a fused matrix are parts of their own.
//   Attributes: momentum (beta), grad_clip (0: none), margin (above 1, so that after rounding all singular values are
//   below 1), bf16 (a flag: the parts x are bf16), rows (the number of rows of each part, matrix after matrix).
//
// muon_apply: the step with decoupled weight decay.
//   norm (1), then for each matrix: parameter, [master], the orthogonal x of its parts
//   -> for each matrix: parameter, [master], in place
//   p = p (1 - lr decay) - lr rms sqrt(max(rows, columns)) x
//   The elements of an orthogonal rows x columns matrix have a root mean square of 1 / sqrt(max(rows, columns)), which
//   the factor changes to `rms`: about that of AdamW's updates, so that one learning rate and decay serve both
//   optimizers (Liu et al. 2025, "Muon is scalable for LLM training").
//   Masters and their rounding are as in adamw.cpp. Attributes: weight_decay, rms, learning_rate_scale; where parameters are
//   slices of matrices, "row_slices" or "column_slices", how many each has; "other_row_slices", where all parts but the
//   first have another number of them.
//
// If the norm is not finite, momentum, parameters and masters stay as they were, and every x is zero.
#include <cmath>

#include "llm/base/random.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/muon_parts.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"
#include "llm/ops/square_sums.h"

namespace llm {
namespace {

constexpr int64_t kBlock = 16384;  // elements
constexpr float kLeastNorm = 1e-30f;

double elements_of(const Graph& g, TensorId id) { return static_cast<double>(g.shape(id).elements()); }

TensorId add_updated(Graph& g, Node& node, TensorId id) {
  const Tensor owner = g.tensor(id);
  const TensorId updated = g.add_output(node, owner.name, owner.dtype, owner.shape);
  g.tensor(updated).alias = id;
  g.tensor(updated).role = owner.role;
  return updated;
}

void infer_momentum(Graph& g, Node& node) {
  if (node.inputs.size() % 2 != 1) fail("muon_momentum: it takes the norm, and gradient and momentum of each matrix");
  const size_t matrices = (node.inputs.size() - 1) / 2;
  for (size_t p = 0; p < matrices; ++p) {
    const Shape gradient = g.shape(node.inputs[1 + 2 * p]), momentum = g.shape(node.inputs[2 + 2 * p]);
    if (gradient.rank() != 2 || gradient != momentum)
      fail("muon_momentum: gradient ", gradient.text(), " and momentum ", momentum.text(), " are not one matrix's");
    add_updated(g, node, node.inputs[2 + 2 * p]);
  }
  const DType dtype = node.attributes.flag("bf16") ? DType::bf16 : DType::fp32;
  for_muon_parts(g, node, [&](const MuonPart& part) { g.add_output(node, "part", dtype, {part.rows, part.columns}); });
}

// A sum of squares for each block: on the CPU of one part at a time, on the GPU of all parts.
size_t momentum_workspace(const Graph& g, const Node& node, const Target& target) {
  int64_t most = 0, on_cuda = 0;
  for_muon_parts(g, node, [&](const MuonPart& part) {
    most = std::max(most, ceil_div(part.elements(), kBlock));
    on_cuda += square_sum_blocks(part.elements());
  });
  return static_cast<size_t>(target.cuda ? on_cuda : most) * sizeof(double);
}

Cost momentum_cost(const Graph& g, const Node& node) {
  double elements = 0;
  for (size_t i = 1; i < node.inputs.size(); i += 2) elements += elements_of(g, node.inputs[i]);
  return streaming_cost(g, node, 9 * elements);
}

// Steps `count` elements of the momentum and writes the update u to x; returns the sum of the squares of u. The
// compiler may contract either product of a sum of two products into an fma, which changes the last bit. As it is not
// inlined, the function is compiled once for all callers, and a block gets the same bits whichever thread takes it.
[[gnu::noinline]] double step_momentum(const float* gradient, float* momentum, float* x, int64_t count, float beta,
                                       float fresh) {
  simd::Vec squares{};
  for_vectors(count, [&](int64_t i, auto lanes) {
    const simd::Vec g = lanes.load(gradient + i) * fresh;
    const simd::Vec m = lanes.load(momentum + i) * beta + g;
    const simd::Vec u = m * beta + g;
    lanes.store(momentum + i, m);
    lanes.store(x + i, u);
    squares += u * u;
  });
  return simd::reduce_add(squares);
}

void cpu_momentum(const KernelCall& call) {
  const float norm = *call.in(0);
  if (!std::isfinite(norm))
    return for_muon_parts(call.graph, call.node,
                          [&](const MuonPart& part) { std::fill_n(call.out(part.output), part.elements(), 0.0f); });
  const Attributes& a = call.node.attributes;
  const auto clip = static_cast<float>(a.number("grad_clip")), margin = static_cast<float>(a.number("margin"));
  const float scale = clip > 0 && norm + 1e-6f > clip ? clip / (norm + 1e-6f) : 1.0f;
  const auto beta = static_cast<float>(a.number("momentum"));
  const float fresh = static_cast<float>(1 - a.number("momentum")) * scale;  // the weight of the new gradient
  auto* sums = reinterpret_cast<double*>(call.workspace());
  for_muon_parts(call.graph, call.node, [&](const MuonPart& part) {
    const int64_t count = part.elements();
    const float* gradient = call.in(1 + 2 * part.matrix) + part.first;
    float *momentum = call.out(part.matrix) + part.first, *x = call.out(part.output);
    call.threads.for_blocks(count, kBlock, [&](int64_t begin, int64_t end) {
      sums[begin / kBlock] = step_momentum(gradient + begin, momentum + begin, x + begin, end - begin, beta, fresh);
    });
    double total = 0;
    for (int64_t b = 0; b < ceil_div(count, kBlock); ++b) total += sums[b];
    const auto size = static_cast<float>(std::sqrt(total));
    const float inverse = size > kLeastNorm ? 1 / (margin * size) : 0.0f;
    call.threads.for_blocks(count, kBlock, [&](int64_t begin, int64_t end) {
      for_vectors(end - begin,
                  [&](int64_t c, auto lanes) { lanes.store(x + begin + c, lanes.load(x + begin + c) * inverse); });
    });
  });
}

void infer_apply(Graph& g, Node& node) {
  for_muon_matrices(g, node, [&](const MuonMatrix& m) {
    const TensorId parameter = node.inputs[m.input], master = node.inputs[m.input + 1];
    if ((master != kNone) != (g.dtype(parameter) == DType::bf16))
      fail("muon_apply: a bf16 parameter has a master, another has none");
    add_updated(g, node, parameter);
    if (master == kNone)
      node.outputs.push_back(kNone);
    else
      add_updated(g, node, master);
  });
}

Cost apply_cost(const Graph& g, const Node& node) {
  double elements = 0, written_only = 0;
  for_muon_matrices(g, node, [&](const MuonMatrix& m) {
    elements += elements_of(g, node.inputs[m.input]);
    if (node.inputs[m.input + 1] != kNone) written_only += static_cast<double>(g.tensor(node.inputs[m.input]).bytes());
  });
  Cost c = streaming_cost(g, node, 3 * elements);
  c.bytes_read -= written_only;
  return c;
}

// p = p keep - step x for `count` elements. Compiled once, like step_momentum.
template <class T>
[[gnu::noinline]] void step_part(float* p, const T* x, int64_t count, float keep, float step) {
  if constexpr (std::is_same_v<T, float>) {
    for_vectors(
        count, [&](int64_t i, auto lanes) { lanes.store(p + i, lanes.load(p + i) * keep - lanes.load(x + i) * step); });
  } else {
    for (int64_t i = 0; i < count; ++i) p[i] = p[i] * keep - to_float(x[i]) * step;
  }
}

void cpu_apply(const KernelCall& call) {
  if (!std::isfinite(*call.in(0))) return;
  const Attributes& a = call.node.attributes;
  const double learning_rate = call.step.learning_rate * a.number("learning_rate_scale");
  const auto keep = static_cast<float>(1 - learning_rate * a.number("weight_decay"));
  for_muon_matrices(call.graph, call.node, [&](const MuonMatrix& matrix) {
    const bool has_master = call.has_input(matrix.input + 1);
    float* parameter = call.out(matrix.output + (has_master ? 1 : 0));
    int64_t first = 0;
    for (size_t k = 0; k < matrix.parts; ++k) {
      const size_t in = matrix.input + 2 + k;
      const auto step = static_cast<float>(learning_rate * muon_step_size(a, call.in_shape(in), k));
      const int64_t count = call.in_shape(in).elements();
      const bool is_bf16 = call.in_dtype(in) == DType::bf16;
      call.threads.for_blocks(count, kBlock, [&](int64_t begin, int64_t end) {
        float* p = parameter + first + begin;
        if (is_bf16)
          step_part(p, call.in<bf16>(in) + begin, end - begin, keep, step);
        else
          step_part(p, call.in(in) + begin, end - begin, keep, step);
      });
      first += count;
    }
    if (!has_master) return;
    auto* rounded = call.out<bf16>(matrix.output);
    const TensorId named = call.graph.storage(call.node.inputs[matrix.input]);
    const uint64_t stream = stream_of(call.graph.tensor(named).name);
    call.threads.for_blocks(first, kBlock, [&](int64_t begin, int64_t end) {
      round_stochastically(parameter, rounded, begin, end, call.step.seed, call.step.step, stream);
    });
  });
}

Example::Input fixed(Shape shape, double low, double high, Role role, DType dtype = DType::fp32) {
  return {.shape = shape,
          .dtype = dtype,
          .low = low,
          .high = high,
          .role = role,
          .differentiable = false,
          .keeps_fp32 = true};
}

std::vector<Example> momentum_examples() {
  const auto example = [](std::initializer_list<Shape> shapes, std::initializer_list<int64_t> rows, double clip) {
    Example e{{{"momentum", 0.95}, {"grad_clip", clip}, {"margin", 1.02}, {"rows", std::vector<int64_t>(rows)}},
              {fixed({1}, 0.5, 3, Role::activation)}};
    for (const Shape& shape : shapes) {
      e.inputs.push_back(fixed(shape, -1, 1, Role::activation));
      e.inputs.push_back(fixed(shape, -0.1, 0.1, Role::state));
    }
    return e;
  };
  return {example({{5, 7}}, {5}, 0), example({{9, 11}, {64, 16}, {3, 8}}, {4, 2, 3, 64, 2, 1}, 1),
          example({{300, 130}}, {170, 130}, 1)};
}

std::vector<Example> apply_examples() {
  const auto example = [](bool master, DType update) {
    Example e{{{"weight_decay", 0.1}, {"rms", 0.2}, {"learning_rate_scale", 2}},
              {fixed({1}, 0.5, 3, Role::activation)}};
    const auto matrix = [&](std::initializer_list<Shape> parts) {
      Shape whole = *parts.begin();
      for (const Shape* s = parts.begin() + 1; s != parts.end(); ++s) whole = {whole[0] + (*s)[0], whole[1]};
      e.inputs.push_back(fixed(whole, -1, 1, Role::parameter, master ? DType::bf16 : DType::fp32));
      e.inputs.push_back(master ? fixed(whole, -1, 1, Role::state) : Example::Input{});
      for (const Shape& s : parts) e.inputs.push_back(fixed(s, -0.5, 0.5, Role::activation, update));
    };
    matrix({{4, 9}, {2, 9}, {3, 9}});
    matrix({{64, 20}});
    return e;
  };
  return {example(false, DType::fp32), example(true, DType::fp32), example(true, DType::bf16)};
}

}  // namespace

double muon_step_size(const Attributes& a, const Shape& part, size_t number) {
  const int64_t slices = a.integer("row_slices", 1);
  const int64_t rows = part[0] * (number ? a.integer("other_row_slices", slices) : slices),
                columns = part[1] * a.integer("column_slices", 1);
  return a.number("rms") * std::sqrt(static_cast<double>(std::max(rows, columns)));
}

std::vector<Op> muon_ops() {
  return {{.name = "muon_momentum",
           .summary = "Nesterov momentum in place, and its parts over their Frobenius norms",
           .infer = infer_momentum,
           .cost = momentum_cost,
           .cpu = cpu_momentum,
           .cuda = cuda::muon_momentum,
           .workspace = momentum_workspace,
           .examples = momentum_examples},
          {.name = "muon_apply",
           .summary = "a step along orthogonal matrices, in place",
           .infer = infer_apply,
           .cost = apply_cost,
           .cpu = cpu_apply,
           .cuda = cuda::muon_apply,
           .examples = apply_examples,
           .cpu_takes_bf16 = true}};
}

}  // namespace llm
