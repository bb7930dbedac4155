// Times the inference engine with 1, 8 and 32 texts at once. The weights have their initial values and the prompts are
// random, which takes as long as a real text would: every token goes through the whole model.
#include <algorithm>
#include <chrono>

#include "llm/base/error.h"
#include "llm/base/random.h"
#include "llm/base/rounding.h"
#include "llm/cli/bench.h"
#include "llm/graph/staging.h"
#include "llm/infer/engine.h"
#include "llm/model/parameters.h"

namespace llm {
namespace {

constexpr int64_t kTexts[] = {1, 8, 32}, kMostTexts = 32, kPrompt = 32;

// Takes all prompts in, in one step, then takes the time of `steps` steps, of which each draws a token for every text.
Json measure(Engine& engine, int64_t texts, int64_t steps, int64_t vocabulary) {
  const Random random(1, stream_of("bench/decode"));
  int64_t begun = 0, made = 0;
  for (int64_t i = 0; i < texts; ++i) {
    std::vector<int32_t> prompt(kPrompt);
    for (size_t t = 0; t < prompt.size(); ++t)
      prompt[t] =
          static_cast<int32_t>(random.bits(static_cast<uint64_t>(i * kPrompt) + t) % static_cast<uint64_t>(vocabulary));
    engine.submit({.prompt = prompt, .max_tokens = steps + 1, .sampling = {.temperature = 0}},
                  {.on_token = [&, is_first = true](const TokenOutput&) mutable {
                    begun += is_first, is_first = false;
                    ++made;
                  }});
  }
  while (begun < texts) engine.step();
  const EngineStatistics before = engine.statistics();
  const int64_t made_before = made;
  while (engine.step()) {
  }
  const EngineStatistics after = engine.statistics();
  const double seconds = after.seconds - before.seconds;
  const auto tokens = static_cast<double>(made - made_before);
  // A step reads the weights once, and each text its own keys and values.
  const double position = kPrompt + static_cast<double>(steps) / 2, weights = engine.bytes_per_token(0);
  const double bytes = weights + static_cast<double>(texts) * (engine.bytes_per_token(position) - weights);
  const auto count = static_cast<double>(after.steps - before.steps);
  return {{"texts", texts},
          {"ms", seconds / count * 1e3},
          {"tokens_per_second", tokens / seconds},
          {"gigabytes_per_second", bytes * count / seconds * 1e-9},
          {"own_share", (after.own_seconds - before.own_seconds) / seconds}};
}

}  // namespace

Json bench_decode(const BenchFlags& flags, Device& on, const ModelConfig& config) {
  if (config.context < kPrompt + flags.steps)
    fail_usage("--decode: prompts of ", kPrompt, " tokens and ", flags.steps, " steps do not fit the context of ",
               config.context, "; fewer --steps would do");
  Graph parameters;
  const Target target = flags.weights.target(target_on(on, flags.device.precision()), flags.device);
  add_parameters(parameters, config, dtype_of(flags.device.precision()), target.weights);
  PersistentLayout layout;
  layout.add(parameters);
  Engine engine(config, layout, target,
                {.most_running = kMostTexts,
                 .tokens_of_step = kMostTexts * kPrompt,  // all prompts in one step
                 .blocks = kMostTexts * ceil_div(kPrompt + flags.steps + 1, kBlockTokens),
                 .prefix_cache = false});
  const Arena arena(engine.arena_bytes(), on);
  engine.bind(arena);
  Staging staging(arena, layout);
  for (const Parameter& p : parameter_table(config))
    initialise(on.threads(), p, 1, staging.room(p.name, p.shape.elements()));
  staging.flush();
  Json rows = Json::array();
  for (const int64_t texts : kTexts) {
    measure(engine, texts, std::min<int64_t>(flags.steps, 2), config.vocabulary);  // makes the programs
    rows.push_back(measure(engine, texts, flags.steps, config.vocabulary));
  }
  return {{"model", flags.model_name()},
          {"parameters", parameter_count(config)},
          {"context", config.context},
          {"dtype", name_of(flags.device.precision())},
          {"weights", name_of(target.weights.value_or(dtype_of(flags.device.precision())))},
          {"threads", on.threads().size()},
          {"steps", flags.steps},
          {"prompt", kPrompt},
          {"decode", rows}};
}

}  // namespace llm
