// Every op of the table, by one loop over its examples: the kernel against the double-precision reference, its gradient
// against finite differences of the reference, threads, accumulation, in-place use, memory and cost. The loop takes
// everything that it needs from the table, so a new op is tested by being in the table. Chains of ops that the fusion
// pass joins are tested the same way.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <set>

#include "test/op_subjects.h"

namespace {

using namespace llm;
using namespace llm::reference;

// Bounds relative to the largest value of the tensor. The largest errors measured (AVX-512, g++ 12 -O3; the environment
// variable OP_ERRORS prints them): outputs 2.3e-7, gradients 9.5e-7 (GELU, where 1 - sigmoid cancels), accumulation
// 5.6e-8; with AVX2 outputs 1.01e-6 (a head of 65,536 columns). The bounds are about four times the first of these.
constexpr double kOutputBound = 1.2e-6, kGradientBound = 4e-6, kAccumulationBound = 2.5e-7;

struct Worst {
  double error = 0;
  std::string where;
  void add(double e, const std::string& name) {
    if (e > error) error = e, where = name;
  }
};
Worst worst_output, worst_gradient, worst_accumulation;

// d(sum of seeds * outputs) / d(input) by central differences of the reference.
std::vector<double> finite_differences(const Subject& subject, const Built& b, TensorId input) {
  std::vector<Array> values = evaluate(subject, b, {});
  std::vector<std::pair<TensorId, std::vector<double>>> seeds;
  for (auto& [output, seed] : b.seeds) seeds.emplace_back(output, seed_of(b, output));
  const auto objective = [&] {
    evaluate(b.forward, values, {});
    double sum = 0;
    for (auto& [output, seed] : seeds)
      for (size_t i = 0; i < seed.size(); ++i) sum += seed[i] * values[static_cast<size_t>(output)].values[i];
    return sum;
  };
  // The error by rounding is about 1e-16 * |objective| / step, that by the third derivative step^2: both stay below
  // 1e-9.
  constexpr double kStep = 1e-5;
  std::vector<double> gradient(values[static_cast<size_t>(input)].values.size());
  for (size_t i = 0; i < gradient.size(); ++i) {
    double& x = values[static_cast<size_t>(input)].values[i];
    const double original = x;
    x = original + kStep;
    const double above = objective();
    x = original - kStep;
    const double below = objective();
    x = original;
    gradient[i] = (above - below) / (2 * kStep);
  }
  return gradient;
}

void check_cost(const Graph& g, const Node& node) {
  INFO(std::string(node.op->name));
  REQUIRE(static_cast<bool>(node.op->cost));
  const Cost cost = node.op->cost(g, node), all = streaming_cost(g, node, 0);
  CHECK(std::isfinite(cost.flops));
  CHECK(cost.flops >= 0);
  CHECK(cost.bytes_read >= 0);
  CHECK(cost.bytes_read <= all.bytes_read);
  CHECK(cost.bytes_written > 0);
  CHECK(cost.bytes_written <= all.bytes_written);
  double products = 0;
  for (const Product& p : products_of(g, node)) products += 2.0 * static_cast<double>(p.m * p.n * p.k * p.calls);
  const std::string_view name = node.op->name;
  CHECK((products > 0) == (name.starts_with("linear") || name == "head_loss"));
  // The last block of a head counts as a full one.
  if (products > 0) CHECK(products >= cost.flops), CHECK(products <= 1.1 * cost.flops);
  if (!name.starts_with("linear")) return;
  const Shape rows = g.shape(node.inputs[0]);  // (m, k), times the (n, k) of the weight or of its gradient
  const Shape weight = g.shape(name == "linear_backward_weight" ? node.outputs[0] : node.inputs[1]);
  CHECK(cost.flops == 2.0 * static_cast<double>(rows.rows() * weight.elements()));
}

void check_same(const Graph& g, const Sandbox& a, const Sandbox& b) {
  for (size_t i = 0; i < g.tensors.size(); ++i) {
    CAPTURE(g.tensors[i].name);
    if (g.tensors[i].role != Role::workspace) CHECK(a.same_bits(static_cast<TensorId>(i), b));
  }
}

// Runs each node again by itself, in each way in which its op may work in place.
void check_in_place(const Built& b, const Sandbox& done, const Sandbox& start, ThreadTeam& team) {
  const Graph& g = b.whole;
  for (size_t n = 0; n < g.nodes.size(); ++n) {
    const Node& node = g.nodes[n];
    for (const InPlace& pair : node.op->in_place) {
      const TensorId out = node.output(static_cast<size_t>(pair.output)),
                     in = node.input(static_cast<size_t>(pair.input));
      if (out == kNone || in == kNone || g.tensor(out).alias != kNone) continue;
      REQUIRE(g.tensor(out).bytes() == g.tensor(in).bytes());
      Sandbox sandbox(g, out, in);
      for (TensorId id : node.inputs) {
        if (id == kNone) continue;
        const bool is_input = std::none_of(g.nodes.begin(), g.nodes.end(), [&](const Node& w) {
          return std::find(w.outputs.begin(), w.outputs.end(), id) != w.outputs.end();
        });
        sandbox.copy(id, is_input ? start : done);
      }
      sandbox.run_node(n, team, {});
      INFO(std::string(node.op->name));
      CAPTURE(pair.output);
      CAPTURE(pair.input);
      for (TensorId id : node.outputs)
        if (id != kNone) CHECK(sandbox.same_bits(id, done));
      CHECK(sandbox.damage() == "");
    }
  }
}

void check_outputs(const Subject& subject, ThreadTeam& one, ThreadTeam& three, const StepState& step) {
  const Built b = build(subject), b3 = build(subject, {.threads = 3});
  const std::vector<Array> expected = evaluate(subject, b, step);
  Sandbox sandbox(b.whole), sandbox3(b3.whole);
  fill(sandbox, subject, b);
  fill(sandbox3, subject, b3);
  sandbox.run(one, step);
  sandbox3.run(three, step);
  CHECK(sandbox.damage() == "");
  CHECK(sandbox3.damage() == "");
  check_same(b.whole, sandbox, sandbox3);
  // Fusion may leave out tensors that are not results.
  for (const Node& node : b.whole.nodes)
    for (TensorId id : node.outputs) {
      if (id == kNone || static_cast<size_t>(id) >= expected.size()) continue;
      const std::string name = subject.name + ": " + b.whole.tensor(id).name;
      const double error = relative_error(sandbox.values(id), expected[static_cast<size_t>(id)].values);
      INFO(name);
      // An error of a whole last bit, since AdamW rounds parameters up or down by chance; of 8 bits of half the last
      // bit.
      switch (b.whole.dtype(id)) {
        case DType::bf16: CHECK(error <= 0x1p-7); break;
        case DType::e4m3: CHECK(error <= 0x1p-4); break;
        case DType::e5m2: CHECK(error <= 0x1p-3); break;
        default: CHECK(error <= kOutputBound); worst_output.add(error, name);
      }
    }
}

void check_gradients(const Subject& subject, ThreadTeam& one, ThreadTeam& three, int only) {
  const Built b = build(subject, {.only = only}), b3 = build(subject, {.threads = 3, .only = only});
  if (b.seeds.empty()) return;
  CHECK(!b.gradients.empty());
  Sandbox start(b.whole), sandbox(b.whole), sandbox3(b3.whole);
  for (Sandbox* s : {&start, &sandbox}) fill(*s, subject, b);
  fill(sandbox3, subject, b3);
  sandbox.run(one, {});
  sandbox3.run(three, {});
  CHECK(sandbox.damage() == "");
  check_same(b.whole, sandbox, sandbox3);
  check_in_place(b, sandbox, start, three);

  std::vector<std::pair<TensorId, std::vector<double>>> of_parameters;
  for (auto& [input, gradient] : b.gradients) {
    const std::string name = subject.name + ": " + b.whole.tensor(gradient).name + " of " + b.whole.tensor(input).name;
    INFO(name);
    const double error = relative_error(sandbox.values(gradient), finite_differences(subject, b, input));
    CHECK(error <= kGradientBound);
    worst_gradient.add(error, name);
    if (b.whole.tensor(input).role == Role::parameter) of_parameters.emplace_back(gradient, sandbox.values(gradient));
  }
  // A second micro-step of the same batch doubles the gradients of parameters.
  sandbox.run(one, {.micro_step = 1});
  sandbox3.run(three, {.micro_step = 1});
  check_same(b.whole, sandbox, sandbox3);
  for (auto& [gradient, once] : of_parameters) {
    for (double& v : once) v *= 2;
    const double error = relative_error(sandbox.values(gradient), once);
    INFO(subject.name);
    CHECK(error <= kAccumulationBound);
    worst_accumulation.add(error, subject.name);
  }
}

void check(const Subject& subject, std::set<std::string>& executed) {
  CAPTURE(subject.name);
  ThreadTeam one(1), three(3);
  check_outputs(subject, one, three, {});
  if (!subject.fused) {
    // A later step, some tokens into a text: it makes no difference to most ops.
    check_outputs(subject, one, three, {.learning_rate = 0.01f, .step = 7});
  }
  const Built b = build(subject);
  for (const Node& node : b.whole.nodes) {
    check_cost(b.whole, node);
    executed.insert(node.op->name);
  }
  check_gradients(subject, one, three, -1);
  const auto seeds = static_cast<int>(b.seeds.size());
  for (int only = 0; seeds > 1 && only < seeds; ++only) check_gradients(subject, one, three, only);
  if (b.seeds.empty()) {
    const Built b3 = build(subject, {.threads = 3});  // its workspaces are for so many
    Sandbox start(b3.whole), done(b3.whole);
    for (Sandbox* s : {&start, &done}) fill(*s, subject, b3);
    done.run(three, {});
    check_in_place(b3, done, start, three);
  }
}

}  // namespace

