// The subcommand bench: how long each op of a training step takes, or each of its matrix products alone, how long this
// machine would need at the least, and how a step would divide among more threads.
#include <iostream>
#include <memory>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/cli/bench.h"
#include "llm/cli/commands.h"

namespace llm {
namespace {

Json read_earlier(const std::string& path) {
  Json earlier = read_json(path);
  try {
    for (const char* list : {"ops", "nodes"})
      for (const Json& row : earlier.at(list)) row.at("name").string(), row.at("ms").get<double>();
    earlier.at("step").at("ms").get<double>();
    return earlier;
  } catch (const Error& e) {
    fail(path, " is not the JSON of an earlier `bench --save`: ", e.what());
  }
}

void describe_hardware(const BenchFlags& flags, OpenedMachine& machine) {
  const Hardware h = measure_hardware(machine.device(), machine.precision(),
                                      hardware_of(machine.device().cuda() ? "h100-sxm" : "cpu"));
  write_file_atomically(flags.hardware_out, hardware_json(h));
  std::cout << h.name << ": " << flags.hardware_out << "\n";
}

void bench(BenchFlags& flags) {
  flags.device.check();
  const bool of_ops = flags.nodes || !flags.only.empty() || !flags.compare.empty() || flags.format == "markdown";
  const int modes = flags.products + (flags.scaling > 0) + flags.busy + flags.decode;
  if (modes > 1 || (modes > 0 && of_ops))
    fail_usage(
        "--products, --scaling, --busy and --decode go without each other, --nodes, --only, --compare and --format "
        "markdown");
  if ((flags.weights.weights || flags.weights.cache) && !flags.decode)
    fail_usage("--weights and --cache go with --decode");
  // Read first: a wrong file should not cost a measurement.
  const Json earlier = flags.compare.empty() ? Json() : read_earlier(flags.compare);
  OpenedMachine opened(flags.device);
  if (!flags.hardware_out.empty()) return describe_hardware(flags, opened);
  const ModelConfig config = flags.model.resolve(0, "small");
  complete_recipe(flags.recipe, flags.batch, config);
  const auto measure = flags.products  ? bench_products
                       : flags.scaling ? bench_scaling
                       : flags.busy    ? bench_busy
                       : flags.decode  ? bench_decode
                                       : bench_step;
  const Json result = measure(flags, opened.device(), config);
  for (const char* key : {"model", "parameters", "batch", "context", "device", "dtype", "threads", "only"})
    if (!earlier.is_null() && earlier[key] != result[key])
      std::cerr << "bench: " << flags.compare << " was measured with another " << key << ": " << earlier[key].dump()
                << ", now " << result[key].dump() << "\n";
  if (!flags.save.empty()) write_file_atomically(flags.save, result.dump(1) + "\n");
  if (flags.format == "json") {
    std::cout << result.dump(1) << "\n";
  } else if (flags.format == "markdown") {
    print_step_as_markdown(result, flags.nodes);
  } else if (flags.products) {
    print_products(result);
  } else if (flags.scaling) {
    print_scaling(result);
  } else if (flags.busy) {
    print_busy(result);
  } else if (flags.decode) {
    print_decode(result);
  } else {
    print_step(result, earlier, flags.nodes);
  }
}

}  // namespace

Command bench_command() {
  const auto flags = std::make_shared<BenchFlags>();
  BenchFlags& f = *flags;
  Options options = f.model.options();
  append(options, recipe_options(f.recipe));
  append(
      options,
      {Option("--batch", &f.batch, "sequences in a step (about 1024 tokens)").between(1, 1 << 20),
       Option("--steps", &f.steps, "steps to take the medians of, after a warm-up").between(1, 100000).with_default(),
       Option("--nodes", &f.nodes, "a line for each shape, not only for each op"),
       Option("--only", &f.only, "time the nodes of this op alone (`train_gpt graph --ops` lists them)"),
       Option("--products", &f.products,
              "time each matrix product of a step by itself, on the CPU (with make ONEDNN=1: beside oneDNN's)"),
       Option("--scaling", &f.scaling,
              "count what up to N threads could not share of a step, on the CPU; they need not be here")
           .between(2, 1024),
       Option("--busy", &f.busy,
              "time a step beside processes that keep a core busy, at several priorities, on the CPU"),
       Option("--decode", &f.decode, "time the tokens that the inference engine draws, for 1, 8 and 32 texts at once"),
       Option("--hardware-out", &f.hardware_out,
              "measure what `plan` knows of a machine, and write it to this file (20 s)"),
       Option("--format", &f.format, "text, json or markdown").among({"text", "json", "markdown"}).with_default(),
       Option("--save", &f.save, "write the result to this file, as JSON"),
       Option("--compare", &f.compare, "a file from an earlier --save: print how much faster it is now")});
  append(options, f.device.options());
  append(options, f.weights.options(), "Machine");
  append(options, f.weights.cache_options(), "Machine");
  return {"bench", "Time every op of a training step against this machine's ceilings", options,
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
          "  train_gpt bench gpt2-124M --batch 16 --steps 3 --scaling 64\n"
          "  train_gpt bench tiny --busy\n"
          "  train_gpt bench gpt2-124M --threads 1 --steps 32 --decode",
          [flags](const Given&) { bench(*flags); }};
}

}  // namespace llm
