#include "llm/train/pipeline.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/device/communicator.h"

namespace llm {
namespace {

using Pass = PipelineAction::Pass;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The most micro-batches of a chunk that are under way at a time.
size_t slots_of(const std::vector<PipelineAction>& actions, int chunk, bool splits) {
  int kept = 0, most = 1;
  for (const PipelineAction& a : actions) {
    if (a.chunk != chunk) continue;
    kept += a.pass == Pass::forward ? 1 : 0;
    most = std::max(most, kept);
    kept -= a.pass == (splits ? Pass::weights : Pass::backward) ? 1 : 0;
  }
  return static_cast<size_t>(most);
}

}  // namespace

Pipeline::Pipeline(PipelineGraphs& graphs, const PipelineShape& shape, const DataParallel& parallel,
                   const PersistentLayout& layout, const Target& target, const CompileOptions& options,
                   const std::vector<PipelineGraphs>& ring)
    : shape_(shape),
      mesh_(parallel.mesh),
      run_rank_(parallel.run_rank),
      stage_(parallel.mesh.place_of(parallel.run_rank).stage),
      actions_(make_schedule(shape)[static_cast<size_t>(stage_)]),
      under_way_(static_cast<size_t>(kMostPipelineChannels) + 1, nullptr) {
  const size_t fixed = placed_bytes(layout.bytes());
  size_t base = fixed, all_slots = 0;
  std::vector<size_t> slots;  // by chunk
  for (int c = 0; c < shape.chunks; ++c) {
    slots.push_back(slots_of(actions_, c, parallel.splits_backward));
    all_slots += slots.back();
  }
  for (int c = 0; c < shape.chunks; ++c) {
    PipelinePart& part = graphs.parts[static_cast<size_t>(c)];
    Chunk& chunk = chunks_.emplace_back();
    CompileOptions own = options;
    if (options.memory_budget) {
      PersistentLayout of_part;
      of_part.add(part.graph);
      const size_t left = options.memory_budget > fixed ? options.memory_budget - fixed : 0;
      own.memory_budget = of_part.bytes() + std::max<size_t>(1, left / all_slots);
    }
    const std::vector<TensorId> results = part.results();
    try {
      for (const PipelineGraphs& other : ring) {
        const PipelinePart& same = other.parts[static_cast<size_t>(c)];
        own.least = compile(same.graph, same.results(), target, own).recomputation;
      }
      own.only_least = !ring.empty();
      chunk.compiled = std::make_shared<const Compiled>(compile(std::move(part.graph), results, target, own));
    } catch (const Error&) {
      if (!options.memory_budget) throw;
      fail("the memory budget of ", format_bytes(options.memory_budget), " is too small for stage ", stage_,
           ", which keeps ", static_cast<int64_t>(all_slots), " micro-batches beside ", format_bytes(layout.bytes()),
           ", however much is recomputed; a smaller --batch, more stages or tensor-parallel ranks would do");
    }
    chunk.ids = part;
    chunk.part = c * shape.stages + stage_;
    for (size_t s = 0; s < slots[static_cast<size_t>(c)]; ++s) {
      chunk.slots.push_back(std::make_unique<Program>(chunk.compiled, layout, base));
      base += placed_bytes(chunk.compiled->plan.bytes);
    }
  }
  arena_bytes_ = base;
  if (graphs.head_gradient != kNone) {
    const Tensor& t = graphs.step.graph.tensor(graphs.head_gradient);
    head_gradient_ = layout.offset(t.name), head_gradient_bytes_ = t.bytes();
  }
}

void Pipeline::bind(const Arena& arena, Communicator* ranks, Communicator* forward, Communicator* backward) {
  arena_ = &arena, forward_ = forward, backward_ = backward;
  for (Chunk& chunk : chunks_)
    for (const auto& slot : chunk.slots) slot->bind(arena, ranks);
}

// Of messages between part `boundary` of the model and the next.
int Pipeline::channel(int boundary, bool back, int micro) const {
  const int kinds = 2 * shape_.stages * shape_.chunks, each = static_cast<int>(kMostPipelineChannels) / kinds;
  return 1 + (2 * boundary + (back ? 1 : 0)) * each + micro % each;
}

void Pipeline::wait_for_sent(int channel) {
  if (Communicator* const by = std::exchange(under_way_[static_cast<size_t>(channel)], nullptr)) by->wait(channel);
}

void Pipeline::send(Communicator& by, int stage, int channel, Program& program, TensorId id) {
  wait_for_sent(channel);
  Mesh::Place to = mesh_.place_of(run_rank_);
  to.stage = stage;
  by.prepare(channel).sends.push_back({mesh_.rank_of(to), program.data<void>(id), program.graph().tensor(id).bytes()});
  by.start(channel);
  under_way_[static_cast<size_t>(channel)] = &by;
}

void Pipeline::receive(Communicator& by, int stage, int channel, Program& program, TensorId id) {
  Mesh::Place from = mesh_.place_of(run_rank_);
  from.stage = stage;
  by.prepare(channel).receives.push_back(
      {mesh_.rank_of(from), program.data<void>(id), program.graph().tensor(id).bytes()});
  by.start(channel);
  by.wait(channel);
}

void Pipeline::pass(const PipelineAction& a, const StepState& state, const Provide& provide) {
  Chunk& chunk = chunks_[static_cast<size_t>(a.chunk)];
  const auto slots = static_cast<int>(chunk.slots.size());
  Program& program = *chunk.slots[static_cast<size_t>(a.micro % slots)];
  const PipelinePart& ids = chunk.ids;
  const int S = shape_.stages, before = (stage_ + S - 1) % S, behind = (stage_ + 1) % S;
  program.step = state;
  if (a.pass == Pass::forward) {
    // What the slot's last micro-batch sent has left.
    if (const int last = a.micro - slots; last >= 0) {
      if (ids.sent != kNone) wait_for_sent(channel(chunk.part, false, last));
      if (ids.received != kNone) wait_for_sent(channel(chunk.part - 1, true, last));
    }
    const auto address = [&](TensorId id) { return id == kNone ? nullptr : program.data<void>(id); };
    if (ids.tokens != kNone || ids.targets != kNone || ids.loss_weights != kNone)
      provide(state.first_sample, address(ids.tokens), address(ids.targets), address(ids.loss_weights));
    if (ids.received != kNone)
      receive(*forward_, before, channel(chunk.part - 1, false, a.micro), program, ids.received);
  } else if (a.pass == Pass::backward && ids.sent != kNone) {
    receive(*backward_, behind, channel(chunk.part, true, a.micro), program, ids.sent_gradient);
  }
  const double begin = now();
  program.run(a.pass == Pass::forward ? Phase::forward : a.pass == Pass::weights ? Phase::weights : Phase::backward);
  times_.push_back({a, begin, now()});
  if (a.pass == Pass::forward && ids.sent != kNone)
    send(*forward_, behind, channel(chunk.part, false, a.micro), program, ids.sent);
  if (a.pass == Pass::backward && ids.received != kNone)
    send(*backward_, before, channel(chunk.part - 1, true, a.micro), program, ids.received_gradient);
}

void Pipeline::run(StepState state, int64_t first_sample, int64_t batch, const Provide& provide) {
  times_.clear();
  for (const PipelineAction& a : actions_) {
    state.micro_step = a.micro;
    state.first_sample = first_sample + a.micro * batch;
    pass(a, state, provide);
  }
  for (size_t c = 0; c < under_way_.size(); ++c) wait_for_sent(static_cast<int>(c));
  if (head_gradient_ == MemoryPlan::kNowhere) return;
  // The last stage's gradient of a tied head goes to the first, which has the embedding's.
  Mesh::Place other = mesh_.place_of(run_rank_);
  const bool is_first = stage_ == 0;
  other.stage = is_first ? shape_.stages - 1 : 0;
  Exchange& exchange = forward_->prepare(kTiedGradientChannel);
  (is_first ? exchange.receives : exchange.sends)
      .push_back({mesh_.rank_of(other), arena_->address(head_gradient_), head_gradient_bytes_});
  forward_->start(kTiedGradientChannel);
  forward_->wait(kTiedGradientChannel);
}

}  // namespace llm
