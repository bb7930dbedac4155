// The CUDA kernels of every op of the table, in fp32 and in bf16. They run on the test bed, which is on the CPU, or on
// a GPU where this file is linked with what nvcc made of them.
#include <doctest/doctest.h>

#include <cstdlib>
#include <iostream>

#include "llm/graph/passes.h"
#include "test/cuda_check.h"

namespace {

using namespace llm;
using namespace llm::reference;

}  // namespace

TEST_CASE("cuda ops: every row of the table, and chains that are fused") {
  if (!cuda_is_built_in() || count_cuda_devices() == 0) {
    MESSAGE("no device: CUDA kernels are not tested");
    return;
  }
  ThreadTeam threads(1);
  CudaDevice device(threads);
  CudaErrors errors;
  std::set<std::string> executed;
  for_each_cuda_check([&](const CudaCheck& check) {
    if (!check.missing().empty()) return;
    INFO(check.name());
    std::string wrong;
    try {
      wrong = check.run(device, true, &errors);
    } catch (const Error& e) {
      wrong = check.name() + ": " + e.what();
    }
    CHECK(wrong == "");
    executed.insert(check.ops().begin(), check.ops().end());
  });
  executed.insert(kOpsOfSeveralRanks.begin(), kOpsOfSeveralRanks.end());
  for (const Op& op : op_table()) {
    CHECK_MESSAGE(static_cast<bool>(op.cuda), "no CUDA kernels: ", std::string(op.name));
    if (op.cuda)
      CHECK_MESSAGE(executed.contains(op.name), "no example runs the CUDA kernels of ", std::string(op.name));
  }
  if (std::getenv("OP_ERRORS"))
    for (const bool bf16 : {false, true})
      for (const bool gradient : {false, true})
        std::cout << (bf16 ? "bf16, share of the bound" : "fp32, error") << (gradient ? " of gradients: " : ": ")
                  << errors.worst[bf16][gradient] << " (" << errors.where[bf16][gradient] << ")\n";
}

TEST_CASE("cuda fp8: the largest values that kernels find on the way are those that quantize finds") {
  if (!cuda_is_built_in() || count_cuda_devices() == 0) return;
  ThreadTeam threads(1);
  CudaDevice device(threads);
  std::set<std::string> found;
  for (const Op& op : op_table()) {
    if (!op.examples) continue;
    const std::vector<Example> examples = op.examples();
    for (size_t i = 0; i < examples.size(); ++i) {
      const Subject subject = subject_of(op, examples[i], i);
      Built b = build(subject, {.dtype = DType::bf16, .cuda = true});
      std::vector<TensorId> scales;
      for (size_t n = 0, count = b.whole.nodes.size(); n < count; ++n) {
        if (b.whole.nodes[n].op->slots.largest < 0) continue;
        scales.push_back(b.whole.add("quantize", {{"rows", true}}, {b.whole.nodes[n].outputs[0]}, "scaled")[2]);
        found.insert(b.whole.nodes[n].op->name);
      }
      if (scales.empty()) continue;
      INFO(subject.name);
      Graph graph = b.whole;
      const PassReport report = fuse_scales(graph);
      for (Graph* g : {&b.whole, &graph}) add_workspaces(*g, {.cuda = true});
      CAPTURE(report.detail);
      for (const Node& node : graph.nodes)
        if (std::string_view(node.op->name) == "quantize") CHECK(node.input(1) != kNone);
      Sandbox apart(b.whole), fused(graph);
      fill(apart, subject, b, DType::bf16);
      fill(fused, subject, b, DType::bf16);
      apart.run(device, {}, Sandbox::Place::apart);
      fused.run(device, {}, Sandbox::Place::apart);
      CHECK(fused.damage() == "");
      for (TensorId scale : scales) CHECK(fused.same_bits(scale, apart));
    }
  }
  for (const Op& op : op_table())
    if (op.slots.largest >= 0) CHECK_MESSAGE(found.contains(op.name), "no example of ", std::string(op.name));
}
