// Graphs, autodiff, the passes and the program: what each must do, and what none of them may change.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "llm/base/simd.h"
#include "llm/device/cpu.h"
#include "llm/graph/autodiff.h"
#include "llm/graph/program.h"
#include "llm/model/gpt.h"
#include "test/reference.h"

namespace {

using namespace llm;
using reference::kBatch;
using reference::kTokens;
using reference::small_config;
using reference::Snapshot;
using reference::Trainer;
using reference::Words;
using reference::words_of;

// The noise of the same sums in another order: at most 5.5e-7 of a tensor's largest value was measured.
constexpr double kNoise = 2e-6;

Snapshot train(const ModelConfig& config, const Trainer::Settings& settings, int steps = 3) {
  return Trainer(config, settings).after_steps(steps);
}

void check_equal(const Snapshot& a, const Snapshot& b) {
  REQUIRE(a.size() == b.size());
  for (auto& [name, words] : a) CHECK_MESSAGE(words == b.at(name), name, " differs");
}

void check_close(const Snapshot& a, const Snapshot& b, double bound) {
  REQUIRE(a.size() == b.size());
  for (auto& [name, words] : a) {
    INFO(name);
    CHECK(reference::difference(words, b.at(name)) <= bound);
  }
}

std::map<std::string, int> count_ops(const Graph& g) {
  std::map<std::string, int> counts;
  for (const Node& node : g.nodes) ++counts[node.op->name];
  return counts;
}

Graph input_graph(Shape shape, TensorId& x) {
  Graph g;
  x = g.add_tensor("x", DType::fp32, shape, Role::input);
  return g;
}

}  // namespace

TEST_CASE("graph: attributes") {
  Attributes a{{"heads", 3}, {"epsilon", 0.5}};
  CHECK(a.integer("heads") == 3);
  CHECK(a.number("epsilon") == 0.5);
  CHECK(a.number("theta", 2.5) == 2.5);
  CHECK(a.integer("theta", 4) == 4);
  CHECK_FALSE(a.has("theta"));
  CHECK_FALSE(a.flag("bias"));
  CHECK_THROWS_WITH_AS(a.number("theta"), doctest::Contains("theta"), Error);
  a.set("bias", true);
  a.set("heads", 5);
  CHECK(a.flag("bias"));
  CHECK(a.integer("heads") == 5);
  a.set("rows", std::vector<int64_t>{4, 2});
  CHECK(a.list("rows").size() == 2);
  CHECK(a.list("rows")[1] == 2);
  CHECK(a.number("heads") == 5);  // a whole number is a number, but a number need not be whole
  CHECK_THROWS_WITH_AS(a.integer("epsilon"), doctest::Contains("not a whole number"), Error);
  CHECK_THROWS_WITH_AS(a.number("bias"), doctest::Contains("\"bias\" is not a number"), Error);
  CHECK_THROWS_WITH_AS(a.flag("heads"), doctest::Contains("not a flag"), Error);
  CHECK_THROWS_WITH_AS(a.list("bias"), doctest::Contains("not a list"), Error);
  CHECK(a.all().size() == 4);
}

TEST_CASE("graph: tensors, nodes and aliases") {
  TensorId x = kNone;
  Graph g = input_graph({2, 3, 4}, x);
  const TensorId w = g.add_tensor("w", DType::fp32, {5, 4}, Role::parameter);
  const TensorId y = g.add("linear", {}, {x, w}, "y")[0];
  CHECK(g.shape(y) == Shape{2, 3, 5});
  CHECK(g.find("y") == y);
  CHECK(g.find("z") == kNone);
  CHECK(g.nodes[0].input(7) == kNone);
  CHECK(g.tensor(y).bytes() == 2 * 3 * 5 * 4);
  CHECK_THROWS_WITH_AS(g.add("linear", {}, {y, w}), doctest::Contains("does not fit"), Error);
  CHECK_THROWS_AS(g.add("add", {}, {x, y}), Error);
  const TensorId first = g.add_tensor("a", DType::fp32, {1}, Role::state),
                 second = g.add_tensor("b", DType::fp32, {1}, Role::state);
  g.tensor(second).alias = first;
  const TensorId third = g.add_tensor("c", DType::fp32, {1}, Role::state);
  g.tensor(third).alias = second;
  CHECK(g.storage(third) == first);
}

