#include "llm/train/virtual_ranks.h"

#include <algorithm>

namespace llm {

VirtualRankSums::VirtualRankSums(const TrainingGraph& training, const DataParallel& parallel, PersistentLayout& layout,
                                 const Target& target) {
  // The programs that fold the waiting sum number `place` into the gradients, and that save these there.
  struct Place {
    Program *fold, *save;
  };
  std::vector<Place> places;
  const auto program_of = [&](Graph g) {
    layout.add(g);
    programs_.push_back(std::make_unique<Program>(compile(std::move(g), {}, target), layout));
    return programs_.back().get();
  };
  const auto program = [&](size_t place, bool save) {
    return program_of(fold_graph(training.graph, training.gradients, training.loss, place, save));
  };
  Program* embedding = nullptr;
  if (parallel.mine().last - parallel.mine().first > 1)
    if (Graph g = embedding_sum_graph(training.graph, training.gradients); !g.nodes.empty())
      embedding = program_of(std::move(g));
  TreeStack tree(parallel.virtual_ranks);
  for (int64_t v = parallel.mine().first; v + 1 < parallel.mine().last; ++v) {
    size_t waiting = tree.sums().size();
    std::vector<Program*>& runs = after_.emplace_back();
    if (embedding) runs.push_back(embedding);
    for (int additions = tree.push_leaf(v); additions > 0; --additions) runs.push_back(places[--waiting].fold);
    if (waiting == places.size()) places.push_back({program(waiting, false), program(waiting, true)});
    runs.push_back(places[waiting].save);
  }
}

size_t VirtualRankSums::arena_bytes() const {
  size_t bytes = 0;
  for (const auto& program : programs_) bytes = std::max(bytes, program->arena_bytes());
  return bytes;
}

void VirtualRankSums::bind(const Arena& arena) {
  for (const auto& program : programs_) program->bind(arena);
}

}  // namespace llm
