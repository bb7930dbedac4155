// The subcommands, one file each.
#pragma once
#include "llm/cli/option.h"

namespace llm {

Command tokenize_command();
Command detokenize_command();
Command train_command();
Command eval_command();
Command generate_command();
Command serve_command();
Command import_command();
Command export_command();
Command graph_command();
Command bench_command();
Command plan_command();

}  // namespace llm
