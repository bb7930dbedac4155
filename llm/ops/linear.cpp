// linear: y = x W^T + b, the matrix product of every layer, and its two backward products.
//   linear:                 x (.., I), W (O, I), [b (O)] -> y (.., O), [activated (.., O)]
//   linear_backward_input:  dy (.., O), W (O, I), [h (.., I)] -> dx (.., I)
//   linear_backward_weight: dy (.., O), x (.., I) -> dW (O, I), [db (O)] (with the flag "bias")
// The attribute "row_invariant", a flag, of `linear`: the sums have one order for any number of rows of x, as they always
// have on the CPU. There W may then be packed panels (llm/base/packed_panels.h), or rows of bf16.
// The fusion passes set these attributes:
// - "activation" (ActivationKind): `linear` also gives the activated output, and y only where something else reads it;
//   `linear_backward_input` multiplies its result by the derivative of the activation function at h.
// - "derivative", a flag, on the CPU: `linear` gives the derivative at y in place of y, and `linear_backward_input`
//   takes the derivative in place of h.
// - "symmetric", a flag, on the CPU: both factors are one matrix (W is x, or dy is x), so half of the result is a copy
//   of the other half.
// For few rows on the GPU the pass fuse_few_rows adds inputs (linear_input in op.h): the weights of a norm of x, the
// angles by which query and key heads are rotated, and an addend. With SwiGLU, `activated` is (.., O / 2).
#include "llm/device/gemm_cpu.h"

#include "llm/graph/autodiff.h"
#include "llm/ops/activation_functions.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/linear_cuda.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

Shape with_last(const Shape& s, int64_t last) {
  switch (s.rank()) {
    case 1: return {last};
    case 2: return {s[0], last};
    default: return {s[0], s[1], last};
  }
}

ActivationKind activation_of(const Node& node) {
  return static_cast<ActivationKind>(node.attributes.integer("activation", 0));
}

// Calls body(Gelu{}) or body(Relu2{}).
template <class Body>
void with_activation(ActivationKind kind, Body&& body) {
  if (kind == ActivationKind::gelu) body(Gelu{});
  if (kind == ActivationKind::relu2) body(Relu2{});
}

// Of all three ops, which have one product each.
size_t workspace(const Graph& g, const Node& node, const Target& target) {
  const Product p = products_of(g, node)[0];
  if (target.cuda) return linear_workspace_cuda();
  const Tensor& w = g.tensor(node.inputs[1]);
  const bool is_packed = w.panel_rows > 0 || w.dtype != DType::fp32;
  return static_cast<size_t>(is_packed ? gemm_packed_workspace(w.dtype, p.m, p.k, target.threads)
                                       : gemm_workspace(p.m, p.n, p.k, target.threads)) *
         4;
}

// The same. Of a symmetric product only half is multiplied.
Cost cost(const Graph& g, const Node& node) {
  const Product p = products_of(g, node)[0];
  const double share = node.attributes.flag("symmetric") ? 0.5 : 1.0;
  return streaming_cost(g, node, share * p.flops());
}

void infer(Graph& g, Node& node) {
  const Shape x = g.shape(node.inputs[0]), w = g.shape(node.inputs[1]);
  if (w.rank() != 2 || w[1] != x.last()) fail("linear: x ", x.text(), " does not fit the weight ", w.text());
  g.add_output(node, "", g.dtype(node.inputs[0]), with_last(x, w[0]));
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const TensorId dy = gradients.of(node.outputs[0]), x = node.inputs[0], w = node.inputs[1], b = node.input(2);
  if (gradients.wanted(x)) gradients.contribute(x, g.add("linear_backward_input", {}, {dy, w})[0]);
  const auto d = g.add("linear_backward_weight", {{"bias", b != kNone}}, {dy, x});
  gradients.contribute(w, d[0]);
  if (b != kNone) gradients.contribute(b, d[1]);
}

std::vector<Product> products(const Graph& g, const Node& node) {
  const Shape w = g.shape(node.inputs[1]);
  return {{g.shape(node.inputs[0]).rows(), w[0], w[1], false, true}};
}

