// The training loop: the ends of schedules, rules, the log, and that interrupted runs have the same bits.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/cli/settings.h"
#include "llm/device/cpu.h"
#include "llm/train/rules.h"
#include "llm/train/trainer.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;

namespace {

// A run of `steps` steps in the directory `run`; tests compare parameters and losses through the files that it leaves.
Trainer::Outcome train(const std::string& run, const std::string& text, int64_t steps, int64_t stop_at, int threads,
                       bool resume, size_t memory_budget = 0, OptimizerKind optimizer = OptimizerKind::adamw) {
  ThreadTeam team(threads);
  CpuDevice device(team);
  TrainOptions o;
  o.data = {text}, o.out = run, o.batch = 4, o.grad_accum = 2, o.steps = steps, o.lr = 0.01,
  o.memory_budget = memory_budget, o.optimizer = optimizer;
  o.eval_every = 5, o.save_every = stop_at, o.sample_every = 0, o.keep_last = 0;
  Dataset dataset = open_dataset(text, run + "/tokens", team);
  const ModelConfig model = small_model();
  apply_rules(o, model, 100);
  Trainer trainer(model, o, std::move(dataset), device);
  trainer.allocate();
  if (resume) {
    trainer.load(run + "/checkpoints/" + std::to_string(stop_at));
  } else {
    trainer.initialise();
  }
  return trainer.run();
}

}  // namespace

TEST_CASE("schedules behave at their ends") {
  for (auto kind : {ScheduleKind::cosine, ScheduleKind::linear, ScheduleKind::wsd, ScheduleKind::constant}) {
    CAPTURE(name_of(kind));
    const Schedule s{kind, 2.0, 0.0, 100, 10};
    CHECK(s.at(0) == doctest::Approx(0.2));
    CHECK(s.at(9) == doctest::Approx(2.0));  // the last step of the warm-up has the peak
    for (int64_t i = 0; i < 9; ++i) CHECK(s.at(i) < s.at(i + 1));
    for (int64_t i = 10; i < 99; ++i) CHECK(s.at(i) >= s.at(i + 1));
    if (kind == ScheduleKind::constant) {
      CHECK(s.at(99) == 2.0);
      CHECK(s.at(500) == 2.0);
    } else {
      CHECK(s.at(99) > 0);  // the last step still learns
      CHECK(s.at(99) < 0.11);
      CHECK(s.at(100) == doctest::Approx(0).epsilon(1e-12));
      CHECK(s.at(500) == doctest::Approx(0).epsilon(1e-12));
    }
  }
  CHECK(Schedule{ScheduleKind::wsd, 1.0, 0.0, 100, 10}.at(79) == 1.0);
  CHECK(Schedule{ScheduleKind::wsd, 1.0, 0.0, 100, 10}.at(90) == doctest::Approx(0.5));
  CHECK(Schedule{ScheduleKind::cosine, 1.0, 0.1, 100, 0}.at(100) == doctest::Approx(0.1));
  CHECK(Schedule{ScheduleKind::linear, 1.0, 0.0, 1, 0}.at(0) == 1.0);                    // a run of one step
  CHECK(Schedule{ScheduleKind::linear, 1.0, 0.0, 5, 5}.at(4) == 1.0);                    // a warm-up as long as the run
  CHECK(Schedule{ScheduleKind::linear, 1.0, 0.0, 5, 50}.at(4) == doctest::Approx(0.1));  // and a longer one
}