TEST_CASE("ops: every row of the table") {
  std::set<std::string> executed;
  for (const Op& op : op_table()) {
    INFO(std::string(op.name));
    CHECK(std::string(op.summary) != "");
    REQUIRE(static_cast<bool>(op.infer));
    REQUIRE(static_cast<bool>(op.cpu));
    if (!op.examples) continue;
    REQUIRE_MESSAGE(references().contains(op.name), "an op with examples needs a reference loop: ", op.name);
    const std::vector<Example> examples = op.examples();
    for (size_t i = 0; i < examples.size(); ++i) check(subject_of(op, examples[i], i), executed);
    CHECK(op_named(op.name) == &op);
  }
  for (const Subject& subject : fused_subjects()) check(subject, executed);
  executed.insert(kOpsOfSeveralRanks.begin(), kOpsOfSeveralRanks.end());
  for (const Op& op : op_table())
    CHECK_MESSAGE(executed.contains(op.name), "no example runs the op ", op.name,
                  ", by itself or as another's backward");
  CHECK_THROWS_AS(op_named("no such op"), Error);
  if (std::getenv("OP_ERRORS"))
    std::cout << "largest errors: output " << worst_output.error << " (" << worst_output.where << "), gradient "
              << worst_gradient.error << " (" << worst_gradient.where << "), accumulation " << worst_accumulation.error
              << " (" << worst_accumulation.where << ")\n";
}

