// The subcommands, one file each. Each function adds one to the command line; its callback does the work.
#pragma once
#include <CLI/CLI.hpp>

namespace llm {

void add_tokenize(CLI::App& app);
void add_detokenize(CLI::App& app);
void add_train(CLI::App& app);
void add_eval(CLI::App& app);
void add_generate(CLI::App& app);
void add_import(CLI::App& app);
void add_export(CLI::App& app);
void add_graph(CLI::App& app);
void add_bench(CLI::App& app);

}  // namespace llm