TEST_CASE("rules fill in what is not given and nothing else") {
  ModelConfig m = small_model();
  TrainOptions o;
  o.lr = 0.123, o.warmup = 0, o.eval_every = 0;
  const auto rules = apply_rules(o, m, 1000);
  CHECK(o.lr == 0.123);
  CHECK(o.warmup == 0);
  CHECK(o.eval_every == 0);
  CHECK(o.batch > 0);
  CHECK(o.steps >= 20);
  CHECK(o.tokens == o.steps * o.batch * o.grad_accum * m.context);
  for (const Rule& r : rules) {
    CAPTURE(r.name);
    CHECK(!r.value.empty());
    CHECK(!r.reason.empty());
    if (r.name == "lr" || r.name == "warmup" || r.name == "eval-every") CHECK(r.reason == "given");
    if (r.name == "batch" || r.name == "weight-decay" || r.name == "beta2") CHECK(!r.given);
  }

  // A run from a trained model has a lower rate, to keep most of what the model knows.
  TrainOptions fresh, trained;
  fresh.steps = trained.steps = 1000;
  apply_rules(fresh, m, 0), apply_rules(trained, m, 0, true);
  CHECK(trained.lr == doctest::Approx(0.1 * fresh.lr));
  // Four times the steps, half the rate; the weights average over the same part of the run.
  TrainOptions longer;
  longer.steps = 4000;
  apply_rules(longer, m, 0);
  CHECK(longer.lr == doctest::Approx(0.5 * fresh.lr));
  CHECK(longer.warmup == 4 * fresh.warmup);
  // The rate is the same at every size; with the standard parametrization it depends on the width.
  ModelConfig wide = m;
  wide.channels *= 4, wide.heads *= 4, wide.kv_heads *= 4;
  TrainOptions large, standard;
  large.steps = standard.steps = 1000, standard.parametrization = RateScaling::standard;
  apply_rules(large, wide, 0), apply_rules(standard, wide, 0);
  CHECK(large.lr == fresh.lr);
  CHECK(standard.lr == doctest::Approx(fresh.lr));  // 128 channels
  // AdamW has a smaller rate, and its blocks do not begin as the identity.
  TrainOptions adamw;
  adamw.steps = 1000, adamw.optimizer = OptimizerKind::adamw;
  apply_rules(adamw, m, 0);
  CHECK(adamw.lr == doctest::Approx(fresh.lr * 8 / 22));
  ModelConfig without_norms = m;
  without_norms.qk_norm = false;
  TrainOptions without;
  without.steps = 1000, without.optimizer = OptimizerKind::adamw;
  apply_rules(without, without_norms, 0);
  CHECK(without.lr < adamw.lr);
  CHECK(fresh.zero_projections.value());
  CHECK(!adamw.zero_projections.value());
  // Muon is the default where a step has enough tokens to pay for its products.
  CHECK(usual_optimizer(config_of(preset_named("tiny")), 64, 768) == OptimizerKind::muon);
  CHECK(usual_optimizer(config_of(preset_named("gpt2-124M")), 1024, 256) == OptimizerKind::adamw);
  CHECK(usual_optimizer(config_of(preset_named("gpt2-124M")), 1024, 16384) == OptimizerKind::muon);

  TrainOptions accumulated;
  accumulated.batch = 4, accumulated.total_batch_tokens = 4 * 16 * 3;
  apply_rules(accumulated, m, 0);
  CHECK(accumulated.grad_accum == 3);
  TrainOptions wrong;
  wrong.batch = 4, wrong.total_batch_tokens = 100;
  CHECK_THROWS_AS(apply_rules(wrong, m, 0), UsageError);
  TrainOptions tokens;
  tokens.batch = 2, tokens.tokens = 2 * 16 * 50 + 7;
  apply_rules(tokens, m, 0);
  CHECK(tokens.steps == 50);
}

TEST_CASE("settings survive their JSON") {
  TrainOptions o;
  o.data = {"a \"quoted\" päth"}, o.lr = 1.0 / 3, o.seed = ~uint64_t{0}, o.memory_budget = size_t{20} << 30,
  o.warmup = 7;
  const TrainOptions back = parse_settings(settings_json(o, small_model()), "here");
  CHECK(back.data == o.data);
  CHECK(back.lr == o.lr);
  CHECK(back.seed == o.seed);
  CHECK(back.memory_budget == o.memory_budget);
  CHECK(back.warmup == 7);
  CHECK_THROWS_WITH_AS(parse_settings("{}", "here"), doctest::Contains("here"), Error);
}

