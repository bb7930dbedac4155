// Persistent tensors that lie in the host's memory (Tensor::on_host) on their way to the device and back, while kernels
// run: as in a step whose optimizer state has no room on a GPU. A transfer is two nodes: one starts it, and
// `copy_wait` ends it; both carry its number in the attribute "transfer", and all it reads is an input of both, so that
// the memory plan keeps that until the wait.
//   fetch_start   tensors on the host -> copies of them on the device
//   store_start   n tensors on the device, then n on the host -> the n on the host, overwritten
//   copy_wait     what is to arrive, then what is being read -> the first "arrivals" inputs, in place
#include <algorithm>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/exchange.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer_fetch(Graph& g, Node& node) {
  for (const TensorId id : std::vector<TensorId>(node.inputs)) {
    const Tensor from = g.tensor(id);
    g.add_output(node, from.name, from.dtype, from.shape);
  }
}

void infer_store(Graph& g, Node& node) {
  const size_t n = node.inputs.size() / 2;
  for (size_t i = 0; i < n; ++i) {
    const Tensor from = g.tensor(node.inputs[i]), to = g.tensor(node.inputs[n + i]);
    if (from.dtype != to.dtype || from.shape != to.shape)
      fail("store_start: ", from.name, " does not fit into ", to.name);
    const TensorId out = g.add_output(node, "", to.dtype, to.shape);
    g.tensor(out).alias = node.inputs[n + i], g.tensor(out).role = to.role;
  }
}

Cost cost_of_copy(const Graph& g, const Node& node) {
  Cost c;
  for (const TensorId id : node.outputs) c.bytes_written += static_cast<double>(g.tensor(id).bytes());
  c.bytes_read = c.bytes_written;
  return c;
}

// From input i to output i. On a CPU all memory is the host's.
void copy_on_cpu(const KernelCall& call) {
  constexpr int64_t kBlock = 1 << 18;  // bytes
  const auto bytes_of = [&](size_t i) { return static_cast<int64_t>(call.graph.tensor(call.node.outputs[i]).bytes()); };
  call.threads.for_blocks_of(call.node.outputs.size(), bytes_of, kBlock,
                             [&](size_t i, int64_t, int64_t begin, int64_t end) {
                               std::copy_n(call.in<std::byte>(i) + begin, end - begin, call.out<std::byte>(i) + begin);
                             });
}
void wait_on_cpu(const KernelCall&) {}

constexpr Example::Input fixed(Shape shape) { return {.shape = shape, .differentiable = false, .keeps_fp32 = true}; }

std::vector<Example> fetch_examples() { return {{{{"transfer", 1}}, {fixed({3, 4}), fixed({5})}}}; }
std::vector<Example> store_examples() {
  return {{{{"transfer", 1}}, {fixed({3, 4}), fixed({5}), fixed({3, 4}), fixed({5})}}};
}
std::vector<Example> wait_examples() { return {{{{"transfer", 1}, {"arrivals", 1}}, {fixed({3, 4}), fixed({5})}}}; }

}  // namespace

std::vector<Op> host_copy_ops() {
  return {{.name = "fetch_start",
           .summary = "copies tensors of the host's memory to the device",
           .infer = infer_fetch,
           .cost = cost_of_copy,
           .cpu = copy_on_cpu,
           .cuda = cuda::fetch_start,
           .examples = fetch_examples,
           .cpu_takes_bf16 = true},
          {.name = "store_start",
           .summary = "copies tensors back to the host's memory",
           .infer = infer_store,
           .cost = cost_of_copy,
           .cpu = copy_on_cpu,
           .cuda = cuda::store_start,
           .examples = store_examples,
           .cpu_takes_bf16 = true},
          {.name = "copy_wait",
           .summary = "waits for a copy between the device and the host's memory",
           .infer = infer_arrivals,
           .cost = cost_of_wait,
           .cpu = wait_on_cpu,
           .cuda = cuda::copy_wait,
           .examples = wait_examples,
           .cpu_takes_bf16 = true}};
}

}  // namespace llm
