// One row of the op table. Everything the program knows of an op, it reads here: shapes, gradient, cost, kernels, and
// the examples from which tests, gradient checks and benchmarks are made.
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
};

// C (m, n) = A (m, k) B (k, n), as the CPU's kernel of an op calls gemm().
struct Product {
  int64_t m, n, k;
  bool a_transposed, b_transposed;  // as they lie in memory
  int64_t calls = 1;                // in one run of the node

  friend bool operator==(const Product&, const Product&) = default;
};

// A small case of an op for tests and gradient checks.
struct Example {
  struct Input {
    Shape shape = {};           // rank 0: the optional input is absent
    DType dtype = DType::fp32;  // fp32, bf16: filled from [low, high); int32: whole numbers from [low, high)
    double low = -1, high = 1;
    Role role = Role::activation;  // parameter: its gradient is a parameter gradient (kept, accumulated)
    bool differentiable = true;    // of an fp32 input: the op's backward gives its gradient
    bool keeps_fp32 = false;  // of an fp32 input: it is fp32 in a bf16 run too (statistics, losses, optimizer state)
  };
  Attributes attributes;
  std::vector<Input> inputs;
};

// Output `output` may be written over input `input` when nothing reads that input later.
struct InPlace {
  int output, input;
};

// What a layer does not keep for its backward pass but computes again there; each level includes those before it.
enum class Recompute : int { none, activations, norms, attention, block };

// An activation function: the value of the attribute "activation", which tells a product what to do with its result.
enum class ActivationKind : int { none, gelu, relu2, swiglu };
inline const char* name_of(ActivationKind kind) {
  return kind == ActivationKind::gelu     ? "gelu"
         : kind == ActivationKind::relu2  ? "relu2"
         : kind == ActivationKind::swiglu ? "swiglu"
                                          : "none";
}

// The numbers of the inputs and outputs of which passes make use; -1: the op has no such one.
struct Slots {
  int delta = -1;          // input: is added to input 0 before anything is done with that ..
  int sum = -1;            // .. and the output that gives the sum
  int addend = -1;         // input: is added to output 0
  int bias = -1;           // input: is added to each row of output 0
  int bias_gradient = -1;  // output: the sum of the rows of input 0
  int activated = -1;      // output: the function that "activation" names, of output 0
  int hidden = -1;         // input: output 0 is multiplied by the derivative of that function there
  int column_sums = -1;    // output: the sum of the rows of output 0, which the CUDA kernel finds on the way
  int largest = -1;  // output, (1): the largest absolute value in output 0, which the CUDA kernel finds on the way
};

// Output 0 is a b^T, where a is input 0, or its transpose, and b input 1, or its transpose.
struct Factors {
  bool transposed[2];
  bool backward = false;  // input 0 is a gradient
};

struct Op {
  const char* name;
  const char* summary;                                          // one line for `train_gpt graph --ops` and the docs
  void (*infer)(Graph&, Node&);                                 // checks the inputs and makes the outputs
  void (*backward)(Graph&, const Node&, Gradients&) = nullptr;  // appends the backward nodes; null: no gradient
  Cost (*cost)(const Graph&, const Node&) = nullptr;
  void (*cpu)(const KernelCall&) = nullptr;
  void (*cuda)(const KernelCall&) = nullptr;  // null too in a binary without the CUDA back end
  // Bytes that the kernel of that device needs beside inputs and outputs, in whatever form the passes have given the node.
  size_t (*workspace)(const Graph&, const Node&, const Target&) = nullptr;
  std::vector<Example> (*examples)() = nullptr;  // null: the op arises as another's backward and is tested there
  std::vector<InPlace> in_place = {};
  Slots slots = {};
  ActivationKind function = ActivationKind::none;  // output 0 is this function of input 0
  ActivationKind derivative_of =
      ActivationKind::none;               // output 0 is input 0 times the derivative of this one at input 1
  std::optional<Factors> factors = {};    // of a product, which can be made in 8 bits
  Recompute recompute = Recompute::none;  // from which level on its nodes are run again; none: never
  // The large products behind a node, which `bench --products` times one by one; null: none. Where they are made by blocks of
  // rows, the last may be smaller but counts as a full one.
  std::vector<Product> (*products)(const Graph&, const Node&) = nullptr;
  bool cpu_takes_bf16 = false;     // else its CPU kernel sees bf16 tensors as fp32, by casts around it
  bool cpu_takes_strides = false;  // its CPU kernel asks for the strides of its matrices
  bool moves_step = false;  // its CUDA kernels leave position and token_index moved on by 1 in the device's StepState

  auto kernel(const Target& target) const { return target.cuda ? cuda : cpu; }
  bool takes_strides(const Target& target) const { return !target.cuda && cpu_takes_strides; }
};

// The inputs of `linear`. Those behind the bias come from fuse_few_rows, which also sets the attribute "epsilon" with a norm,
// the heads with the angles, and `swiglu` with SwiGLU.
namespace linear_input {
enum : size_t { x, weight, bias, addend, norm_weight, norm_bias, angles, count };
}

// The table lives in llm/ops/table.cpp. `op_named` throws for an unknown name.
std::span<const Op> op_table();
const Op* op_named(std::string_view name);

inline std::vector<Product> products_of(const Graph& graph, const Node& node) {
  return node.op->products ? node.op->products(graph, node) : std::vector<Product>{};
}

// Each input read once, each output written once: the cost of an op that does `flops` arithmetic in one pass.
Cost streaming_cost(const Graph& graph, const Node& node, double flops);

}  // namespace llm
