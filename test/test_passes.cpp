// The passes: what each must do, and what none of them may change.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "llm/base/simd.h"
#include "llm/model/gpt.h"
#include "test/graph_checks.h"

using namespace llm;
using namespace llm::reference;

TEST_CASE("dead code: what nobody wants goes, what changes persistent memory stays") {
  TensorId x = kNone;
  Graph g = input_graph({2, 1, 4}, x);
  const TensorId kept = g.add("gelu", {}, {x}, "kept")[0];
  g.add("relu2", {}, {g.add("gelu", {}, {kept}, "dead")[0]}, "dead too");
  CHECK(remove_dead_code(g, {kept}).nodes_after == 1);
  CHECK(g.nodes[0].outputs[0] == kept);

  const TrainingGraph t = build_training_graph(small_config("gpt2"), 2, 8, {});
  Graph whole = t.graph;
  const PassReport report = remove_dead_code(whole, {});
  CHECK(report.nodes_before == t.graph.nodes.size());
  CHECK(report.nodes_after == whole.nodes.size());
  // No node can go: the losses are only shown, but their node also gives the log-sum-exp from which gradients are made.
  CHECK(count_ops(whole) == count_ops(t.graph));
}

TEST_CASE("fusion: which nodes are left") {
  const int L = 3;
  for (const char* architecture : {"gpt2", "modern", "relu2"}) {
    CAPTURE(std::string(architecture));
    const ModelConfig config = small_config(architecture);
    const TrainingGraph t = build_training_graph(config, 2, 8, {});
    Graph g = t.graph;
    auto before = count_ops(g);
    const PassReport report = fuse(g, t.results(), {});
    auto after = count_ops(g);
    const bool swiglu = config.activation == Activation::swiglu;
    const std::string activation = name_of(config.activation);
    CHECK(before["add"] == 4 * L);
    CHECK(before[activation] == L);
    CHECK(after["add"] == 0);
    for (const char* gone :
         {"gelu", "gelu_backward", "relu2", "relu2_backward", "cross_entropy", "cross_entropy_backward"})
      CHECK(after[gone] == 0);
    CHECK(after["head_loss"] == 1);
    for (const char* same :
         {"attention", "attention_backward", "layernorm", "rmsnorm_backward", "swiglu", "rope", "adamw"})
      CHECK(after[same] == before[same]);
    CHECK(after["linear"] == 4 * L);
    CHECK(report.nodes_before - report.nodes_after == static_cast<size_t>(4 * L + (swiglu ? 0 : 2 * L) + 4));
    CHECK(report.nodes_after == g.nodes.size());
    CHECK(report.detail.find("6 residual + norm") != std::string::npos);
    // Only products of the CPU leave the derivative in the place of their result, and only where nothing is rounded to
    // bf16.
    const auto derivatives = [&](Graph graph, const Target& target) {
      fuse(graph, t.results(), target);
      return std::count_if(graph.nodes.begin(), graph.nodes.end(),
                           [](const Node& node) { return node.attributes.flag("derivative"); });
    };
    CHECK(derivatives(t.graph, {}) == (swiglu ? 0 : 2 * L));
    CHECK(derivatives(t.graph, {.cuda = true}) == 0);
    CHECK(derivatives(build_training_graph(config, 2, 8, {}, DType::bf16).graph, {}) == 0);
  }
}

TEST_CASE("row padding: where rows lie a multiple of 4 KiB apart and every op knows strides; it changes no bit") {
  for (const char* architecture : {"gpt2", "modern", "relu2"})
    for (const bool fused : {false, true}) {
      CAPTURE(std::string(architecture));
      CAPTURE(fused);
      ModelConfig config = small_config(architecture);
      config.hidden = 1024;
      Trainer padded(config, {.compile = {.fuse = fused}});
      Trainer dense(config, {.compile = {.fuse = fused, .pad_rows = false}});
      int count = 0;
      for (const Tensor& t : padded.program->graph().tensors) {
        if (t.is_dense()) continue;
        ++count;
        CHECK(t.role == Role::activation);
        CHECK(t.shape.last() % 1024 == 0);
        CHECK(t.storage_bytes() == static_cast<size_t>(t.shape.elements() + 16 * t.shape.rows()) * 4);
      }
      // Each layer pads the product's result or its derivative, what the activation makes of it, and the gradients of
      // both; with fusion the gradient of the latter does not exist. An activation by itself takes no strides, but
      // swiglu does.
      const int a_layer = config.activation == Activation::swiglu ? 4 : fused ? 3 : 0;
      CHECK(count == a_layer * config.layers);
      for (const Tensor& t : dense.program->graph().tensors) CHECK(t.is_dense());
      check_equal(padded.after_steps(2), dense.after_steps(2));
    }
}

