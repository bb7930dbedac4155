// document_starts: tokens (B, T) int32 -> starts (B, T) int32: where in its row the document of each token begins. An
// end-of-text token is the first token of the document that follows it, as in GPT-2's data: generation starts from that
// token, and it is the one place to which all tokens of a document can attend. The first document of a row begins at 0.
// Attribute: end_of_text, the id of that token.
// query_starts: starts (B, T) int32 -> (B, t) int32: for queries that are chunks of the T tokens (chunks.h) the number of
// the first key of their document, among keys that are chunks of them, too; the number of keys where none is. Attributes:
// "tokens" t and "firsts" of the queries; of the keys "key_chunk", the length of a chunk, and "key_firsts".
#include <algorithm>

#include "llm/graph/autodiff.h"
#include "llm/ops/chunks.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) { g.add_output(node, "", DType::int32, g.shape(node.inputs[0])); }

void backward(Graph&, const Node&, Gradients&) {}  // whole numbers have no gradient

void infer_queries(Graph& g, Node& node) {
  const int64_t tokens = node.attributes.integer("tokens");
  const Shape all = g.shape(node.inputs[0]);
  if (chunks_of(node.attributes, tokens).end() > all[1])
    fail("query_starts: the queries are not among ", all[1], " tokens");
  g.add_output(node, "", DType::int32, {all[0], tokens});
}

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

void cpu_queries(const KernelCall& call) {
  const int64_t T = call.in_shape(0)[1], tokens = call.out_shape(0)[1];
  const Chunks queries = chunks_of(call.node.attributes, tokens), keys = key_chunks_of(call.node.attributes);
  call.threads.for_blocks(call.out_shape(0).elements(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      call.out<int32_t>(0)[i] =
          static_cast<int32_t>(keys.before(call.in_int(0)[i / tokens * T + queries.position(i % tokens)]));
  });
}

std::vector<Example> query_examples() {
  using List = std::vector<int64_t>;
  const auto example = [](int64_t tokens, List firsts, int64_t key_chunk, List key_firsts) -> Example {
    return {{{"tokens", tokens}, {"firsts", firsts}, {"key_chunk", key_chunk}, {"key_firsts", key_firsts}},
            {{.shape = {2, 60}, .dtype = DType::int32, .low = 0, .high = 60}}};
  };
  return {example(20, {10, 40}, 60, {0}), example(10, {30}, 10, {0, 50}), example(20, {20, 30}, 10, {10})};
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
           .examples = examples},
          {.name = "query_starts",
           .summary = "the first of some keys that is in the document of each query",
           .infer = infer_queries,
           .backward = backward,
           .cost = cost,
           .cpu = cpu_queries,
           .cuda = cuda::query_starts,
           .examples = query_examples}};
}

}  // namespace llm
