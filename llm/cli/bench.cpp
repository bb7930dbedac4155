// The subcommand bench: how long each op of a training step takes, or each of its matrix products alone, how long this
// machine would need at the least, and how a step would divide among more threads.
#include <iostream>
#include <memory>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/cli/bench.h"
#include "llm/cli/commands.h"

namespace llm {
namespace {

using nlohmann::ordered_json;

ordered_json read_earlier(const std::string& path) {
  try {
    ordered_json earlier = ordered_json::parse(read_file(path));
    for (const char* list : {"ops", "nodes"})
      for (const ordered_json& row : earlier.at(list)) row.at("name").get<std::string>(), row.at("ms").get<double>();
    earlier.at("step").at("ms").get<double>();
    return earlier;
  } catch (const ordered_json::exception&) {
    fail(path, " is not the JSON of an earlier `bench --save`");
  }
}

void bench(BenchFlags& flags) {
  flags.device.check();
  check_recipe(flags.recipe);
  if (flags.format != "text" && flags.format != "json" && flags.format != "markdown")
    fail_usage("unknown --format ", flags.format, "; known: text, json, markdown");
  const bool of_ops = flags.nodes || !flags.only.empty() || !flags.compare.empty() || flags.format == "markdown";
  if ((flags.products && flags.scaling) || ((flags.products || flags.scaling) && of_ops))
    fail_usage("--products and --scaling go without each other, --nodes, --only, --compare and --format markdown");
  // Read first: a wrong file should not cost a measurement.
  const ordered_json earlier = flags.compare.empty() ? ordered_json() : read_earlier(flags.compare);
  OpenedMachine opened(flags.device);
  const ModelConfig config = flags.model.resolve(0, "small");
  complete_recipe(flags.recipe, flags.batch, config);
  const auto measure = flags.products ? bench_products : flags.scaling ? bench_scaling : bench_step;
  const ordered_json result = measure(flags, opened.device(), config);
  for (const char* key : {"model", "parameters", "batch", "context", "device", "dtype", "threads", "only"})
    if (!earlier.is_null() && earlier.value(key, ordered_json()) != result[key])
      std::cerr << "bench: " << flags.compare << " was measured with another " << key << ": "
                << earlier.value(key, ordered_json()).dump() << ", now " << result[key].dump() << "\n";
  if (!flags.save.empty()) write_file_atomically(flags.save, result.dump(1) + "\n");
  if (flags.format == "json") {
    std::cout << result.dump(1) << "\n";
  } else if (flags.format == "markdown") {
    print_step_as_markdown(result, flags.nodes);
  } else if (flags.products) {
    print_products(result);
  } else if (flags.scaling) {
    print_scaling(result);
  } else {
    print_step(result, earlier, flags.nodes);
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  const auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Time every op of a training step against this machine's ceilings");
  flags->model.add_to(*command);
  add_recipe(*command, flags->recipe);
  command->add_option("--batch", flags->batch, "sequences in a step (about 1024 tokens)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20).description(""));
  command->add_option("--steps", flags->steps, "steps to take the medians of, after a warm-up")
      ->check(CLI::Range(int64_t{1}, int64_t{100000}).description(""))
      ->capture_default_str();
  command->add_flag("--nodes", flags->nodes, "a line for each shape, not only for each op");
  command->add_option("--only", flags->only, "time the nodes of this op alone (`train_gpt graph --ops` lists them)");
  command->add_flag("--products", flags->products,
                    "time each matrix product of a step by itself, on the CPU (with make ONEDNN=1: beside oneDNN's)");
  command
      ->add_option("--scaling", flags->scaling,
                   "count what up to N threads could not share of a step, on the CPU; they need not be here")
      ->check(CLI::Range(2, 1024).description(""));
  command->add_option("--format", flags->format, "text, json or markdown")->capture_default_str();
  command->add_option("--save", flags->save, "write the result to this file, as JSON");
  command->add_option("--compare", flags->compare, "a file from an earlier --save: print how much faster it is now");
  flags->device.add_to(*command);
  command->footer(
      "The floor of an op is the longer of FLOPs / peak and bytes / bandwidth. The ceilings are medians of rounds "
      "between\n"
      "the steps: of main memory, or of a cache's worth of it for an op whose tensors together are that small. "
      "Smaller\n"
      "ones still can "
      "be faster. MFU counts the FLOPs that training needs, not what is recomputed.\n\n"
      "Examples:\n"
      "  train_gpt bench --save before.json\n"
      "  train_gpt bench --compare before.json\n"
      "  train_gpt bench gpt2-124M --batch 1 --only attention_backward --nodes\n"
      "  train_gpt bench gpt2-124M --batch 4 --context 64 --products\n"
      "  train_gpt bench gpt2-124M --batch 16 --steps 3 --scaling 64");
  command->callback([flags] { bench(*flags); });
}

}  // namespace llm
