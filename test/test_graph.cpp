// Graphs, autodiff and the program: what each must do, and what none of them may change.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "llm/device/cpu.h"
#include "llm/graph/autodiff.h"
#include "llm/graph/program.h"
#include "llm/model/gpt.h"
#include "test/graph_checks.h"

using namespace llm;
using namespace llm::reference;

namespace {

void check_close(const Snapshot& a, const Snapshot& b, double bound) {
  REQUIRE(a.size() == b.size());
  for (auto& [name, words] : a) {
    INFO(name);
    CHECK(reference::difference(words, b.at(name)) <= bound);
  }
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
  const TensorId last =
      h.add("sample", {}, {h.add("linear", {}, {x, v})[0], h.add_tensor("options", DType::int32, {2, 12}, Role::input)},
            "last")[0];
  const TensorId given = h.add_tensor("seed", DType::fp32, {2, 4}, Role::input);
  CHECK_THROWS_WITH_AS(differentiate(h, {{last, given}}), doctest::Contains("sample"), Error);
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
