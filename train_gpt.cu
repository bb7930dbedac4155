// The command line and nothing else. One file a subcommand in llm/cli.
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>
#include <string>
#include <string_view>

#include "llm/base/error.h"
#include "llm/base/simd.h"
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

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("train_gpt: from text to a trained GPT, on the CPU and the GPU.", "train_gpt");
  app.set_version_flag("--version", [] {
    return "train_gpt 0.1\nCPU: " + std::string(kBuiltFor) + " (" + llm::simd::kInstructionSet + ")\nCUDA: " +
           (llm::cuda_is_built_in() ? llm::describe_cuda_devices()
                                    : "not built in (this binary was built without nvcc)");
  });
  app.require_subcommand(1);
  app.footer(
      "Start here:\n"
      "  train_gpt train --data FILE.txt --out runs/first     tokenize and train a small GPT\n"
      "  train_gpt generate runs/first --prompt \"Once\"        let it write\n"
      "  train_gpt train --help                               every flag, with its default");
  llm::add_tokenize(app);
  llm::add_detokenize(app);
  llm::add_train(app);
  llm::add_eval(app);
  llm::add_generate(app);
  llm::add_import(app);
  llm::add_export(app);
  llm::add_graph(app);
  llm::add_bench(app);
  try {
    check_copy();
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help, --version
    std::cerr << "train_gpt: " << e.what() << " (see train_gpt --help)\n";
    return 2;
  } catch (const llm::UsageError& e) {
    std::cerr << "train_gpt: " << e.what() << "\n";
    return 2;
  } catch (const std::bad_alloc&) {
    std::cerr << "train_gpt: out of memory; lower --batch or choose a smaller model\n";
    return 1;
  } catch (const std::exception& e) {
    std::cerr << "train_gpt: " << e.what() << "\n";
    return 1;
  }
}
