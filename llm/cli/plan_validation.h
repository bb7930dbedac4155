// Predictions beside measurements: a table of step times of layouts, which other people have published.
#pragma once
#include <string>
#include <vector>

namespace llm {

struct ValidatedRow {
  int line = 0;                                // of the file
  bool failed = false;                         // it ran out of memory, or crashed
  double measured_ms = 0, predicted_ms = 0;    // predicted 0: the program cannot be asked for this layout
  double measured_gib = 0, predicted_gib = 0;  // 0: not known
  bool fits = true;                            // as predicted
  std::string layout;
  double error() const { return predicted_ms / measured_ms - 1; }
};

// Of rows that were measured, relative to what was measured; of the layouts of one model on as many ranks with as large a
// step, how much longer the one that is predicted to be the fastest takes than the fastest one: on average.
struct Validation {
  std::vector<ValidatedRow> rows;
  double mean_error = 0, median_error = 0, rank_correlation = 0, regret = 0;
  double memory_correlation = 0;  // of the ranks of measured and predicted memory; 0: not known
};

// A CSV file whose first line names columns: hardware, gpus, gpus_per_node, architecture, layers, channels, heads, kv_heads,
// hidden, vocabulary, context, data, tensor, stages, zero, micro_batch, grad_accum, status, step_ms, memory_gib. `hardware`:
// a machine's description in place of those that the rows name; empty: those. Throws Error with the line that is wrong.
Validation validate(const std::string& path, const std::string& hardware);

}  // namespace llm