TEST_CASE("graph: views are parts of tensors, and kernels that know strides read them where they lie") {
  // y (4, 2) = columns 1 to 3 of x (4, 5) times the transpose of rows 2 and 3 of w (6, 3).
  TensorId x = kNone;
  Graph g = input_graph({4, 5}, x);
  const TensorId w = g.add_tensor("w", DType::fp32, {6, 3}, Role::parameter);
  const TensorId columns = g.add_view("columns", x, {4, 3}, 1, 5), rows = g.add_view("rows", w, {2, 3}, 6);
  const TensorId last = g.add_view("last", rows, {1, 3}, 3);
  CHECK(g.storage(last) == w);
  CHECK(g.bytes_into_storage(last) == 9 * sizeof(float));
  CHECK_FALSE(g.tensor(columns).is_dense());
  CHECK(g.tensor(rows).is_dense());
  const TensorId y = g.add("linear", {}, {columns, rows}, "y")[0], z = g.add("linear", {}, {columns, last}, "z")[0];
  for (const auto& [shape, offset, stride] :
       {std::tuple{Shape{4, 3}, 3, 5}, {Shape{4, 3}, -1, 5}, {Shape{4, 3}, 0, 2}, {Shape{7, 3}, 0, 0}})
    CHECK_THROWS_WITH_AS(g.add_view("outside", x, shape, offset, stride), doctest::Contains("does not lie in x"),
                         Error);

  PersistentLayout layout;
  layout.add(g);
  ThreadTeam team(1);
  CpuDevice device(team);  // in which a program that is bound has memory of its own
  Program program(compile(g, {y, z}, {}), layout);
  const Arena arena(program.arena_bytes(), device);
  program.bind(arena);
  for (int i = 0; i < 20; ++i) program.data(x)[i] = static_cast<float>(i % 7 - 3);
  for (int i = 0; i < 18; ++i) program.data(w)[i] = static_cast<float>(i % 5 - 2);
  const std::vector<float> in(program.data(x), program.data(x) + 20), weight(program.data(w), program.data(w) + 18);
  program.run(Phase::forward);
  for (size_t r = 0; r < 4; ++r)
    for (size_t o = 0; o < 2; ++o) {
      float sum = 0;
      for (size_t k = 0; k < 3; ++k) sum += in[r * 5 + 1 + k] * weight[(2 + o) * 3 + k];
      CHECK(program.data(y)[r * 2 + o] == sum);
      if (o == 1) CHECK(program.data(z)[r] == sum);
    }

  g.add("gelu", {}, {columns}, "a");
  CHECK_THROWS_WITH_AS(Program(compile(g, {g.find("a")}, {}), layout), doctest::Contains("takes no strides"), Error);
}

TEST_CASE("autodiff: a tensor used twice, unwanted gradients, ops without one") {
  TensorId x = kNone;
  Graph g = input_graph({1, 2, 3}, x);
  const TensorId w = g.add_tensor("w", DType::fp32, {3, 3}, Role::parameter);
  const TensorId y = g.add("linear", {}, {x, w}, "y")[0];
  const TensorId sum = g.add("add", {}, {y, y}, "sum")[0];
  g.add("gelu", {}, {y}, "unused");
  const TensorId seed = g.add_tensor("seed", DType::fp32, {1, 2, 3}, Role::input);
  const Gradients gradients = differentiate(g, {{sum, seed}});
  CHECK(gradients.of(x) == kNone);
  CHECK(g.tensor(gradients.of(w)).role == Role::accumulator);
  CHECK(g.tensor(gradients.of(w)).name == "w.grad");
  CHECK(g.tensor(seed).name == "seed");
  // The forward pass is linear, add, gelu; the backward adds seed + seed and the weight's product, but nothing for x or
  // for what leads to no loss.
  CHECK(count_ops(g) ==
        std::map<std::string, int>{{"linear", 1}, {"add", 2}, {"gelu", 1}, {"linear_backward_weight", 1}});
  CHECK(g.nodes.back().phase == Phase::backward);

  Graph h = input_graph({1, 2, 3}, x);
  const TensorId v = h.add_tensor("v", DType::fp32, {3, 3}, Role::parameter);
  const TensorId last = h.add("select_last", {}, {h.add("linear", {}, {x, v})[0]}, "last")[0];
  const TensorId given = h.add_tensor("seed", DType::fp32, {1, 1, 3}, Role::input);
  CHECK_THROWS_WITH_AS(differentiate(h, {{last, given}}), doctest::Contains("select_last"), Error);
}

TEST_CASE("autodiff: the gradient of a tied head is one tensor with two writers") {
  for (const bool tied : {true, false}) {
    ModelConfig config = small_config("modern");
    config.tied_head = tied;
    const Graph g = build_training_graph(config, 2, 8, {}).graph;
    std::set<TensorId> owners;
    int writers = 0, later = 0;
    for (const Node& node : g.nodes)
      for (TensorId id : node.outputs)
        if (id != kNone && g.tensor(id).role == Role::accumulator &&
            g.tensor(id).name == "token_embedding.weight.grad") {
          ++writers;
          later += g.tensor(id).alias != kNone;
          owners.insert(g.storage(id));
        }
    CHECK(owners.size() == 1);
    CHECK(writers == (tied ? 2 : 1));
    CHECK(later == (tied ? 1 : 0));
  }
}

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

TEST_CASE("the number of threads changes no bit") {
  for (const char* architecture : {"gpt2", "modern"}) {
    ModelConfig config = small_config(architecture);
    config.vocabulary = 700, config.hidden = 300;  // enough for several blocks of work
    const Snapshot one = train(config, {.threads = 1});
    for (int threads : {2, 3, 4}) check_equal(one, train(config, {.threads = threads}));
  }
}