struct Finish {   // what an epilogue needs besides the tile
  float* matrix;  // of the forward product the activated output; of the backward one h, or the derivative at h
  int64_t stride;
  float* of(const FinishedTile& t, int64_t row) const { return matrix + (t.row + row) * stride + t.column; }
};

// Calls work(lanes, c, beside) for each vector of a finished tile; `beside` is the same place in Finish::matrix.
template <class Work>
void for_tile(const void* context, const FinishedTile& t, Work&& work) {
  for (int64_t r = 0; r < t.rows; ++r) {
    float *c = t.c + r * t.stride, *beside = static_cast<const Finish*>(context)->of(t, r);
    for_vectors(t.columns, [&](int64_t i, auto lanes) { work(lanes, c + i, beside + i); });
  }
}

template <class Function>
void activate(const void* context, const FinishedTile& t) {
  for_tile(context, t,
           [](auto lanes, float* c, float* activated) { lanes.store(activated, Function::value(lanes.load(c))); });
}

template <class Function>
void activate_and_differentiate(const void* context, const FinishedTile& t) {
  for_tile(context, t, [](auto lanes, float* c, float* activated) {
    const Both both = Function::both(lanes.load(c));
    lanes.store(activated, both.value);
    lanes.store(c, both.derivative);
  });
}

void multiply_by_matrix(const void* context, const FinishedTile& t) {
  for_tile(context, t,
           [](auto lanes, float* c, const float* factor) { lanes.store(c, lanes.load(c) * lanes.load(factor)); });
}

template <class Function>
void multiply_by_derivative(const void* context, const FinishedTile& t) {
  for_tile(context, t, [](auto lanes, float* c, const float* hidden) {
    lanes.store(c, lanes.load(c) * Function::derivative(lanes.load(hidden)));
  });
}

void cpu(const KernelCall& call) {
  const int64_t m = call.in_shape(0).rows(), n = call.in_shape(1)[0], k = call.in_shape(1)[1];
  // Without a reader of y, y is first written to the place of the activated output.
  float* activated = call.out(1);
  float* y = call.has_output(0) ? call.out(0) : activated;
  const int64_t stride = call.out_stride(call.has_output(0) ? 0 : 1);
  const Finish finish{activated, call.has_output(1) ? call.out_stride(1) : stride};
  Epilogue epilogue{nullptr, &finish, y == activated || finish.stride != stride ? nullptr : activated};
  with_activation(activation_of(call.node), [&](auto f) {
    using Function = decltype(f);
    epilogue.apply =
        call.node.attributes.flag("derivative") ? activate_and_differentiate<Function> : activate<Function>;
  });
  const bool in_panels = call.in_panel_rows(1) > 0, is_packed = in_panels || call.in_dtype(1) != DType::fp32;
  gemm(call.threads,
       {.m = m,
        .n = n,
        .k = k,
        .a = row_major(call.in(0), call.in_stride(0)),
        .b = is_packed ? MatrixView{} : transposed(call.in(1), call.in_stride(1)),
        .c = y,
        .c_stride = stride,
        .addend = call.in(2),
        .epilogue = epilogue,
        .symmetric = call.node.attributes.flag("symmetric"),
        .packed_b = {is_packed ? call.in<std::byte>(1) : nullptr, call.in_dtype(1), !in_panels}},
       call.workspace());
}

std::vector<Product> backward_input_products(const Graph& g, const Node& node) {
  const Shape w = g.shape(node.inputs[1]);
  return {{g.shape(node.inputs[0]).rows(), w[1], w[0], false, false}};
}

void infer_backward_input(Graph& g, Node& node) {
  const Shape dy = g.shape(node.inputs[0]), w = g.shape(node.inputs[1]);
  g.add_output(node, "", g.dtype(node.inputs[0]), with_last(dy, w[1]));
}

void cpu_backward_input(const KernelCall& call) {
  const int64_t m = call.in_shape(0).rows(), n = call.in_shape(1)[1], k = call.in_shape(1)[0];
  const int64_t stride = call.out_stride(0);
  const Finish finish{const_cast<float*>(call.in(2)), call.has_input(2) ? call.in_stride(2) : n};
  Epilogue epilogue{nullptr, &finish, finish.stride == stride ? call.in(2) : nullptr};
  with_activation(activation_of(call.node), [&](auto f) {
    epilogue.apply = call.node.attributes.flag("derivative") ? multiply_by_matrix : multiply_by_derivative<decltype(f)>;
  });
  gemm(call.threads,
       {.m = m,
        .n = n,
        .k = k,
        .a = row_major(call.in(0), call.in_stride(0)),
        .b = row_major(call.in(1), call.in_stride(1)),
        .c = call.out(0),
        .c_stride = stride,
        .epilogue = epilogue},
       call.workspace());
}

