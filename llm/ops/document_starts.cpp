// document_starts: tokens (B, T) int32 -> starts (B, T) int32: where in its row the document of each token begins. An
// end-of-text token is the first token of the document that follows it, as in GPT-2's data: generation starts from that
// token, and it is the one place to which all tokens of a document can attend. The first document of a row begins at 0.
// Attribute: end_of_text, the id of that token.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) { g.add_output(node, "", DType::int32, g.shape(node.inputs[0])); }

void backward(Graph&, const Node&, Gradients&) {}  // whole numbers have no gradient

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, static_cast<double>(g.shape(node.inputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const int64_t T = call.in_shape(0).last();
  const auto end_of_text = static_cast<int32_t>(call.node.attributes.integer("end_of_text"));
  const int32_t* tokens = call.in_int(0);
  auto* starts = call.out<int32_t>(0);
  call.threads.for_blocks(call.in_shape(0).rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int32_t start = 0;
      for (int64_t t = 0; t < T; ++t) {
        if (tokens[row * T + t] == end_of_text) start = static_cast<int32_t>(t);
        starts[row * T + t] = start;
      }
    }
  });
}

std::vector<Example> examples() {
  const auto example = [](Shape shape, double ids) -> Example {
    return {{{"end_of_text", 2}}, {{.shape = shape, .dtype = DType::int32, .low = 0, .high = ids}}};
  };
  return {example({3, 37}, 6), example({2, 100}, 40), example({1, 5}, 2)};
}

}  // namespace

std::vector<Op> document_starts_ops() {
  return {{.name = "document_starts",
           .summary = "where the document of each token begins",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::document_starts,
           .examples = examples}};
}

}  // namespace llm
