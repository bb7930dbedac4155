// Several ranks: the tree of sums, messages between threads, and that a run has the same bits on any number of ranks,
// whatever they divide among themselves, and goes on on any other number.
#include <doctest/doctest.h>

#include <atomic>
#include <bit>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "llm/base/atomic_file.h"
#include "llm/base/json.h"
#include "llm/base/tree_sum.h"
#include "llm/device/communicator_mpi.h"
#include "llm/device/communicator_threads.h"
#include "llm/device/cpu.h"
#include "llm/graph/op.h"
#include "llm/train/rules.h"
#include "llm/train/trainer.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;

namespace {

// Adds what is in `leaves` by the rule, level by level.
double sum_by_levels(std::vector<float> leaves) {
  while (leaves.size() > 1) {
    std::vector<float> level;
    for (size_t i = 0; i < leaves.size(); i += 2)
      level.push_back(i + 1 < leaves.size() ? leaves[i] + leaves[i + 1] : leaves[i]);
    leaves = level;
  }
  return static_cast<double>(leaves[0]);
}

struct Summed {
  std::vector<float> values;
  TreeStack tree;
  explicit Summed(int64_t leaves) : tree(leaves) {}
  void push(Subtree s, float value) {
    values.push_back(value);
    for (int additions = tree.push(s); additions > 0; --additions) {
      const float right = values.back();
      values.pop_back();
      values.back() += right;
    }
  }
};

// A model of which every kind of parameter is large enough to be cut among two or three ranks, or too small for eight.
ModelConfig divided_model() {
  ModelConfig c = small_model();
  c.channels = 128, c.head_size = 64, c.hidden = 192, c.layers = 3;
  return c;
}

struct Layout {
  int ranks;
  int zero = 0;
  int64_t bucket_bytes = 0;
  Offload offload = Offload::none;
};

struct Recipe {
  OptimizerKind optimizer = OptimizerKind::adamw;
  Precision dtype = Precision::fp32;
  int64_t grad_accum = 1, virtual_ranks = 8;
  double dropout = 0.1;
  bool tied = false;
  bool experts = false;
};

// Trains to step `steps`, from the checkpoint of step `from` where that is not 0, and leaves a checkpoint.
void train(const std::string& run, const std::string& text, const Recipe& recipe, const Layout& layout, int64_t steps,
           int64_t from = 0, const std::function<void(const Trainer&, const Communicator*)>& look = {},
           const std::function<void(Trainer&, int rank)>& run_with_samples = {}) {
  const auto train_rank = [&](Communicator* ranks) {
    ThreadTeam team(1);
    CpuDevice device(team);
    TrainOptions o;
    o.data = {text}, o.out = run, o.batch = 1, o.grad_accum = recipe.grad_accum, o.steps = 4, o.lr = 0.01;
    o.optimizer = recipe.optimizer, o.dtype = recipe.dtype, o.dropout = recipe.dropout;
    o.virtual_ranks = recipe.virtual_ranks, o.zero = layout.zero, o.bucket_bytes = layout.bucket_bytes;
    o.offload = layout.offload;
    o.eval_every = 2, o.save_every = 1, o.sample_every = run_with_samples ? 1 : 0, o.keep_last = 0, o.warmup = 0;
    ModelConfig model = divided_model();
    model.tied_head = recipe.tied;
    if (recipe.experts) model.experts = 4, model.experts_per_token = 2, model.hidden = 64, model.router_bias = true;
    apply_rules(o, model, 1000);
    o.steps = steps;
    Trainer trainer(model, o, open_dataset(run + "/tokens", "", team), device, ranks);
    trainer.allocate(ranks);
    from ? trainer.load(run + "/checkpoints/" + std::to_string(from)) : trainer.initialise();
    run_with_samples ? run_with_samples(trainer, ranks ? ranks->rank() : 0) : void(trainer.run());
    if (look) look(trainer, ranks);
  };
  {
    ThreadTeam team(1);
    open_dataset(text, run + "/tokens", team);
  }
  if (layout.ranks == 1) return train_rank(nullptr);
  ThreadRanks(layout.ranks).run([&](Communicator& ranks) { train_rank(&ranks); });
}

// Losses, norms and everything in the last checkpoint.
std::string result_of(const std::string& run, int64_t step) {
  std::string result;
  std::ifstream log(run + "/log.jsonl");
  for (std::string line; std::getline(log, line);) {
    const Json j = parse_json(line, run);
    for (const char* key : {"loss", "grad_norm", "val_loss"})
      if (j.contains(key)) result += j[key].dump() + " ";
  }
  for (const char* file : {"model.safetensors", "optimizer.state"})
    result += read_file(run + "/checkpoints/" + std::to_string(step) + "/" + file);
  return result;
}

}  // namespace