void infer_backward_weight(Graph& g, Node& node) {
  const Shape dy = g.shape(node.inputs[0]), x = g.shape(node.inputs[1]);
  g.add_output(node, "weight", DType::fp32, {dy.last(), x.last()});
  if (node.attributes.flag("bias")) g.add_output(node, "bias", DType::fp32, {dy.last()});
}

std::vector<Product> backward_weight_products(const Graph& g, const Node& node) {
  const Shape dw = g.shape(node.outputs[0]);
  return {{dw[0], dw[1], g.shape(node.inputs[0]).rows(), true, false}};
}

size_t backward_weight_workspace(const Graph& g, const Node& node, const Target& target) {
  if (!target.cuda) return workspace(g, node, target);
  const Shape dy = g.shape(node.inputs[0]);
  return linear_backward_weight_workspace_cuda(dy.rows(), dy.last(), node.output(1) != kNone);
}

void cpu_backward_weight(const KernelCall& call) {
  const int64_t tokens = call.in_shape(0).rows(), O = call.in_shape(0).last(), I = call.in_shape(1).last();
  const float *dy = call.in(0), *x = call.in(1);
  float* dw = call.out(0);
  const int64_t stride = call.out_stride(0);
  gemm(call.threads,
       {.m = O,
        .n = I,
        .k = tokens,
        .a = transposed(dy, call.in_stride(0)),
        .b = row_major(x, call.in_stride(1)),
        .c = dw,
        .c_stride = stride,
        .addend = call.accumulates(0) ? dw : nullptr,
        .addend_stride = stride,
        .row_sums = call.out(1),
        .add_to_row_sums = call.accumulates(1),
        .symmetric = call.node.attributes.flag("symmetric")},
       call.workspace());
}

std::vector<Example> examples() {
  const auto example = [](int64_t rows, int64_t in, int64_t out, bool bias, ActivationKind kind) -> Example {
    Example e{{}, {{{1, rows, in}}, {{out, in}, DType::fp32, -1, 1, Role::parameter}}};
    if (bias) e.inputs.push_back({{out}, DType::fp32, -1, 1, Role::parameter});
    if (kind != ActivationKind::none) e.attributes.set("activation", static_cast<int64_t>(kind));
    return e;
  };
  return {example(1, 5, 7, false, ActivationKind::none), example(6, 33, 17, true, ActivationKind::none),
          example(40, 16, 65, true, ActivationKind::none)};
}

}  // namespace

std::vector<Op> linear_ops() {
  return {{.name = "linear",
           .summary = "y = x W^T + b",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::linear,
           .workspace = workspace,
           .examples = examples,
           .slots = {.bias = 2, .activated = 1},
           .factors = Factors{.transposed = {false, false}},
           .recompute = Recompute::block,
           .products = products,
           .packed_input = 1,
           .packed_where_row_invariant = true,
           .cpu_takes_strides = true},
          {.name = "linear_backward_input",
           .summary = "dx = dy W",
           .infer = infer_backward_input,
           .cost = cost,
           .cpu = cpu_backward_input,
           .cuda = cuda::linear_backward_input,
           .workspace = workspace,
           .slots = {.hidden = 2},
           .factors = Factors{.transposed = {false, true}, .backward = true},
           .products = backward_input_products,
           .cpu_takes_strides = true},
          {.name = "linear_backward_weight",
           .summary = "dW = dy^T x, db = sum of dy",
           .infer = infer_backward_weight,
           .cost = cost,
           .cpu = cpu_backward_weight,
           .cuda = cuda::linear_backward_weight,
           .workspace = backward_weight_workspace,
           .slots = {.bias_gradient = 1},
           .factors = Factors{.transposed = {true, true}, .backward = true},
           .products = backward_weight_products,
           .cpu_takes_strides = true}};
}

}  // namespace llm
