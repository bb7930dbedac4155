#include "llm/graph/program.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "llm/device/cuda_transfer.h"
#include "llm/graph/op.h"

namespace llm {
void PersistentLayout::add(const Graph& graph) {
  for (const Tensor& t : graph.tensors) {
    if (!is_persistent(t.role) || t.alias != kNone) continue;
    const auto [entry, is_new] = places_.try_emplace(t.name, Place{bytes_, t.dtype, t.shape, t.storage_bytes()});
    if (is_new) bytes_ += placed_bytes(t.storage_bytes());
    const Place& place = entry->second;
    if (place.dtype != t.dtype || place.shape != t.shape || place.bytes != t.storage_bytes())
      fail("the tensor ", t.name, " is laid out as ", name_of(place.dtype), " ", place.shape.text(), " in ",
           place.bytes, " bytes, but another graph has it as ", name_of(t.dtype), " ", t.shape.text(), " in ",
           t.storage_bytes());
  }
}

const PersistentLayout::Place& PersistentLayout::place(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) fail("no place was laid out for the tensor ", name);
  return found->second;
}

Arena::Arena(size_t bytes, CudaDevice* cuda) : cuda_(cuda) {
  if (cuda) {
    bytes_ = bytes;
    data_ = static_cast<std::byte*>(cuda->allocate(bytes));
    return;
  }
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

Arena::~Arena() {
  if (cuda_)
    cuda_->release(data_);
  else
    ::munmap(data_, bytes_);
}

void Arena::write(size_t offset, const void* from, size_t bytes) const {
  if (cuda_)
    cuda_->copy_in(data_ + offset, from, bytes);
  else
    std::memcpy(data_ + offset, from, bytes);
}

void Arena::read(size_t offset, void* to, size_t bytes) const {
  if (cuda_)
    cuda_->copy_out(to, data_ + offset, bytes);
  else
    std::memcpy(to, data_ + offset, bytes);
}

// A walk over the nodes of some phases is captured when it runs for the second time, and from then on launched as a whole.
// (The first time products choose their algorithms, which cannot be captured.) The first micro-step overwrites parameter
// gradients and the later ones add to them, so they are two walks.
struct Program::Replay {
  struct Walk {
    int runs = 0;
    CudaGraph graph;
  };
  Walk& walk(Phases phases, bool accumulates) { return walks_[phases.bits() * 2 + (accumulates ? 1 : 0)]; }

 private:
  std::array<Walk, 2 * Phases::kCount> walks_;
};

Program::Program(std::shared_ptr<const Compiled> compiled, const PersistentLayout& layout, size_t base)
    : compiled_(std::move(compiled)), base_(base) {
  const Graph& g = graph();
  offsets_.assign(g.tensors.size(), MemoryPlan::kNowhere);
  for (size_t i = 0; i < g.tensors.size(); ++i) {
    const auto id = static_cast<TensorId>(i);
    const Tensor& owner = g.tensor(g.storage(id));
    if (is_persistent(owner.role)) {
      offsets_[i] = layout.offset(owner.name) + g.bytes_into_storage(id);
    } else if (compiled_->plan.offsets[i] != MemoryPlan::kNowhere) {
      offsets_[i] = base_ + compiled_->plan.offsets[i];
    }
  }
  const bool cuda = compiled_->target.cuda;
  for (const Node& node : g.nodes) {
    if (!(cuda ? node.op->cuda : node.op->cpu))
      fail("op ", node.op->name, " has no ", cuda ? "CUDA" : "CPU", " kernel");
    if (!cuda && node.op->cpu_takes_strides) continue;
    for (const auto* ids : {&node.inputs, &node.outputs})
      for (TensorId id : *ids)
        if (id != kNone && !g.tensor(id).is_dense())
          fail("op ", node.op->name, " takes no strides, but the rows of ", g.tensor(id).name, " lie apart");
  }
}

Program::~Program() {
  if (device_step_) cuda_->release(device_step_);
}

void Program::bind(const Arena& arena, ThreadTeam& threads) {
  if (arena.bytes() < arena_bytes())
    fail("the arena has ", arena.bytes(), " bytes but the program needs ", arena_bytes());
  if (compiled_->target.cuda != (arena.cuda() != nullptr)) fail("the graph and the arena are for different devices");
  if (arena.cuda() && !device_step_) {
    cuda_ = arena.cuda();
    device_step_ = static_cast<StepState*>(cuda_->allocate(sizeof(StepState)));
    store_small(*cuda_, device_step_, &on_device_, sizeof on_device_);
    replay_ = std::make_unique<Replay>();
  }
  addresses_.assign(offsets_.size(), nullptr);
  for (size_t i = 0; i < offsets_.size(); ++i)
    if (offsets_[i] != MemoryPlan::kNowhere) addresses_[i] = arena.data() + offsets_[i];
  calls_.clear();
  for (const Node& node : graph().nodes)
    calls_.push_back({graph(), node, threads, step, addresses_.data(), cuda_, device_step_});
}

void Program::enqueue(Phases phases) {
  const auto walk = [&] {
    for (const KernelCall& kernel : calls_)
      if (phases.contain(kernel.node.phase)) kernel.node.op->cuda(kernel);
  };
  Replay::Walk& replay = replay_->walk(phases, step.micro_step > 0);
  if (replay.runs++ == 0 || !CudaGraph::supported()) return walk();
  if (!replay.graph.ready()) {
    replay.graph.begin(*cuda_);
    walk();
    replay.graph.end(*cuda_);
  }
  replay.graph.launch(*cuda_);
}

void Program::time_on_cuda(Phases phases, std::vector<double>& seconds) {
  Stopwatch watch(*cuda_, calls_.size() + 1);
  watch.mark(0);
  for (size_t i = 0; i < calls_.size(); ++i) {
    if (phases.contain(calls_[i].node.phase)) calls_[i].node.op->cuda(calls_[i]);
    watch.mark(i + 1);
  }
  for (size_t i = 0; i < calls_.size(); ++i) seconds[i] += watch.seconds(i, i + 1);
}

void Program::write(TensorId id, const void* from) const {
  const size_t bytes = graph().tensor(id).bytes();
  if (cuda_)
    cuda_->copy_in(data<void>(id), from, bytes);
  else
    std::memcpy(data<void>(id), from, bytes);
}

void Program::read(TensorId id, void* to) const {
  const size_t bytes = graph().tensor(id).bytes();
  if (cuda_)
    cuda_->copy_out(to, data<void>(id), bytes);
  else
    std::memcpy(to, data<void>(id), bytes);
}

void Program::run(Phases phases, std::vector<double>* seconds) {
  using Clock = std::chrono::steady_clock;
  if (cuda_) {
    if (step != on_device_) store_small(*cuda_, device_step_, &step, sizeof step);
    on_device_ = step;
    for (const KernelCall& call : calls_)
      if (call.node.op->moves_step && phases.contain(call.node.phase)) ++on_device_.position, ++on_device_.token_index;
    return seconds ? time_on_cuda(phases, *seconds) : enqueue(phases);
  }
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Node& node = calls_[i].node;
    if (!phases.contain(node.phase)) continue;
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
