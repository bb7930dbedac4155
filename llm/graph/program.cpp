#include "llm/graph/program.h"

#include <chrono>
#include <utility>

#include "llm/graph/op.h"

namespace llm {

void PersistentLayout::add(const Graph& graph) {
  for (const Tensor& t : graph.tensors) {
    if (!is_persistent(t.role) || t.alias != kNone) continue;
    size_t& used = t.on_host ? host_bytes_ : bytes_;
    const size_t offset = used + (t.on_host ? Arena::kHostPart : 0);
    const auto [entry, is_new] =
        places_.try_emplace(t.name, Place{offset, t.dtype, t.shape, t.panel_rows, t.storage_bytes()});
    if (is_new) used += placed_bytes(t.storage_bytes());
    const Place& place = entry->second;
    if (place.dtype != t.dtype || place.shape != t.shape || place.panel_rows != t.panel_rows ||
        place.bytes != t.storage_bytes())
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
  const Target& target = compiled_->target;
  for (const Node& node : g.nodes) {
    if (node.op->takes_strides(target)) continue;
    for (const auto* ids : {&node.inputs, &node.outputs})
      for (TensorId id : *ids)
        if (id != kNone && !g.tensor(id).is_dense())
          fail("op ", node.op->name, " takes no strides, but the rows of ", g.tensor(id).name, " lie apart");
  }
}

void Program::bind(const Arena& arena, Communicator* ranks) {
  if (arena.bytes() < arena_bytes())
    fail("the arena has ", arena.bytes(), " bytes but the program needs ", arena_bytes());
  if (arena.host_bytes() < compiled_->host_bytes)
    fail("the arena has ", arena.host_bytes(), " bytes of the host's but the program needs ", compiled_->host_bytes);
  CudaDevice* const cuda = arena.device().cuda();
  if (compiled_->target.cuda != (cuda != nullptr)) fail("the graph and the arena are for different devices");
  arena_ = &arena;
  device_step_ = std::make_unique<Arena>(sizeof(StepState), device());
  on_device_ = {};
  device().store(device_step_->data(), &on_device_, sizeof on_device_);
  for (auto& replay : replays_) replay = device().new_replay();
  addresses_.assign(offsets_.size(), nullptr);
  for (size_t i = 0; i < offsets_.size(); ++i)
    if (offsets_[i] != MemoryPlan::kNowhere) addresses_[i] = arena.address(offsets_[i]);
  calls_.clear();
  waiting_ = {};
  for (const Node& node : graph().nodes) {
    if (!node.op->kernel(compiled_->target))
      fail("op ", node.op->name, " has no kernel for the ", cuda ? "GPU" : "CPU");
    if (cuda && node.op->waits_for_device) waiting_ = waiting_ | node.phase;
    calls_.push_back({.graph = graph(),
                      .node = node,
                      .threads = device().threads(),
                      .step = step,
                      .addresses = addresses_.data(),
                      .cuda = cuda,
                      .device_step = reinterpret_cast<StepState*>(device_step_->data()),
                      .ranks = ranks});
  }
}

Replay& Program::replay(Phases phases) { return *replays_[phases.bits() * 2 + (step.micro_step > 0 ? 1 : 0)]; }

void Program::hand_over_step() {
  if (step != on_device_) device().store(device_step_->data(), &step, sizeof step);
  on_device_ = step;
}

void Program::walk(Phases phases) const {
  for (const KernelCall& call : calls_)
    if (phases.contain(call.node.phase)) call.node.op->kernel(compiled_->target)(call);
}

void Program::prepare(Phases phases) {
  hand_over_step();
  if (!waiting_.meet(phases)) replay(phases).prepare([this, phases] { walk(phases); });
}

void Program::run(Phases phases, std::vector<double>* seconds) {
  if (!seconds) {
    hand_over_step();
    if (waiting_.meet(phases)) return walk(phases);
    return replay(phases).run([this, phases] { walk(phases); });
  }
  std::vector<NodeTime> times;
  run_timed(phases, times);
  for (const NodeTime& time : times) (*seconds)[time.node] += time.end - time.begin;
}

void Program::run_timed(Phases phases, std::vector<NodeTime>& times) {
  hand_over_step();
  const auto watch = device().new_stopwatch(calls_.size() + 1);
  const double begin = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  watch->mark(0);
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Node& node = calls_[i].node;
    if (phases.contain(node.phase)) node.op->kernel(compiled_->target)(calls_[i]);
    watch->mark(i + 1);
  }
  for (size_t i = 0; i < calls_.size(); ++i)
    if (phases.contain(calls_[i].node.phase))
      times.push_back({i, begin + watch->seconds(0, i), begin + watch->seconds(0, i + 1)});
}

}  // namespace llm