TEST_CASE("ranks: a sum has the same bits however its leaves are dealt out") {
  for (int64_t leaves = 1; leaves <= 23; ++leaves) {
    std::vector<float> values(static_cast<size_t>(leaves));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = 1.0f / static_cast<float>(3 + 7 * i) * (i % 3 ? 1e3f : 1e-3f);
    for (int ranks = 1; ranks <= leaves; ++ranks) {
      CAPTURE(leaves);
      CAPTURE(ranks);
      Summed all(leaves);
      int64_t next = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const VirtualRanks mine = virtual_ranks_of(rank, ranks, leaves);
        CHECK(mine.first == next);
        CHECK(mine.count() >= leaves / ranks);
        next = mine.last;
        Summed own(leaves);
        for (int64_t v = mine.first; v < mine.last; ++v) own.push({0, v}, values[static_cast<size_t>(v)]);
        CHECK(own.tree.sums() == sums_of(mine, leaves));
        // Equal shares of 2^k leaves are one sum each: what is sent is no more than without a tree.
        if (leaves % ranks == 0 && std::has_single_bit(static_cast<uint64_t>(leaves / ranks)))
          CHECK(own.values.size() == 1);
        for (size_t s = 0; s < own.values.size(); ++s) all.push(own.tree.sums()[s], own.values[s]);
      }
      CHECK(next == leaves);
      REQUIRE(all.values.size() == 1);
      CHECK(static_cast<double>(all.values[0]) == sum_by_levels(values));
    }
  }
}

TEST_CASE("ranks: messages between threads arrive in order, and a failure ends all waits") {
  constexpr int kRanks = 5;
  ThreadRanks(kRanks).run([](Communicator& ranks) {
    for (int round = 0; round < 50; ++round) {
      // Rank r sends 1 + r messages to each rank, itself included.
      const auto value = [&](int from, int to, int number) { return round * 1000 + from * 100 + to * 10 + number; };
      std::vector<int> sent, received(kRanks * kRanks, -1);
      sent.reserve(kRanks * kRanks);
      Exchange& exchange = ranks.prepare(1 + round % 3);
      for (int peer = 0; peer < kRanks; ++peer) {
        for (int n = 0; n <= ranks.rank(); ++n) {
          sent.push_back(value(ranks.rank(), peer, n));
          exchange.sends.push_back({peer, &sent.back(), sizeof(int)});
        }
        for (int n = 0; n <= peer; ++n)
          exchange.receives.push_back({peer, &received[static_cast<size_t>(peer * kRanks + n)], sizeof(int)});
      }
      ranks.start(1 + round % 3);
      ranks.wait(1 + round % 3);
      for (int peer = 0; peer < kRanks; ++peer)
        for (int n = 0; n <= peer; ++n)
          if (received[static_cast<size_t>(peer * kRanks + n)] != value(peer, ranks.rank(), n))
            fail("rank ", ranks.rank(), " got ", received[static_cast<size_t>(peer * kRanks + n)]);
    }
    const std::vector<std::string> texts = all_gather(ranks, std::string(static_cast<size_t>(ranks.rank()), 'x'));
    for (int r = 0; r < kRanks; ++r)
      if (texts[static_cast<size_t>(r)].size() != static_cast<size_t>(r)) fail("a text of another length");
    if (any(ranks, false) || !any(ranks, ranks.rank() == 3)) fail("any() is wrong");
  });
  std::atomic<int> lost{0};
  CHECK(error_of([&] {
          ThreadRanks(3).run([&](Communicator& ranks) {
            if (ranks.rank() == 1) fail("the disk is full");
            try {
              barrier(ranks);
            } catch (const LostRank& e) {
              if (std::string(e.what()).find("rank 1 has failed: the disk is full") != std::string::npos) ++lost;
              throw;
            }
          });
        }) == "the disk is full");
  CHECK(lost == 2);
  CHECK(error_of([&] {
          ThreadRanks(2).run([&](Communicator& ranks) {
            std::vector<char> bytes(8);
            all_gather(ranks, bytes.data(), ranks.rank() ? 2 : 4, bytes.data());
          });
        }).find("bytes where rank") != std::string::npos);
}

