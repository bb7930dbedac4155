// Planning: the memory of a plan is what a run allocates; its time is that of its nodes and of its schedule; what does not
// fit is refused with numbers; commands run as they are printed; tables of measurements are predicted.
#include <doctest/doctest.h>

#include <cmath>
#include <sstream>

#include "llm/base/atomic_file.h"
#include "llm/base/json.h"
#include "llm/cli/plan_validation.h"
#include "llm/device/communicator_threads.h"
#include "llm/device/cpu.h"
#include "llm/plan/search.h"
#include "llm/train/rules.h"
#include "llm/train/trainer.h"
#include "test/command_line.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;

namespace {

ModelConfig model_of(const std::string& architecture) {
  ModelConfig c;
  set_architecture(c, find_value<Architecture>(architecture).value());
  c.vocabulary = 257, c.context = 16, c.layers = 4, c.heads = c.kv_heads = 4, c.channels = 32, c.head_size = 8;
  c.hidden = 64;
  c.tied_head = architecture == "gpt2";
  return c;
}

// A machine with round numbers.
Hardware machine() {
  Hardware h;
  h.name = "round", h.cuda = false, h.memory_gib = 1, h.peak_tflops = 1, h.bandwidth_gbs = 100;
  h.product_efficiency = 0.5, h.ranks_a_node = 4, h.inside_gbs = 10, h.between_gbs = 1;
  return h;
}

Job job_of(const std::string& architecture, int64_t step_samples, OptimizerKind optimizer = OptimizerKind::adamw) {
  Job job;
  job.model = model_of(architecture), job.context = job.model.context, job.step_samples = step_samples;
  job.recipe.optimizer = optimizer;
  return job;
}

Layout layout_of(Mesh mesh, int zero, int64_t batch, int64_t grad_accum) {
  Layout l;
  l.mesh = mesh, l.zero = zero, l.batch = batch, l.grad_accum = grad_accum;
  return l;
}

// What the first rank of each stage allocates in a run, by stage.
std::vector<size_t> allocated(const Job& job, const Layout& layout, const std::string& run, size_t budget) {
  std::vector<size_t> bytes(static_cast<size_t>(layout.mesh.stage));
  const auto prepare = [&](Communicator* ranks) {
    ThreadTeam team(1);
    CpuDevice device(team);
    TrainOptions o = recipe_of(job, layout);
    o.data = {run}, o.out = run, o.steps = 1, o.sample_every = 0, o.memory_budget = budget;
    apply_rules(o, job.model, 1000);
    const Trainer trainer(job.model, o, open_dataset(run + "/tokens", "", team), device, ranks);
    const int rank = ranks ? ranks->rank() : 0;
    const Mesh::Place place = layout.mesh.place_of(rank);
    if (place.data == 0 && layout.mesh.token_group(rank).rank == 0)
      bytes[static_cast<size_t>(place.stage)] = trainer.arena_bytes();
  };
  if (layout.mesh.ranks() == 1)
    prepare(nullptr);
  else
    ThreadRanks(layout.mesh.ranks()).run([&](Communicator& ranks) { prepare(&ranks); });
  return bytes;
}

}  // namespace

