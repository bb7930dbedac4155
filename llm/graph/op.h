// One row of the op table. What the program knows of an op stands here: shapes, gradient, cost, kernels, and the
// examples from which tests, gradient checks and benchmarks are made. Only fusion patterns name some ops besides.
#pragma once
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "llm/graph/graph.h"
#include "llm/graph/target.h"

namespace llm {

class Gradients;
struct KernelCall;

struct Cost {
  double flops = 0;          // additions and multiplications; an fma counts 2
  double bytes_read = 0;     // each input element that is needed, once
  double bytes_written = 0;  // each output element, once
  double bytes_sent = 0;     // by this rank to others
};

// C (m, n) = A (m, k) B (k, n), as the CPU's kernel of an op calls gemm().
struct Product {
  int64_t m, n, k;
  bool a_transposed, b_transposed;  // whether A, B lie transposed in memory
  int64_t calls = 1;                // of gemm() in one run of the node

  double flops() const {
    return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  }  // of a call
  friend bool operator==(const Product&, const Product&) = default;
};

// A small case of an op for tests and gradient checks.
struct Example {
  struct Input {
    Shape shape = {};              // rank 0: the optional input is absent
    DType dtype = DType::fp32;     // int32: the values are whole numbers
    double low = -1, high = 1;     // the values are random numbers from [low, high)
    Role role = Role::activation;  // parameter: its gradient is a parameter gradient (kept, accumulated)
    bool differentiable = true;    // for an fp32 input: the op's backward gives its gradient
    bool keeps_fp32 = false;  // for an fp32 input: it is fp32 in a bf16 run too (statistics, losses, optimizer state)
    std::vector<double> values = {};  // in place of random numbers
  };
  Attributes attributes;
  std::vector<Input> inputs;
};

// Output number `output` may be written over input number `input` when nothing reads that input later.
struct InPlace {
  int output, input;
};

// What a layer computes again in its backward pass instead of keeping it; each level includes the levels before it.
enum class Recompute : int { none, activations, norms, attention, block };

// An activation function. As the value of the attribute "activation" it tells a product what to do with its result.
enum class ActivationKind : int { none, gelu, relu2, swiglu };
inline const char* name_of(ActivationKind kind) {
  return kind == ActivationKind::gelu     ? "gelu"
         : kind == ActivationKind::relu2  ? "relu2"
         : kind == ActivationKind::swiglu ? "swiglu"
                                          : "none";
}

// The numbers of the inputs and outputs that passes use; -1: the op has none of that kind.
struct Slots {
  int delta = -1;          // input: added to input 0 before the op does anything else
  int sum = -1;            // output: input 0 + delta
  int addend = -1;         // input: added to output 0
  int bias = -1;           // input: added to each row of output 0
  int bias_gradient = -1;  // output: the sum of the rows of input 0
  int activated = -1;      // output: the function that the attribute "activation" names, of output 0
  int hidden = -1;         // input: output 0 is multiplied by the derivative of that function at this input
  int column_sums = -1;    // output: the sum of the rows of output 0; its CUDA kernel computes both in one pass
  int largest = -1;  // output, (1): the largest absolute value in output 0; its CUDA kernel computes both in one pass
};

// Output 0 is a b^T, where `a` is input 0 or its transpose, and `b` is input 1 or its transpose.
struct Factors {
  bool transposed[2];     // of input 0, of input 1
  bool backward = false;  // input 0 is a gradient
};

struct Op {
  const char* name;
  const char* summary;                                          // one line for `train_gpt graph --ops` and the docs
  void (*infer)(Graph&, Node&);                                 // checks the inputs and adds the outputs
  void (*backward)(Graph&, const Node&, Gradients&) = nullptr;  // appends the backward nodes; null: no gradient
  Cost (*cost)(const Graph&, const Node&) = nullptr;
  void (*cpu)(const KernelCall&) = nullptr;
  void (*cuda)(const KernelCall&) = nullptr;  // null too in a binary without the CUDA back end
  // Bytes that the target's kernel needs beside inputs and outputs. It is asked after all passes that change nodes.
  size_t (*workspace)(const Graph&, const Node&, const Target&) = nullptr;
  std::vector<Example> (*examples)() = nullptr;  // null: the op is the backward of another op and is tested with it
  std::vector<InPlace> in_place = {};
  Slots slots = {};
  ActivationKind function = ActivationKind::none;  // output 0 is this function of input 0
  ActivationKind derivative_of =
      ActivationKind::none;               // output 0 is input 0 times the derivative of this function at input 1
  std::optional<Factors> factors = {};    // for a product that can be computed in 8 bits
  Recompute recompute = Recompute::none;  // the lowest level at which its nodes are run again; none: never
  // The large matrix products of a node, which `bench --products` times one by one; null: none. Where a node goes by
  // blocks of rows, the last block may be smaller but counts as a full one.
  std::vector<Product> (*products)(const Graph&, const Node&) = nullptr;
  bool cpu_takes_bf16 = false;  // false: casts around the node give its CPU kernel fp32 in place of bf16
  int packed_input = -1;  // this input its CPU kernel reads as packed panels (llm/base/packed_panels.h) or bf16, too
  bool packed_where_row_invariant = false;  // only where the node has the attribute "row_invariant"
  bool waits_for_device = false;   // its CUDA kernel makes the host wait, so a walk with such a node cannot be captured
  bool cpu_takes_strides = false;  // its CPU kernel works with any row stride (KernelCall::in_stride, out_stride)

  auto kernel(const Target& target) const { return target.cuda ? cuda : cpu; }
  bool takes_strides(const Target& target) const { return !target.cuda && cpu_takes_strides; }
};

// The inputs of `linear`. The pass fuse_few_rows adds those after the bias. With a norm it also sets the attribute
// "epsilon"; with angles "heads", "kv_heads" and "head_size"; with SwiGLU the value `swiglu` of "activation".
namespace linear_input {
enum : size_t { x, weight, bias, addend, norm_weight, norm_bias, angles, count };
}

// The table lives in llm/ops/table.cpp. `op_named` throws for an unknown name.
std::span<const Op> op_table();
const Op* op_named(std::string_view name);

inline std::vector<Product> products_of(const Graph& graph, const Node& node) {
  return node.op->products ? node.op->products(graph, node) : std::vector<Product>{};
}

// The cost of an op that does `flops` operations, reads each input once and writes each output once.
Cost streaming_cost(const Graph& graph, const Node& node, double flops);

}  // namespace llm
