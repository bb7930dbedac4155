// The command line and nothing else. One file a subcommand in llm/cli.
#include <cstdlib>
#include <string>
#include <string_view>

#include "llm/base/error.h"
#include "llm/base/simd.h"
#include "llm/cli/command_line.h"
#include "llm/cli/commands.h"
#include "llm/device/cuda.h"

namespace {

// What g++'s -march was given.
#define TEXT_OF(words) #words
#define TEXT_OF_VALUE(macro) TEXT_OF(macro)
constexpr std::string_view kBuiltFor = TEXT_OF_VALUE(TRAIN_GPT_MARCH);

// Asks for a copy in the binary of `make portable`. Here it is chosen already, or there is only one.
void check_copy() {
  const char* wanted = std::getenv("TRAIN_GPT_CPU");
  if (wanted && wanted != kBuiltFor)
    llm::fail_usage("TRAIN_GPT_CPU=", wanted, ": this binary was built for ", kBuiltFor,
                    " alone; `make portable` builds ", "one for every x86-64 CPU");
}

std::string version() {
  return "train_gpt 0.1\nCPU: " + std::string(kBuiltFor) + " (" + llm::simd::kInstructionSet + ")\nCUDA: " +
         (llm::cuda_is_built_in() ? llm::describe_cuda_devices() : "not built in (this binary was built without nvcc)");
}

}  // namespace

int main(int argc, char** argv) {
  using namespace llm;
  return run_command_line(
      {.name = "train_gpt",
       .summary = "train_gpt: from text to a trained GPT, on the CPU and the GPU.",
       .footer = "Start here:\n"
                 "  train_gpt train --data FILE.txt --out runs/first     tokenize and train a small GPT\n"
                 "  train_gpt generate runs/first --prompt \"Once\"        let it write\n"
                 "  train_gpt train --help                               every flag, with its default",
       .version = version,
       .prepare = check_copy,
       .commands = {tokenize_command(), detokenize_command(), train_command(), eval_command(), generate_command(),
                    serve_command(), import_command(), export_command(), graph_command(), bench_command(),
                    plan_command()}},
      argc, argv);
}
