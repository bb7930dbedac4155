// copy_parts: puts rectangles of some tensors together to another: a matrix from the slices that several ranks have of
// it, or a slice of a matrix.
//   any tensors of one type (absent: of which nothing is taken) -> a tensor of the shape that the attribute "shape" lists
// Attribute "parts": for each rectangle seven numbers: the input; its first element there and the distance of its rows;
// the same in the output; rows and columns.
#include "llm/ops/copy_parts.h"

#include <algorithm>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const auto s = node.attributes.list("shape");
  const Shape shape = s.size() == 1 ? Shape{s[0]} : Shape{s[0], s[1]};
  TensorId some = kNone;
  for (const TensorId id : node.inputs)
    if (id != kNone) some = id;
  if (some == kNone) fail("copy_parts: there is no input");
  for (const CopiedPart& p : parts_of(node.attributes)) {
    const TensorId from = node.input(static_cast<size_t>(p.input));
    const int64_t source = from == kNone ? 0 : g.shape(from).elements();
    if (p.from + (p.rows - 1) * p.from_stride + p.columns > source ||
        p.to + (p.rows - 1) * p.to_stride + p.columns > shape.elements())
      fail("copy_parts: a part lies outside of its tensors");
    if (g.dtype(from) != g.dtype(some)) fail("copy_parts: the inputs have several types");
  }
  g.add_output(node, "", g.dtype(some), shape);
}

Cost cost(const Graph& g, const Node& node) {
  Cost c;
  c.bytes_read = c.bytes_written = static_cast<double>(g.tensor(node.outputs[0]).bytes());
  return c;
}

void cpu(const KernelCall& call) {
  const auto size = static_cast<int64_t>(size_of(call.out_dtype(0)));
  for (const CopiedPart& p : parts_of(call.node.attributes)) {
    const std::byte* const from = call.in<std::byte>(static_cast<size_t>(p.input)) + p.from * size;
    std::byte* const to = call.out<std::byte>(0) + p.to * size;
    call.threads.for_blocks(p.rows, std::max<int64_t>(1, 16384 / p.columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        std::copy_n(from + row * p.from_stride * size, p.columns * size, to + row * p.to_stride * size);
    });
  }
}

std::vector<Example> examples() {
  using List = std::vector<int64_t>;
  const auto fixed = [](Shape shape) { return Example::Input{.shape = shape, .differentiable = false}; };
  // Columns of two slices side by side, and rows of a joined matrix.
  return {{{{"shape", List{3, 6}}, {"parts", List{0, 0, 2, 0, 6, 3, 2, 1, 0, 4, 2, 6, 3, 4}}},
           {fixed({3, 2}), fixed({3, 4})}},
          {{{"shape", List{600}}, {"parts", List{0, 700, 100, 0, 200, 3, 100, 0, 5, 100, 100, 200, 3, 100}}},
           {fixed({10, 100})}}};
}

}  // namespace

std::vector<Op> copy_parts_ops() {
  return {{.name = "copy_parts",
           .summary = "puts rectangles of tensors together",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::copy_parts,
           .examples = examples,
           .cpu_takes_bf16 = true}};
}

}  // namespace llm