TEST_CASE("plan: the memory of a layout is what its run allocates, to the byte") {
  const Folder folder;
  ThreadTeam team(1);
  write_file_atomically(folder / "text.txt", pattern_text(2000));
  open_dataset(folder / "text.txt", folder / "tokens", team);
  const auto check = [&](const Job& job, const Layout& layout, size_t budget = 0) {
    CAPTURE(layout.mesh.text());
    CAPTURE(layout.zero);
    const std::vector<size_t> bytes = allocated(job, layout, folder.path, budget);
    for (int stage = 0; stage < layout.mesh.stage; ++stage)
      CHECK(memory_of(job, layout, stage, budget).device() == bytes[static_cast<size_t>(stage)]);
  };
  const Job modern = job_of("modern", 8), gpt2 = job_of("gpt2", 8), muon = job_of("modern", 8, OptimizerKind::muon);
  check(modern, layout_of({}, 1, 4, 2));
  check(modern, layout_of({}, 1, 4, 2), memory_of(modern, layout_of({}, 1, 4, 2), 0).device() * 9 / 10);
  for (const int zero : {0, 1, 2, 3}) check(muon, layout_of({.data = 2}, zero, 4, 1));
  check(muon, layout_of({.data = 2, .tensor = 2}, 1, 2, 2));
  Layout pipeline = layout_of({.stage = 2}, 1, 2, 4);
  check(gpt2, pipeline);
  pipeline.mesh.tensor = 2, pipeline.pipeline = PipelineKind::zero_bubble;
  check(modern, pipeline);
  pipeline.pipeline = PipelineKind::interleaved, pipeline.chunks = 2;
  check(muon, pipeline);
  check(modern, layout_of({.data = 2, .context = 2}, 1, 2, 2));
  Layout ring = layout_of({.context = 4}, 1, 2, 2);
  ring.exchange = ContextExchange::ring;
  check(modern, ring);
  check(modern, ring, memory_of(modern, ring, 0).device() * 39 / 40);
  Job experts = job_of("modern", 8);
  experts.model.experts = 4, experts.model.experts_per_token = 2, experts.model.hidden = 32;
  complete_routers(experts.recipe, experts.model);
  check(experts, layout_of({.data = 2, .expert = 2}, 2, 2, 2));
  check(experts, layout_of({.stage = 2, .tensor = 2, .expert = 2}, 1, 4, 2));
}

TEST_CASE("plan: a step takes as long as its nodes, and a pipeline as its schedule") {
  const Job job = job_of("modern", 8);
  Hardware h = machine();
  const StepTime one = StepTimer(job, h).time(layout_of({}, 1, 8, 1));
  CHECK(one.bubble == 0);
  CHECK(one.exchange == 0);
  // The nodes of the whole graph, added up.
  TrainOptions recipe = recipe_of(job, layout_of({}, 1, 8, 1));
  TrainingGraph t = build_training_graph(job.model, 8, 16, optimizer_of(recipe), DType::fp32, recipe_of(recipe, -1));
  const Compiled compiled = compile(std::move(t.graph), t.results(), job.target);
  double sum = 0;
  for (const Node& node : compiled.graph.nodes) sum += time_of(compiled.graph, node, h).device;
  CHECK(one.total() / sum == doctest::Approx(1).epsilon(0.01));

  // Twice the rate, half the time; a launch of the host's that takes longer than the kernels is what counts.
  Hardware fast = h;
  fast.peak_tflops *= 2, fast.bandwidth_gbs *= 2;
  CHECK(StepTimer(job, fast).time(layout_of({}, 1, 8, 1)).total() / one.total() == doctest::Approx(0.5).epsilon(1e-3));
  Hardware slow_host = h;
  slow_host.launch_us = 1e5;
  CHECK(StepTimer(job, slow_host).time(layout_of({}, 1, 8, 1)).total() > 1);

  // More micro-batches hide more of the bubble; with equal stages it is what the formula says.
  Job equal = job;
  equal.model.vocabulary = 1;  // a head that costs nothing
  Layout pipeline = layout_of({.stage = 4}, 1, 1, 8);
  StepTimer timer(equal, h);
  const StepTime time = timer.time(pipeline);
  const double share = time.bubble / (time.bubble + time.compute);
  CHECK(share == doctest::Approx(bubble_by_formula({pipeline.pipeline, 4, 8, 1})).epsilon(0.25));
  pipeline.grad_accum = 32;
  const StepTime longer = timer.time(pipeline);
  CHECK(longer.bubble / longer.total() < time.bubble / time.total() / 2);
}

