// What the files of the subcommand bench share: bench_step.cpp measures the ops of a training step, bench_products.cpp its
// matrix products alone; bench_print.cpp prints either; bench.cpp is the command line.
#pragma once
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "llm/cli/options.h"

namespace llm {

struct BenchFlags {
  ModelOptions model;
  TrainOptions recipe;
  DeviceOptions device;
  std::string format = "text", save, compare, only;
  int64_t batch = 0, steps = 10;
  bool nodes = false, products = false;
  std::string model_name() const { return model.preset.empty() ? "small" : model.preset; }
};

// The result of `bench --save` and `--format json`.
nlohmann::ordered_json bench_step(const BenchFlags& flags, const Machine& on, const ModelConfig& config);
nlohmann::ordered_json bench_products(const BenchFlags& flags, const Machine& on, const ModelConfig& config);

// `earlier`: the result of an earlier run to compare with, or null.
void print_step(const nlohmann::ordered_json& result, const nlohmann::ordered_json& earlier, bool nodes);
void print_step_as_markdown(const nlohmann::ordered_json& result, bool nodes);
void print_products(const nlohmann::ordered_json& result);

inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace llm