TEST_CASE("two micro-steps of half a batch give the gradients of the whole") {
  for (const char* architecture : {"gpt2", "modern"}) {
    const ModelConfig config = small_config(architecture);
    Trainer whole(config, {}), halves(config, {.batch = kBatch / 2});
    whole.run(0, Phase::optimizer);
    halves.run(0, Phase::backward, 0);
    halves.run(0, Phase::optimizer, 1);
    Snapshot a = whole.snapshot(), b = halves.snapshot();
    for (Snapshot* s : {&a, &b})
      std::erase_if(*s, [](auto& entry) { return entry.first != "norm" && !entry.first.ends_with(".grad"); });
    check_close(a, b, kNoise);
  }
}

TEST_CASE("program: two micro-batches of one compiled graph in flight, each at a base of its own") {
  const ModelConfig config = small_config("modern");
  Trainer trainer(config, {.batch = kBatch / 2});
  const auto compiled = std::make_shared<const Compiled>(trainer.program->compiled());
  const size_t base = placed_bytes(trainer.layout.bytes());
  Program first(compiled, trainer.layout, base), second(compiled, trainer.layout, base + compiled->plan.bytes);
  CHECK(second.arena_bytes() == base + 2 * compiled->plan.bytes);
  const Arena arena(second.arena_bytes(), trainer.device);
  std::memcpy(arena.data(), trainer.arena->data(), base);
  for (Program* program : {&first, &second}) program->bind(arena);
  trainer.prepare(first, 0, 0);
  trainer.prepare(second, 0, 1);
  for (const Phase phase : {Phase::forward, Phase::backward})
    for (Program* program : {&first, &second}) program->run(phase);
  for (const int64_t micro_step : {0, 1}) trainer.run(0, Phase::backward, micro_step);
  const Graph& g = compiled->graph;
  int gradients = 0;
  for (size_t i = 0; i < g.tensors.size(); ++i) {
    const auto id = static_cast<TensorId>(i);
    // The loss belongs to the forward pass, where the second micro-batch adds to the first.
    if (g.tensors[i].role != Role::accumulator || g.tensors[i].alias != kNone) continue;
    CHECK_MESSAGE(words_of(second, id) == words_of(*trainer.program, id), g.tensors[i].name);
    ++gradients;
  }
  CHECK(gradients == static_cast<int>(parameter_table(config).size()) + 1);
}

TEST_CASE("program: a name has one shape and one type in an arena") {
  TensorId x = kNone;
  Graph first = input_graph({1}, x);
  first.add_tensor("w", DType::fp32, {3, 4}, Role::parameter);
  PersistentLayout layout;
  layout.add(first);
  layout.add(first);
  for (const auto& [dtype, shape] : {std::pair{DType::fp32, Shape{4, 3}}, std::pair{DType::bf16, Shape{3, 4}}}) {
    Graph other = input_graph({1}, x);
    other.add_tensor("w", dtype, shape, Role::parameter);
    CHECK_THROWS_WITH_AS(layout.add(other), doctest::Contains("w is laid out as fp32 (3, 4)"), Error);
  }
  CHECK(layout.bytes() == 256);
}

TEST_CASE("program: one arena for training and evaluation") {
  const ModelConfig config = small_config("modern");
  Trainer trainer(config, {.compile = {.fuse = false}});
  EvaluationGraph e = build_evaluation_graph(config, kBatch, kTokens);
  const size_t bytes = trainer.layout.bytes();
  trainer.layout.add(e.graph);
  CHECK(trainer.layout.bytes() == bytes);  // the same parameters by name, so nothing new
  CHECK(trainer.layout.has("final_norm.weight"));
  CHECK_FALSE(trainer.layout.has("tokens"));
  CHECK(trainer.layout.offset("final_norm.weight") % 256 == 0);
  CHECK_THROWS_WITH_AS(trainer.layout.offset("nothing"), doctest::Contains("nothing"), Error);

  Program evaluation(compile(e.graph, e.results(), {.threads = 2}, {.fuse = false}), trainer.layout);
  evaluation.bind(*trainer.arena);
  trainer.run(0, Phase::forward);
  const Words losses = words_of(*trainer.program, trainer.graph.losses);
  const Words tokens = words_of(*trainer.program, trainer.graph.tokens),
              targets = words_of(*trainer.program, trainer.graph.targets);
  std::memcpy(evaluation.data<void>(e.tokens), tokens.data(), tokens.size() * 4);
  std::memcpy(evaluation.data<void>(e.targets), targets.data(), targets.size() * 4);
  evaluation.run(Phase::forward);
  CHECK(words_of(evaluation, e.losses) == losses);

  const Arena small(1, trainer.device);
  CHECK(small.bytes() >= 1);
  CHECK(std::all_of(small.data(), small.data() + small.bytes(), [](std::byte b) { return b == std::byte{0}; }));
  const Graph large = build_training_graph(config, 64, kTokens, {}).graph;
  Program too_large(compile(large, {}, {}), trainer.layout);
  CHECK_THROWS_WITH_AS(too_large.bind(small), doctest::Contains("needs"), Error);
}