TEST_CASE("ranks: a run has the same bits on any number of ranks, whatever they divide") {
  const Recipe recipes[] = {
      {},
      {.optimizer = OptimizerKind::muon, .dtype = Precision::bf16, .tied = true},
      {.dtype = Precision::bf16, .grad_accum = 2, .virtual_ranks = 6, .dropout = 0, .tied = true},
      {.optimizer = OptimizerKind::muon, .experts = true},
  };
  const Layout layouts[] = {{2, 0},
                            {2, 3},
                            {3, 1},
                            {4, 2},
                            {5, 3},
                            {2, 1, 50000},
                            {4, 0, 1},
                            {1, 0, 0, Offload::optimizer},
                            {3, 2, 0, Offload::optimizer}};
  for (const Recipe& recipe : recipes) {
    CAPTURE(name_of(recipe.optimizer));
    CAPTURE(name_of(recipe.dtype));
    const Folder folder;
    write_file_atomically(folder / "text", pattern_text(300));
    train(folder / "alone", folder / "text", recipe, {1}, 2);
    const std::string alone = result_of(folder / "alone", 2);
    for (const Layout& layout : layouts) {
      if (kSanitized && layout.zero != 3) continue;
      CAPTURE(layout.ranks);
      CAPTURE(layout.zero);
      const std::string run =
          folder / concat("ranks", layout.ranks, layout.zero, layout.bucket_bytes, name_of(layout.offload));
      train(run, folder / "text", recipe, layout, 2);
      CHECK(result_of(run, 2) == alone);
    }
  }
}

TEST_CASE("ranks: a checkpoint goes on on any number of ranks") {
  const Folder folder;
  write_file_atomically(folder / "text", pattern_text(300));
  const Recipe recipe{.optimizer = OptimizerKind::muon, .dtype = Precision::bf16};
  train(folder / "alone", folder / "text", recipe, {1}, 4);
  const std::string run = folder / "moving";
  train(run, folder / "text", recipe, {4, 2}, 4);
  train(run, folder / "text", recipe, {3, 3}, 4, 1);  // from step 1
  train(run, folder / "text", recipe, {1}, 4, 2);
  train(run, folder / "text", recipe, {2, 1}, 4, 3);
  CHECK(result_of(run, 4) == result_of(folder / "alone", 4));
}

TEST_CASE("ranks: what is sent is what the formulas and the cost column say, and memory is divided") {
  const Folder folder;
  write_file_atomically(folder / "text", pattern_text(300));
  const double parameters = static_cast<double>(parameter_count(divided_model())) * 4;  // bytes
  std::map<int, size_t> memory;
  for (const int zero : {0, 1, 2, 3}) {
    constexpr int kRanks = 4;
    std::atomic<uint64_t> sent{0}, predicted{0}, arena{0};
    const Recipe recipe{.virtual_ranks = kRanks};
    train(folder / concat("zero", zero), folder / "text", recipe, {kRanks, zero}, 1, 0,
          [&](const Trainer& trainer, const Communicator* ranks) {
            double bytes = 0;
            const Graph& g = trainer.program().graph();
            for (const Node& node : g.nodes) bytes += node.op->cost(g, node).bytes_sent;
            predicted += static_cast<uint64_t>(bytes);
            sent += trainer.step_bytes_sent();
            arena += trainer.arena_bytes();
            CHECK(ranks);
          });
    CAPTURE(zero);
    CHECK(sent == predicted);
    // All ranks together: each byte of the gradients goes to its owner, and of the sums or the parameters to all.
    const double n = kRanks, formula = (zero == 3 ? 3 : 2) * (n - 1) / n * parameters * n;
    // (Of what lies outside the blocks, ZeRO 3 gathers nothing twice.)
    CHECK(static_cast<double>(sent) < formula * 1.01);
    CHECK(static_cast<double>(sent) > formula * (zero == 3 ? 0.8 : 0.99));
    memory[zero] = arena;
  }
  CHECK(memory[1] < memory[0]);
  CHECK(memory[2] < memory[1]);
  CHECK(memory[3] < memory[2]);
}

TEST_CASE("ranks: nearly all gradients are sent while the backward pass goes on, and few embeddings wait for its end") {
  for (const bool tied : {true, false}) {
    CAPTURE(tied);
    ModelConfig model = config_of(preset_named("gpt2-124M"));
    model.tied_head = tied;
    const DataParallel parallel{.ranks = 4, .virtual_ranks = 4};
    const Graph g = build_training_graph(model, 1, 64, {}, DType::fp32, {}, parallel).graph;
    size_t last_backward = 0;
    for (size_t n = 0; n < g.nodes.size(); ++n)
      if (g.nodes[n].phase == Phase::backward) last_backward = n;
    double early = 0, all = 0;
    for (size_t n = 0; n < g.nodes.size(); ++n)
      if (std::string_view(g.nodes[n].op->name) == "reduce_scatter_start") {
        const double sent = g.nodes[n].op->cost(g, g.nodes[n]).bytes_sent;
        all += sent, early += n < last_backward ? sent : 0;
      }
    CHECK(early >= 0.95 * all);
    CHECK(all == doctest::Approx(3.0 / 4 * 4 * static_cast<double>(parameter_count(model))).epsilon(0.01));
  }
}

