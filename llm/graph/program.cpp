#include "llm/graph/program.h"

#include <sys/mman.h>

#include <chrono>

#include "llm/graph/op.h"

namespace llm {
void PersistentLayout::add(const Graph& graph) {
  for (const Tensor& t : graph.tensors) {
    if (!is_persistent(t.role) || t.alias != kNone || offsets_.contains(t.name)) continue;
    offsets_[t.name] = bytes_;
    bytes_ += placed_bytes(t.bytes());
  }
}

size_t PersistentLayout::offset(const std::string& name) const {
  const auto found = offsets_.find(name);
  if (found == offsets_.end()) fail("no place was laid out for the tensor ", name);
  return found->second;
}

Arena::Arena(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const auto aligned = [](size_t to_huge_page) { return (to_huge_page + kHugePage - 1) / kHugePage * kHugePage; };
  bytes_ = std::max(aligned(bytes), kHugePage);
  void* data =
      ::mmap(nullptr, bytes_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    fail("the system does not give ", bytes_ >> 20, " MiB of memory; lower --batch or set --memory-budget");
  // Start on a huge page's boundary, and give the pages in front of it and behind back.
  const auto address = reinterpret_cast<size_t>(data);
  const size_t start = aligned(address);
  if (start > address) ::munmap(data, start - address);
  if (const size_t tail = address + kHugePage - start; tail > 0)
    ::munmap(reinterpret_cast<void*>(start + bytes_), tail);
  data_ = reinterpret_cast<std::byte*>(start);
  ::madvise(data_, bytes_, MADV_HUGEPAGE);  // only an advice: small pages work too
}

Arena::~Arena() { ::munmap(data_, bytes_); }

Program::Program(Compiled compiled, const PersistentLayout& layout)
    : compiled_(std::move(compiled)), transient_base_(placed_bytes(layout.bytes())) {
  const Graph& g = compiled_.graph;
  offsets_.assign(g.tensors.size(), MemoryPlan::kNowhere);
  for (size_t i = 0; i < g.tensors.size(); ++i) {
    const Tensor& owner = g.tensor(g.storage(static_cast<TensorId>(i)));
    if (is_persistent(owner.role)) {
      offsets_[i] = layout.offset(owner.name);
    } else if (compiled_.plan.offsets[i] != MemoryPlan::kNowhere) {
      offsets_[i] = transient_base_ + compiled_.plan.offsets[i];
    }
  }
  for (const Node& node : g.nodes)
    if (!node.op->cpu) fail("op ", node.op->name, " has no CPU kernel");
}

void Program::bind(const Arena& arena, ThreadTeam& threads) {
  if (arena.bytes() < arena_bytes())
    fail("the arena has ", arena.bytes(), " bytes but the program needs ", arena_bytes());
  addresses_.assign(offsets_.size(), nullptr);
  for (size_t i = 0; i < offsets_.size(); ++i)
    if (offsets_[i] != MemoryPlan::kNowhere) addresses_[i] = arena.data() + offsets_[i];
  calls_.clear();
  for (const Node& node : compiled_.graph.nodes)
    calls_.push_back({compiled_.graph, node, threads, step, addresses_.data()});
}

void Program::run(Phase first, Phase last, std::vector<double>* seconds) {
  using Clock = std::chrono::steady_clock;
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Node& node = calls_[i].node;
    if (node.phase < first || node.phase > last) continue;
    if (!seconds) {
      node.op->cpu(calls_[i]);
      continue;
    }
    const auto start = Clock::now();
    node.op->cpu(calls_[i]);
    (*seconds)[i] += std::chrono::duration<double>(Clock::now() - start).count();
  }
}

}  // namespace llm
