#include "llm/graph/fusion.h"

#include <algorithm>

namespace llm {

bool Fusion::is_result(TensorId id) const { return std::find(results_.begin(), results_.end(), id) != results_.end(); }

void Fusion::count_uses() {
  readers_.assign(g_.tensors.size(), {});
  writers_.assign(g_.tensors.size(), kOutside);
  for (size_t i = 0; i < g_.nodes.size(); ++i) {
    for (TensorId id : g_.nodes[i].inputs)
      for (; id != kNone; id = g_.tensor(id).alias) readers_[static_cast<size_t>(id)].push_back(static_cast<int>(i));
    for (TensorId id : g_.nodes[i].outputs)
      if (id != kNone) writers_[static_cast<size_t>(id)] = static_cast<int>(i);
  }
  for (size_t i = 0; i < g_.tensors.size(); ++i)
    if (const TensorId whole = g_.tensors[i].alias; whole != kNone && writers_[i] == kOutside)
      writers_[i] = writers_[static_cast<size_t>(whole)];
}

}  // namespace llm