TEST_CASE("ranks: optimizer state in the host's memory leaves the device's, and is fetched in parts") {
  ModelConfig model = config_of(preset_named("gpt2-124M"));
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::muon}) {
    const Target gpu{.cuda = true, .precision = Precision::bf16};
    const auto compiled = [&](bool offload) {
      const OptimizerOptions options{.kind = kind, .offload = offload};
      TrainingGraph t = build_training_graph(model, 1, 64, options, DType::bf16);
      return compile(std::move(t.graph), t.results(), gpu);
    };
    const Compiled kept = compiled(false), offloaded = compiled(true);
    // Two moments or a momentum, and a master, of 4 bytes each.
    size_t state = 0;
    for (const Parameter& p : parameter_table(model))
      state += static_cast<size_t>(p.shape.elements()) * (takes_muon(p, kind) ? 8 : 12);
    CHECK(offloaded.host_bytes >= state);
    CHECK(static_cast<double>(offloaded.host_bytes) < 1.001 * static_cast<double>(state));
    CHECK(kept.persistent_bytes - offloaded.persistent_bytes == offloaded.host_bytes);
    size_t largest = 0;
    for (const Node& node : offloaded.graph.nodes) {
      size_t bytes = 0;
      if (std::string_view(node.op->name) == "fetch_start")
        for (const TensorId id : node.outputs) bytes += offloaded.graph.tensor(id).bytes();
      largest = std::max(largest, bytes);
    }
    CHECK(largest > 0);
    CHECK(largest < size_t{64} << 20);
  }
}

TEST_CASE("ranks: samples of a model in pieces are those of the whole one") {
  const Folder folder;
  write_file_atomically(folder / "text", pattern_text(300));
  const auto samples = [&](const std::string& run, const Layout& layout) {
    std::vector<std::string> texts(static_cast<size_t>(layout.ranks));
    struct Listener : TrainingObserver {
      explicit Listener(std::string& heard) : text(heard) {}
      void on_sample(const Sample& s) override { text += s.prompt + "|" + s.continuation; }
      std::string& text;
    };
    train(folder / run, folder / "text", {}, layout, 2, 0, {}, [&](Trainer& trainer, int rank) {
      Listener listener(texts[static_cast<size_t>(rank)]);
      trainer.run(0, listener);
    });
    return texts;
  };
  const std::string alone = samples("alone", {1})[0];
  CHECK(alone.size() > 100);
  for (const std::string& text : samples("divided", {3, 3})) CHECK(text == alone);
}

// In processes that mpirun starts, where Open MPI is there: the same run as with threads, and one line where the processes
// do not fit together.
TEST_CASE("ranks: processes are ranks like threads") {
  const char* const binary = std::getenv("TRAIN_GPT_BINARY");
  const auto succeeds = [](const std::string& command) {
    return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
  };
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  const bool watches_mpi = true;  // which is not compiled for it, and so is reported
#else
  const bool watches_mpi = false;
#endif
  if (watches_mpi || !binary || !mpi_is_built_in() || !succeeds("mpirun --version | grep -q 'Open MPI'")) {
    MESSAGE("left out: no binary with MPI, no mpirun, or a sanitizer");
    return;
  }
  const Folder folder;
  write_file_atomically(folder / "text", pattern_text(300));
  const auto command = [&](const std::string& run, const std::string& more) {
    return concat(binary, " train nano --data ", folder / "text", " --context 32 --batch 1 --steps 2 --save-every 2 ",
                  "--eval-every 0 --sample-every 0 --threads 1 --device cpu --out ", folder / run, " ", more);
  };
  const std::string mpirun = "mpirun --allow-run-as-root --oversubscribe -np ";
  CHECK(succeeds(command("threads", "--ranks 2 --virtual-ranks 4")));
  CHECK(succeeds(mpirun + "2 " + command("processes", "--virtual-ranks 4 --zero 3")));
  CHECK(result_of(folder / "processes", 2) == result_of(folder / "threads", 2));
  // (mpirun itself says more than the one line.)
  const auto said = [&](const std::string& line) {
    std::system((line + " >" + (folder / "said") + " 2>&1").c_str());
    return read_file(folder / "said");
  };
  const std::string other_flags =
      said(mpirun + "1 " + command("alike", "--lr 0.1") + " : -np 1 " + command("alike", "--lr 0.2"));
  CHECK(other_flags.find("train_gpt: rank 1 is not like rank 0: it has other flags or data") != std::string::npos);
  CHECK(other_flags.find("train_gpt:") == other_flags.rfind("train_gpt:"));
}
