#include <algorithm>

#include "llm/base/error.h"
#include "llm/graph/passes.h"
#include "llm/graph/program.h"

namespace llm {
namespace {

bool is_mixed(const Graph& graph) {
  return std::any_of(graph.tensors.begin(), graph.tensors.end(),
                     [](const Tensor& t) { return t.dtype == DType::bf16; });
}

Compiled compile_with(Graph graph, const std::vector<TensorId>& results, const Target& target,
                      const CompileOptions& options, RecomputeChoice choice) {
  Compiled c;
  c.graph = std::move(graph);
  c.target = target;
  c.recomputation = choice;
  const bool gathers = std::any_of(c.graph.nodes.begin(), c.graph.nodes.end(),
                                   [](const Node& node) { return node.attributes.flag("again"); });
  if (gathers || choice.level != Recompute::none) c.reports.push_back(recompute(c.graph, choice));
  if (target.precision == Precision::fp8) c.reports.push_back(narrow_to_fp8(c.graph));
  if (options.fuse) c.reports.push_back(fuse(c.graph, results, target));
  c.reports.push_back(remove_dead_code(c.graph, results));
  if (target.cuda && target.precision == Precision::fp8) c.reports.push_back(fuse_scales(c.graph));
  if (!target.cuda && is_mixed(c.graph)) c.reports.push_back(cast_for_cpu(c.graph));
  if (!target.cuda && options.pad_rows) c.reports.push_back(pad_rows(c.graph, results));
  add_workspaces(c.graph, target);
  c.plan = plan_memory(c.graph, results, options.share_memory);
  PersistentLayout layout;
  layout.add(c.graph);
  c.persistent_bytes = layout.bytes() + (target.cuda ? 0 : layout.host_bytes());
  c.host_bytes = layout.host_bytes();
  return c;
}

size_t bytes_of(const Compiled& c) { return c.persistent_bytes + c.plan.bytes; }

std::string mebibytes(size_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

}  // namespace

Compiled compile(Graph graph, const std::vector<TensorId>& results, const Target& target,
                 const CompileOptions& options) {
  const auto compile_by = [&](RecomputeChoice choice) { return compile_with(graph, results, target, options, choice); };
  Compiled best = compile_by(options.least);
  const auto fits = [&](const Compiled& c) { return bytes_of(c) <= options.memory_budget; };
  if (!options.memory_budget || fits(best)) return best;
  if (options.only_least)
    fail("the memory budget of ", mebibytes(options.memory_budget),
         " is too small for this rank, which recomputes as those do that it exchanges keys and values with: it needs ",
         mebibytes(bytes_of(best)));

  // The choices are ordered by what a freed byte costs in time: activation functions cost least, then norms, attention,
  // and the products of whole blocks; within a level, one more layer at a time. Memory falls along this sequence, so
  // bisection finds the first choice that fits; the memory plan of each tried choice says whether it does.
  int layers = 0;
  for (const Node& node : graph.nodes) layers = std::max(layers, node.layer + 1);
  const auto choice = [&](int i) { return RecomputeChoice{static_cast<Recompute>(1 + i / layers), 1 + i % layers}; };
  const auto [least, least_layers] = options.least;
  int low = least == Recompute::none ? 0 : (static_cast<int>(least) - 1) * layers + least_layers, high = 4 * layers - 1;
  if (layers > 0) best = compile_by(choice(high));
  // For small models the kernels' workspaces can make memory rise again at the end of the sequence. Where the last
  // choice does not fit, every choice is tried.
  for (int i = low; i < high && !fits(best); ++i) {
    Compiled candidate = compile_by(choice(i));
    if (fits(candidate)) return candidate;
    if (bytes_of(candidate) < bytes_of(best)) best = std::move(candidate);
  }
  if (!fits(best))
    fail("the memory budget of ", mebibytes(options.memory_budget),
         " is too small: however much is recomputed, the run needs ", mebibytes(bytes_of(best)),
         "; a smaller batch or model would do");
  while (low < high) {
    const int middle = (low + high) / 2;
    Compiled candidate = compile_by(choice(middle));
    if (fits(candidate)) {
      high = middle;
      best = std::move(candidate);
    } else {
      low = middle + 1;
    }
  }
  return best;
}

}  // namespace llm