TEST_CASE("settings of earlier runs lack what there was no choice of then") {
  const Json all = parse_json(settings_json({}, small_model()), "here");
  const auto without = [&](const std::vector<std::string>& left_out) {
    Json some;
    for (const auto& [key, value] : all.items())
      if (std::find(left_out.begin(), left_out.end(), key) == left_out.end()) some[key] = value;
    return some.dump();
  };
  const TrainOptions old = parse_settings(without({"parametrization", "guard_deviations", "zero_projections",
                                                   "document_mask", "dropout", "z_loss", "dtype"}),
                                          "here");
  CHECK(old.parametrization == RateScaling::standard);
  CHECK(old.guard_deviations == 0);
  CHECK(old.zero_projections == false);
  CHECK(old.dtype == Precision::fp32);
  for (const char* key : {"lr", "seed", "optimizer", "data_tokens"})
    CHECK(has(error_of([&] { parse_settings(without({key}), "here"); }), concat("no \"", key, "\"")));
  Json wrong = all;
  wrong["optimizer"] = "sgd";
  CHECK(has(error_of([&] { parse_settings(wrong.dump(), "here"); }), "\"optimizer\": \"sgd\" is not known"));
}

TEST_CASE("a resumed run changes how long it is and how it is watched, not what it computes") {
  TrainOptions run, given;
  run.lr = 0.5, run.steps = 10, run.total_batch_tokens = 64, run.keep_last = 3;
  given.lr = 0.5, given.steps = 20, given.keep_last = 7, given.beta1 = 0.5, given.tokens = 640, given.out = "there";
  const TrainOptions longer = resumed_settings(run, given, {"--out", "--steps", "--lr"});
  CHECK(longer.steps == 20);
  CHECK(longer.tokens == 20 * 64);
  CHECK(longer.keep_last == 3);  // not given
  CHECK(longer.out == "there");
  CHECK(resumed_settings(run, given, {"--tokens"}).steps == 10);
  CHECK(resumed_settings(run, given, {"--keep-last"}).keep_last == 7);
  CHECK(has(error_of([&] { resumed_settings(run, given, {"--beta1"}); }), "--beta1 belongs to the run in there"));
}

TEST_CASE("a resumed log drops what will be written again, and half lines") {
  Folder d;
  {
    RunLog log(d.path, 0);
    for (int64_t step = 1; step <= 5; ++step) {
      LogEntry e;
      e.step = step, e.loss = 2.0 / static_cast<double>(step);
      log.write(e);
    }
  }
  std::ofstream(d.path + "/log.jsonl", std::ios::app) << "{\"step\":6,\"lo";
  {
    RunLog log(d.path, 3);
    LogEntry e;
    e.step = 4, e.val_loss = 0.5;
    log.write(e);
  }
  CHECK(read_file(d.path + "/log.jsonl") ==
        "{\"step\":1,\"loss\":2.0}\n{\"step\":2,\"loss\":1.0}\n{\"step\":3,\"loss\":0.6666666666666666}\n"
        "{\"step\":4,\"val_loss\":0.5}\n");
}