TEST_CASE("plan: exchanges between nodes go through the network, and pay for each rank") {
  Hardware h = machine();
  h.inside_latency_us = 1e5, h.between_latency_us = 1e6;
  const RankGroup inside{.rank = 0, .ranks = 4}, between{.rank = 0, .ranks = 2, .first = 0, .stride = 4},
      both{.rank = 0, .ranks = 8};
  CHECK(exchange_time(inside, 1e9, h) == doctest::Approx(0.1 + 0.4));
  CHECK(exchange_time(between, 1e9, h) == doctest::Approx(1 + 2));
  CHECK(exchange_time(both, 1e9, h) == doctest::Approx(0.25 + 8));  // four ranks of a node share its network
  CHECK(exchange_time(inside, 1e9, h, false, 1) == doctest::Approx(0.1 + 0.1));  // to a neighbour alone
  CHECK(exchange_time({}, 1e9, h) == 0);
}

TEST_CASE("plan: what does not fit is not chosen, and says what it needs") {
  Job job = job_of("modern", 64);
  Hardware h = machine();
  const Plans plans = search(job, h, 4, Objective::time, 3, true);
  REQUIRE(plans.best.size() == 3);
  CHECK(plans.best[0].time.total() <= plans.best[1].time.total());
  CHECK(!plans.neighbours.empty());
  for (const Plan& plan : plans.neighbours)
    CHECK((!plan.rejection.empty() || plan.time.total() >= plans.best[0].time.total()));
  const size_t fastest = plans.best[0].memory.device();
  h.memory_gib = static_cast<double>(fastest - 1) * 0x1p-30;
  const Plans tight = search(job, h, 4, Objective::time, 1, false);
  CHECK(tight.best[0].memory.device() < fastest);
  CHECK(tight.best[0].time.total() >= plans.best[0].time.total());
  const Plans least = search(job, machine(), 4, Objective::memory, 1, false);
  CHECK(least.best[0].memory.device() <= tight.best[0].memory.device());
  h.memory_gib = 1e-6;
  CHECK(has(error_of([&] { search(job, h, 4, Objective::time, 1, false); }), "needs "));
  job.step_samples = 7;
  CHECK(has(error_of([&] { search(job, machine(), 5, Objective::time, 1, false); }), "do not divide a step of 7"));
}

// Korthikanti et al. 2022 (arXiv 2205.05198), table 2, in bytes of s b h a layer, without what this program does not keep:
// the masks of dropout (2), and attention's scores (5 a s / h). Where tensor-parallel ranks share the tokens it keeps what it
// has gathered in front of two of the products (4 instead of 4 / t) and need not gather it again.
TEST_CASE("plan: activations of a layer are those of the published formulas") {
  Job job;
  set_architecture(job.model, Architecture::gpt2);
  job.model.channels = 1024, job.model.heads = job.model.kv_heads = 16, job.model.head_size = 64;
  job.model.hidden = 4096, job.model.vocabulary = 512, job.model.context = job.context = 1024;
  job.target = {.threads = 1, .cuda = true, .precision = Precision::bf16};
  job.recipe.optimizer = OptimizerKind::adamw;
  const auto a_layer = [&](Layout layout) {
    double bytes[2];
    for (const int more : {0, 1}) {
      job.model.layers = 4 + 4 * more;
      bytes[more] = static_cast<double>(memory_of(job, layout, 0).activations);
    }
    return (bytes[1] - bytes[0]) / 4 / static_cast<double>(job.context * layout.batch * job.model.channels);
  };
  Layout layout = layout_of({}, 1, 4, 1);
  CHECK(a_layer(layout) == doctest::Approx(32).epsilon(0.01));
  layout.recompute = Recompute::block;
  CHECK(a_layer(layout) == doctest::Approx(2).epsilon(0.01));
  layout.recompute = Recompute::none;
  for (const int tensor : {2, 4}) {
    layout.mesh.tensor = tensor;
    CHECK(a_layer(layout) == doctest::Approx(32.0 / tensor + 4 - 4.0 / tensor).epsilon(0.01));
  }
}

