// head_loss: the head's product, softmax and cross-entropy in one op, by blocks of rows, so that the logits of the
// whole batch never exist at once. Given the gradient of the losses it also computes both gradients of the product,
// from the gradient of the logits, which overwrites the logits (as in llm.c's fused classifier and Wijmans et al. 2024,
// "Cut your losses in large-vocabulary language models").
//   x (B, T, C), weight (V, C), targets (B, T) int32, [d_losses (B, T)]
//   -> losses (B, T), [dx (B, T, C), d_weight (V, C)]
// The op has no backward: the fusion pass makes it after autodiff, or in a graph without gradients.
// Attributes: "softcap" and "z_loss" as in cross_entropy.cpp; "logits_bytes", the most bytes of logits on a GPU.
// In a bf16 run the logits and their gradient are bf16 as well, on either device (flag "bf16_logits", set by `infer`).
#include <algorithm>

#include "llm/base/rounding.h"
#include "llm/device/gemm_cpu.h"
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/head_loss_cuda.h"
#include "llm/ops/ops.h"
#include "llm/ops/softmax_rows.h"

namespace llm {
namespace {

// Floats from one row of logits to the next: whole vectors, so that no vector of a row lies in two cache lines.
int64_t logits_stride(int64_t V) { return round_up(V, simd::kLanes); }

// Rows of a block: as many as have logits of 128 MiB, but at least 64. Each block reads the whole weight twice and
// reads and writes the whole d_weight, so blocks of few rows would be bound by memory.
int64_t block_rows(int64_t rows, int64_t V) {
  const int64_t fit = std::max<int64_t>(64, (int64_t{128} << 20) / 4 / logits_stride(V) / 16 * 16);
  if (rows <= fit) return rows;
  const int64_t blocks = (rows + fit - 1) / fit;  // of nearly equal height
  return (rows + blocks - 1) / blocks;
}

void infer(Graph& g, Node& node) {
  const Shape x = g.shape(node.inputs[0]), w = g.shape(node.inputs[1]), targets = g.shape(node.inputs[2]);
  if (w.rank() != 2 || w[1] != x.last()) fail("head_loss: x ", x.text(), " does not fit the weight ", w.text());
  if (targets.elements() != x.rows()) fail("head_loss: ", targets.text(), " targets for ", x.rows(), " rows");
  if (g.dtype(node.inputs[0]) == DType::bf16) node.attributes.set("bf16_logits", true);
  g.add_output(node, "", DType::fp32, targets);
  if (node.input(3) != kNone) {
    g.add_output(node, "dx", g.dtype(node.inputs[0]), x);
    g.add_output(node, "d_weight", DType::fp32, w);
  }
}

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  const int64_t all_rows = g.shape(node.inputs[0]).rows(), V = g.shape(node.inputs[1])[0];
  if (target.cuda)
    return head_loss_workspace_cuda(all_rows, V, g.dtype(node.inputs[0]),
                                    node.attributes.integer("logits_bytes", kHeadLogitsBytes));
  const int64_t C = g.shape(node.inputs[1])[1], rows = block_rows(all_rows, V);
  const int threads = target.threads;
  int64_t product = gemm_workspace(rows, V, C, threads);
  if (node.input(3) != kNone)
    product = std::max({product, gemm_workspace(rows, C, V, threads), gemm_workspace(V, C, rows, threads)});
  return static_cast<size_t>(rows * logits_stride(V) + 16 + product) * 4;
}

Cost cost(const Graph& g, const Node& node) {
  const double product = 2.0 * static_cast<double>(g.shape(node.inputs[0]).rows()) *
                         static_cast<double>(g.shape(node.inputs[1]).elements());
  return streaming_cost(g, node, product * (node.input(3) != kNone ? 3 : 1));
}

std::vector<Product> products(const Graph& g, const Node& node) {
  const int64_t rows = g.shape(node.inputs[0]).rows(), V = g.shape(node.inputs[1])[0], C = g.shape(node.inputs[1])[1];
  const int64_t block = block_rows(rows, V), blocks = ceil_div(rows, block);
  std::vector<Product> all = {{block, V, C, false, true, blocks}};
  if (node.input(3) != kNone) {
    all.push_back({block, C, V, false, false, blocks});
    all.push_back({V, C, block, true, false, blocks});
  }
  return all;
}

void round_row(float* row, int64_t count) {
  for (int64_t i = 0; i < count; ++i) row[i] = to_float(nearest_bf16(row[i]));
}

void cpu(const KernelCall& call) {
  const bool rounds = call.node.attributes.flag("bf16_logits");
  const int64_t rows = call.in_shape(0).rows(), V = call.in_shape(1)[0], C = call.in_shape(1)[1];
  const float *x = call.in(0), *weight = call.in(1), *d_losses = call.in(3);
  const int32_t* targets = call.in_int(2);
  float *losses = call.out(0), *dx = call.out(1), *d_weight = call.out(2);
  const SoftCap soft_cap(call.node.attributes.number("softcap", 0));
  const auto z_loss = static_cast<float>(call.node.attributes.number("z_loss", 0));
  const int64_t block = block_rows(rows, V);
  const int64_t stride = logits_stride(V);
  float *logits = aligned(call.workspace()), *product = logits + block * stride;
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    gemm(call.threads,
         {.m = count,
          .n = V,
          .k = C,
          .a = row_major(x + first * C, C),
          .b = transposed(weight, C),
          .c = logits,
          .c_stride = stride},
         product);
    call.threads.for_blocks(count, row_grain(V), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float* row = logits + r * stride;
        if (rounds) round_row(row, V);
        const int32_t target = targets[first + r];
        if (soft_cap)
          for_vectors(V, [&](int64_t c, auto lanes) { lanes.store(row + c, soft_cap(lanes.load(row + c))); });
        const float target_logit = target < 0 ? 0.0f : row[target];
        float sum = 0;
        const float lse = log_sum_exp(row, V, d_losses && !soft_cap ? row : nullptr, &sum);
        losses[first + r] = target < 0 ? 0.0f : lse - target_logit + z_loss * lse * lse;
        if (!d_losses) continue;
        const float d = target < 0 ? 0.0f : d_losses[first + r], of_softmax = d * (1 + 2 * z_loss * lse);
        if (soft_cap) {  // the derivative of the cap needs the logits, so log_sum_exp() has not overwritten them
          for_vectors(V, [&](int64_t c, auto lanes) {
            const simd::Vec logit = lanes.load(row + c);
            lanes.store(row + c, simd::exp(logit - lse) * of_softmax * soft_cap.derivative(logit));
          });
          if (target >= 0) row[target] -= d * soft_cap.derivative(target_logit);
        } else {
          const float scale = of_softmax / sum;
          for_vectors(V, [&](int64_t c, auto lanes) { lanes.store(row + c, lanes.load(row + c) * scale); });
          if (target >= 0) row[target] -= d;
        }
        if (rounds) round_row(row, V);
      }
    });
    if (!d_losses) continue;
    gemm(call.threads,
         {.m = count,
          .n = C,
          .k = V,
          .a = row_major(logits, stride),
          .b = row_major(weight, C),
          .c = dx + first * C,
          .c_stride = C},
         product);
    const bool add = first > 0 || call.accumulates(2);
    gemm(call.threads,
         {.m = V,
          .n = C,
          .k = count,
          .a = transposed(logits, stride),
          .b = row_major(x + first * C, C),
          .c = d_weight,
          .c_stride = C,
          .addend = add ? d_weight : nullptr,
          .addend_stride = C},
         product);
  }
}

std::vector<Example> examples() {
  const Example::Input x{.shape = {2, 3, 10}, .low = -2, .high = 2, .differentiable = false};
  const Example::Input weight{.shape = {21, 10}, .differentiable = false};
  const Example::Input targets{.shape = {2, 3}, .dtype = DType::int32, .low = -1, .high = 21};
  const Example::Input d_losses{.shape = {2, 3}, .low = 0, .high = 1, .differentiable = false, .keeps_fp32 = true};
  // The third has room for the logits of few rows at a time.
  return {{{}, {x, weight, targets}},
          {{}, {x, weight, targets, d_losses}},
          {{{"logits_bytes", 1024}}, {x, weight, targets, d_losses}},
          {{{"softcap", 4}, {"z_loss", 0.1}}, {x, weight, targets}},
          {{{"softcap", 4}, {"z_loss", 0.1}}, {x, weight, targets, d_losses}},
          {{{"z_loss", 0.1}}, {x, weight, targets, d_losses}}};
}

}  // namespace

std::vector<Op> head_loss_ops() {
  return {{.name = "head_loss",
           .summary = "head product, cross-entropy and both gradients by blocks of rows",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::head_loss,
           .workspace = workspace,
           .examples = examples,
           .products = products}};
}

}  // namespace llm