TEST_CASE("fusion changes no bit, but for the head's rounding") {
  for (const char* architecture : {"gpt2", "modern", "relu2"}) {
    CAPTURE(std::string(architecture));
    const ModelConfig config = small_config(architecture);
    const Snapshot plain = train(config, {.compile = {.fuse = false}, .keep_logits = true});
    check_equal(plain, train(config, {.compile = {.fuse = true}, .keep_logits = true}));
    // Only one step is compared: in later steps Adam has moved parameters by the sign of gradients near zero.
    const Snapshot once = train(config, {.compile = {.fuse = false}}, 1);
    Trainer fused(config, {});
    fused.run(0, Phase::backward);
    for (auto& [name, words] : fused.snapshot())
      if (name == "losses" || name.ends_with(".grad")) {
        INFO(name);
        CHECK(reference::difference(words, once.at(name)) <= kNoise);
      }
  }
}

TEST_CASE("recomputation changes no bit, and each level takes less memory than the one before") {
  for (const char* architecture : {"gpt2", "modern", "relu2"}) {
    CAPTURE(std::string(architecture));
    const ModelConfig config = small_config(architecture);
    for (const bool fused : {false, true}) {
      const Snapshot without = train(config, {.threads = 1, .compile = {.fuse = fused}}, 2);
      const size_t all = Trainer(config, {.threads = 1, .compile = {.fuse = fused}}).program->compiled().plan.bytes;
      size_t bytes = all, of_level = all;
      for (int level = 1; level <= static_cast<int>(Recompute::block); ++level) {
        for (int layers = 1; layers <= config.layers; ++layers) {
          CAPTURE(level);
          CAPTURE(layers);
          CAPTURE(fused);
          Trainer trainer(
              config, {.threads = 1, .compile = {.fuse = fused}, .recompute = {static_cast<Recompute>(level), layers}});
          check_equal(without, trainer.after_steps(2));
          // One more layer saves nothing where the peak is elsewhere already. Its clones may then cost a little, which
          // depends on the kernels' workspaces, and so on the width of the CPU's vectors: 2.6 % with four lanes.
          constexpr double kMost = simd::kLanes > 4 ? 1.02 : 1.03;
          CHECK(static_cast<double>(trainer.program->compiled().plan.bytes) <= kMost * static_cast<double>(bytes));
          bytes = trainer.program->compiled().plan.bytes;
        }
        CHECK(bytes <= of_level);
        of_level = bytes;
      }
      CHECK(of_level < all * 3 / 4);
    }
  }
}

TEST_CASE("fusion leaves a tensor that something else wants") {
  TensorId x = kNone;
  Graph g = input_graph({2, 8}, x);
  const TensorId w = g.add_tensor("w", DType::fp32, {8}, Role::parameter);
  const auto normal = g.add("rmsnorm", {{"epsilon", 1e-5}}, {x, w});
  const TensorId dx = g.add("rmsnorm_backward", {}, {x, x, w, normal[1], kNone})[0];
  const TensorId sum = g.add("add", {}, {x, dx}, "sum")[0];
  Graph alone = g;
  CHECK(fuse(alone, {sum}, {}).nodes_after == 2);
  CHECK(fuse(g, {sum, dx}, {}).nodes_after == 3);
}

TEST_CASE("memory budget: the first choice that fits, or an error that says what would") {
  const ModelConfig config = small_config("modern");
  const TrainingGraph t = build_training_graph(config, kBatch, kTokens, {});
  const auto total = [](const Compiled& c) { return c.persistent_bytes + c.plan.bytes; };
  std::vector<std::pair<RecomputeChoice, size_t>> choices = {{{}, total(compile(t.graph, t.results(), {}))}};
  for (int level = 1; level <= static_cast<int>(Recompute::block); ++level)
    for (int layers = 1; layers <= config.layers; ++layers) {
      Graph g = t.graph;
      recompute(g, {static_cast<Recompute>(level), layers});
      choices.push_back({{static_cast<Recompute>(level), layers}, total(compile(g, t.results(), {}))});
    }
  size_t least = choices.front().second;
  for (auto& [choice, bytes] : choices) least = std::min(least, bytes);
  for (auto& [choice, bytes] : choices)
    for (size_t budget : {bytes + 1, bytes, bytes - 1}) {
      const auto first =
          std::find_if(choices.begin(), choices.end(), [&](const auto& other) { return other.second <= budget; });
      if (first == choices.end()) continue;
      const Compiled c = compile(t.graph, t.results(), {}, {.memory_budget = budget});
      CHECK(c.recomputation.level == first->first.level);
      CHECK(c.recomputation.layers == first->first.layers);
      CHECK(total(c) == first->second);
    }
  const std::string needs = concat("needs ", (least + (1 << 20) - 1) >> 20, " MiB");
  CHECK_THROWS_WITH_AS(compile(t.graph, t.results(), {}, {.memory_budget = least - 1}),
                       doctest::Contains(needs.c_str()), Error);
  CHECK_THROWS_WITH_AS(compile(t.graph, t.results(), {}, {.memory_budget = 1}), doctest::Contains("memory budget"),
                       Error);
}