// A few rows of the tables in the file; it names their sources.
TEST_CASE("plan: published step times are predicted") {
  const Validation v = validate("test/data/layouts.csv", "", true);
  REQUIRE(v.rows.size() == 11);
  CHECK(v.mean_error < 0.08);
  CHECK(v.rank_correlation > 0.95);
  CHECK(v.regret < 0.03);
  CHECK(v.rows.back().failed);
  CHECK(!v.rows.back().fits);
  const Folder folder;
  const std::string table = read_file("test/data/layouts.csv"), path = folder / "table.csv";
  const auto error_with = [&](const std::string& from, const std::string& to) {
    std::string changed = table;
    changed.replace(changed.find(from), from.size(), to);
    write_file_atomically(path, changed);
    return error_of([&] { validate(path, "", false); });
  };
  CHECK(has(error_with("grad_accum", "grad"), "no column grad_accum"));
  CHECK(has(error_with("88.523325", "fast"), "line 2: step_ms is \"fast\""));
  CHECK(has(error_with("a100-80,4,8", "z100,4,8"), "neither a file nor one of"));
  CHECK(has(error_of([&] { validate(folder / "none.csv", "", false); }), "cannot read"));
}

TEST_CASE("plan: the command of a plan runs as it is printed, and says at its end what was predicted") {
  if (binary().empty()) return;
  const Folder folder;
  write_file_atomically(folder / "text.txt", pattern_text(3000));
  const Json plans = parse_json(run_well(folder, {"plan", "nano", "--vocabulary", "257", "--gpus", "4", "--hardware",
                                                  "cpu", "--global-batch-tokens", "2048", "--format", "json", "--why"}),
                                "plan");
  REQUIRE(plans["plans"].size() == 5);
  CHECK(plans["rejected"].size() > 0);
  for (const Json& plan : plans["plans"]) {
    Arguments arguments;
    std::istringstream words(plan.at("command").string());
    for (std::string word; words >> word;) arguments.push_back(word == "tokens/" ? folder / "text.txt" : word);
    CAPTURE(plan.at("command").string());
    const std::string run_path = folder / concat("run", &plan - plans["plans"].begin());
    arguments.erase(arguments.begin());  // the program's name
    arguments.insert(arguments.end(), {"--out", run_path, "--steps", "2", "--eval-every", "0"});
    const std::string out = run_well(folder, arguments);
    const auto bytes = plan.at("memory_bytes").at("total").get<int64_t>();
    CHECK(has(out, concat("arena: ", bytes, " bytes planned, ", bytes, " bytes allocated")));
    CHECK(has(out, "ms predicted"));
  }
  Arguments automatic = {
      "train",   "nano", "--plan",       "auto", "--ranks",        "2", "--data", folder / "text.txt",
      "--steps", "2",    "--eval-every", "0",    "--sample-every", "0", "--out",  folder / "automatic"};
  run_well(folder, automatic);
  automatic.back() = folder / "another";
  automatic.insert(automatic.end(), {"--batch", "1"});
  check_error(folder, automatic, 2, "--plan auto chooses --batch");
  check_error(folder,
              {"train", "--resume", "--plan", "auto", "--ranks", "2", "--data", folder / "text.txt", "--steps", "4",
               "--out", folder / "automatic"},
              2, "is for new runs");
  check_error(folder, {"plan", "nano", "--gpus", "2"}, 2, "--hardware is missing");
  check_error(folder, {"plan", "nano", "--hardware", "cpu"}, 2, "--gpus is missing");
  check_error(folder, {"plan", "nano", "--gpus", "2", "--hardware", "abacus"}, 2, "neither a file nor one of");
  check_error(folder, {"plan", "llama-3.1-70B", "--gpus", "1", "--hardware", "rtx4090"}, 2, "needs ");
  check_error(folder, {"plan", "nano", "--gpus", "2", "--hardware", "cpu", "--tokens", "ten"}, 2, "no count of tokens");
}