TEST_CASE("a run is bit for bit the same resumed, on other threads, and with recomputation") {
  Folder d;
  const std::string text = d.path + "/text.txt";
  std::ofstream(text) << pattern_text(300);
  const Trainer::Outcome whole = train(d.path + "/whole", text, 12, 6, 2, false);
  const std::string weights = read_file(d.path + "/whole/checkpoints/12/model.safetensors");
  const std::string moments = read_file(d.path + "/whole/checkpoints/12/optimizer.state");
  CHECK(whole.val_loss > 0);
  CHECK(whole.val_loss < 5.0);  // below ln 257: the model has learned something

  SUBCASE("resumed from its sixth step") {
    std::filesystem::create_directories(d.path + "/resumed/checkpoints");
    std::filesystem::copy(d.path + "/whole/checkpoints/6", d.path + "/resumed/checkpoints/6");
    const Trainer::Outcome resumed = train(d.path + "/resumed", text, 12, 6, 2, true);
    CHECK(resumed.val_loss == whole.val_loss);
    CHECK(read_file(d.path + "/resumed/checkpoints/12/model.safetensors") == weights);
    CHECK(read_file(d.path + "/resumed/checkpoints/12/optimizer.state") == moments);
  }
  SUBCASE("on one and on three threads") {
    for (int threads : {1, 3}) {
      const std::string run = d.path + "/threads" + std::to_string(threads);
      CHECK(train(run, text, 12, 12, threads, false).val_loss == whole.val_loss);
      CHECK(read_file(run + "/checkpoints/12/model.safetensors") == weights);
    }
  }
  SUBCASE("resumed and on three threads, with Muon") {
    const auto weights_at_12 = [&](const std::string& run) {
      return read_file(d.path + run + "/checkpoints/12/model.safetensors");
    };
    const double val_loss = train(d.path + "/muon", text, 12, 6, 2, false, 0, OptimizerKind::muon).val_loss;
    CHECK(val_loss < 5.0);
    CHECK(weights_at_12("/muon") != weights);
    std::filesystem::create_directories(d.path + "/muon_resumed/checkpoints");
    std::filesystem::copy(d.path + "/muon/checkpoints/6", d.path + "/muon_resumed/checkpoints/6");
    CHECK(train(d.path + "/muon_resumed", text, 12, 6, 3, true, 0, OptimizerKind::muon).val_loss == val_loss);
    CHECK(weights_at_12("/muon_resumed") == weights_at_12("/muon"));
    CHECK(read_file(d.path + "/muon_resumed/checkpoints/12/optimizer.state") ==
          read_file(d.path + "/muon/checkpoints/12/optimizer.state"));
    // The state of another optimizer is refused.
    CHECK_THROWS_WITH_AS(train(d.path + "/muon", text, 12, 6, 2, true),
                         doctest::Contains("not the state of this optimizer"), Error);
  }
  SUBCASE("with the smallest memory") {
    size_t budget = 0;
    for (size_t kib = 64; !budget; kib += 16) {  // the smallest budget that is not refused
      try {
        train(d.path + "/tight" + std::to_string(kib), text, 12, 12, 2, false, kib << 10);
        budget = kib;
      } catch (const Error& e) {
        REQUIRE(std::string(e.what()).find("memory budget") != std::string::npos);
      }
    }
    CHECK(read_file(d.path + "/tight" + std::to_string(budget) + "/checkpoints/12/model.safetensors") == weights);
  }
}

TEST_CASE("a step that is not finite changes nothing, and ten of them end the run") {
  Folder d;
  const std::string text = d.path + "/text.txt";
  std::ofstream(text) << pattern_text(300);
  ThreadTeam team(1);
  CpuDevice device(team);
  TrainOptions o;
  o.data = {text}, o.out = d.path + "/run", o.batch = 2, o.steps = 40, o.lr = 1e30, o.grad_clip = 0;
  o.eval_every = 0, o.save_every = 1, o.sample_every = 0, o.keep_last = 0;
  const ModelConfig model = small_model();
  apply_rules(o, model, 0);
  Trainer trainer(model, o, open_dataset(text, o.out + "/tokens", team), device);
  trainer.allocate();
  trainer.initialise();
  CHECK_THROWS_WITH_AS(trainer.run(), doctest::Contains("not finite"), Error);
  // The last two checkpoints stand on either side of a skipped step.
  const auto checkpoints = list_checkpoints(o.out);
  REQUIRE(checkpoints.size() >= 2);
  CHECK(read_file(checkpoints.back().path + "/model.safetensors") ==
        read_file(checkpoints[checkpoints.size() - 2].path + "/model.safetensors"));
}