TEST_CASE("memory budget: an fp8 step recomputes too, with its products in 8 bits") {
  ModelConfig config = small_config("modern");
  config.channels = 48, config.head_size = 12, config.hidden = 80;  // products in 8 bits need multiples of 16
  const auto layers = static_cast<int>(config.layers);
  const TrainingGraph t = build_training_graph(config, kBatch, kTokens, {}, DType::bf16);
  const Target gpu{.cuda = true, .precision = Precision::fp8};
  const Compiled free = compile(t.graph, t.results(), gpu);
  size_t bytes = free.plan.bytes;
  for (int level = 1; level <= static_cast<int>(Recompute::block); ++level) {
    CAPTURE(level);
    Graph g = t.graph;
    recompute(g, {static_cast<Recompute>(level), layers});
    const Compiled c = compile(g, t.results(), gpu);
    CHECK(c.plan.bytes <= bytes);
    bytes = c.plan.bytes;
    for (const Node& node : c.graph.nodes)
      CHECK_FALSE((node.layer >= 0 && std::string_view(node.op->name).starts_with("linear")));
  }
  CHECK(bytes < free.plan.bytes * 3 / 4);
  const size_t budget = free.persistent_bytes + (bytes + free.plan.bytes) / 2;
  const Compiled c = compile(t.graph, t.results(), gpu, {.memory_budget = budget});
  CHECK(c.recomputation.level != Recompute::none);
  CHECK(c.persistent_bytes + c.plan.bytes <= budget);

  // Without fusion the bits are the same. (A fused sum and norm do not round between them, while a norm that is
  // computed again starts from the rounded sum.)
  Trainer::Settings settings{.compile = {.fuse = false}, .precision = Precision::fp8};
  const Snapshot without = train(config, settings, 2);
  for (int level = 1; level <= static_cast<int>(Recompute::block); ++level) {
    settings.recompute = {static_cast<Recompute>(level), layers};
    check_equal(without, train(config, settings, 2));
  }
}

namespace {

// Checks a plan from the nodes alone, without the planner's groups: finds when each storage is used, and that no two in
// use at the same time overlap, except where a node works in place as its op allows.
void check_plan(const Graph& g, const std::vector<TensorId>& results, const MemoryPlan& plan) {
  struct Use {
    int first = -1, last = -1;
  };
  std::map<TensorId, Use> uses;
  const auto use = [&](TensorId id, int n) {
    if (id == kNone || is_persistent(g.tensor(g.storage(id)).role)) return;
    Use& u = uses[g.storage(id)];
    if (u.first < 0) u.first = g.tensor(id).role == Role::input ? 0 : n;
    u.last = n;
  };
  for (size_t n = 0; n < g.nodes.size(); ++n) {
    for (TensorId id : g.nodes[n].inputs) use(id, static_cast<int>(n));
    for (TensorId id : g.nodes[n].outputs) use(id, static_cast<int>(n));
    use(g.nodes[n].workspace, static_cast<int>(n));
  }
  for (TensorId id : results) use(id, static_cast<int>(g.nodes.size()));
  const auto in_place = [&](TensorId in, TensorId out, int n) {
    const Node& node = g.nodes[static_cast<size_t>(n)];
    return std::any_of(node.op->in_place.begin(), node.op->in_place.end(), [&](const InPlace& p) {
      return node.input(static_cast<size_t>(p.input)) == in && node.output(static_cast<size_t>(p.output)) == out;
    });
  };
  size_t overlaid = 0;
  const auto start = [&](TensorId id) { return plan.offsets[static_cast<size_t>(id)]; };
  const auto end = [&](TensorId id) { return start(id) + g.tensor(id).storage_bytes(); };
  for (auto& [a, u] : uses) {
    CHECK(end(a) <= plan.bytes);
    CHECK(start(a) % 256 == 0);
    for (auto& [b, v] : uses) {
      if (a == b || u.first > v.first || v.first > u.last || start(a) >= end(b) || start(b) >= end(a)) continue;
      INFO(g.tensor(a).name, " and ", g.tensor(b).name, " overlap");
      CHECK(u.last == v.first);
      CHECK(start(a) == start(b));
      CHECK(in_place(a, b, v.first));
      ++overlaid;
    }
  }
  CHECK(overlaid == plan.in_place);
}

}  // namespace

TEST_CASE("memory plan: nothing overlaps, and sharing memory changes no bit") {
  for (const char* architecture : {"gpt2", "modern", "relu2"})
    for (const bool fused : {false, true}) {
      const ModelConfig config = small_config(architecture);
      Trainer shared(config, {.compile = {.fuse = fused}});
      Trainer apart(config, {.compile = {.fuse = fused, .share_memory = false}});
      for (const Trainer* t : {&shared, &apart})
        check_plan(t->program->graph(), t->graph.results(), t->program->compiled().plan);
      const MemoryPlan &plan = shared.program->compiled().plan, &loose = apart.program->compiled().plan;
      CHECK(plan.in_place > 0);
      CHECK(loose.bytes == loose.unshared_bytes);
      CHECK(plan.bytes < loose.bytes / 2);
      CHECK(plan.bytes >= *std::max_element(plan.live.begin(), plan.live.end()));
      check_equal(shared.after_steps(3), apart.after_steps(3));
    }
}