TEST_CASE("ops: a head whose logits take several blocks of rows") {
  // A block holds at most 128 MiB of logits, at this vocabulary 512 rows, so 514 rows are two blocks.
  constexpr int64_t kRows = 514, kVocabulary = (int64_t{128} << 20) / 4 / 512, kChannels = 3;
  const Subject subject{"blocks",
                        {{.shape = {1, kRows, kChannels}},
                         {.shape = {kVocabulary, kChannels}, .role = Role::parameter},
                         {.shape = {1, kRows}, .dtype = DType::int32, .low = -1, .high = kVocabulary},
                         {.shape = {1, kRows}, .low = 0, .high = 1}},
                        [](Graph& g, const std::vector<TensorId>& in) { g.add("head_loss", {}, in, "losses"); },
                        false,
                        true};
  ThreadTeam one(1), three(3);
  check_outputs(subject, one, three, {});
}

TEST_CASE("ops: AdamW leaves everything as it was when the norm is not finite") {
  const std::vector<Example> examples = op_named("adamw")->examples();
  const Subject subject = subject_of(*op_named("adamw"), examples.front(), 0);
  const Built b = build(subject);
  ThreadTeam team(2);
  for (double norm : {HUGE_VAL, std::nan("")}) {
    Sandbox before(b.whole), after(b.whole);
    for (Sandbox* s : {&before, &after}) {
      fill(*s, subject, b);
      s->fill(b.inputs[0], {norm});
    }
    after.run(team, {.learning_rate = 0.1f});
    for (size_t i : {1u, 3u, 4u}) CHECK(before.same_bits(b.inputs[i], after));
  }
}
