#include "llm/cli/plan_validation.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>

#include "llm/base/error.h"
#include "llm/model/parameters.h"
#include "llm/model/shard.h"
#include "llm/model/stages.h"
#include "llm/plan/step_time.h"

namespace llm {
namespace {

std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> fields(1);
  for (const char c : line)
    if (c == ',')
      fields.emplace_back();
    else if (c != '\r')
      fields.back() += c;
  return fields;
}

class Table {
 public:
  explicit Table(const std::string& path) : path_(path), in_(path) {
    std::string line;
    if (!in_ || !std::getline(in_, line)) fail("cannot read ", path);
    const std::vector<std::string> names = fields_of(line);
    for (size_t i = 0; i < names.size(); ++i) column_[names[i]] = i;
  }
  bool next() {
    std::string line;
    do {
      if (!std::getline(in_, line)) return false;
      ++line_;
    } while (line.empty());
    fields_ = fields_of(line);
    return true;
  }
  int line() const { return line_; }
  const std::string& text(const char* name) const {
    const auto found = column_.find(name);
    if (found == column_.end()) fail(path_, " has no column ", name);
    if (found->second >= fields_.size()) fail(path_, ", line ", line_, ": there is no ", name);
    return fields_[found->second];
  }
  double number(const char* name, bool optional = false) const {
    const std::string& field = text(name);
    if (field.empty() && optional) return 0;
    char* end = nullptr;
    const double value = std::strtod(field.c_str(), &end);
    if (field.empty() || *end || !(value >= 0)) fail(path_, ", line ", line_, ": ", name, " is \"", field, "\"");
    return value;
  }
  int64_t whole(const char* name, int64_t least = 1) const {
    const double value = number(name);
    if (value < static_cast<double>(least) || value != std::floor(value) || value > 1e9)
      fail(path_, ", line ", line_, ": ", name, " is ", text(name));
    return static_cast<int64_t>(value);
  }

 private:
  std::string path_;
  std::ifstream in_;
  std::map<std::string, size_t> column_;
  std::vector<std::string> fields_;
  int line_ = 1;
};

Job job_of(const Table& row) {
  Job job;
  const auto architecture = find_value<Architecture>(row.text("architecture"));
  if (!architecture) fail("line ", row.line(), ": unknown architecture ", row.text("architecture"));
  ModelConfig& m = job.model;
  set_architecture(m, *architecture);
  m.layers = row.whole("layers"), m.channels = row.whole("channels"), m.heads = row.whole("heads");
  m.kv_heads = row.whole("kv_heads"), m.hidden = row.whole("hidden"), m.vocabulary = row.whole("vocabulary");
  m.context = job.context = row.whole("context");
  m.head_size = m.channels / m.heads;
  m.positions = Positions::rope;  // learned ones cannot be shared among as many ranks, and cost as good as nothing
  job.target = {.threads = 1, .cuda = true, .precision = Precision::bf16};
  job.recipe.optimizer = OptimizerKind::adamw;
  return job;
}

Layout layout_of(const Table& row) {
  Layout l;
  l.mesh = {.data = static_cast<int>(row.whole("data")),
            .stage = static_cast<int>(row.whole("stages")),
            .tensor = static_cast<int>(row.whole("tensor"))};
  l.zero = static_cast<int>(row.whole("zero", 0));
  l.batch = row.whole("micro_batch"), l.grad_accum = row.whole("grad_accum");
  return l;
}

std::vector<double> ranks_of(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t i = 0, j; i < order.size(); i = j) {
    for (j = i; j < order.size() && values[order[j]] == values[order[i]];) ++j;
    for (size_t k = i; k < j; ++k) ranks[order[k]] = static_cast<double>(i + j - 1) / 2;
  }
  return ranks;
}

// Spearman's.
double rank_correlation(const std::vector<double>& x, const std::vector<double>& y) {
  if (x.size() < 2) return 0;
  const std::vector<double> a = ranks_of(x), b = ranks_of(y);
  const double mean = static_cast<double>(a.size() - 1) / 2;
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i)
    ab += (a[i] - mean) * (b[i] - mean), aa += (a[i] - mean) * (a[i] - mean), bb += (b[i] - mean) * (b[i] - mean);
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

double mean_of(const std::vector<double>& values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

bool shares(const Layout& l, int64_t batch, int64_t context) {
  const int n = l.mesh.tensor;
  return batch % n == 0 || (n % batch == 0 && context % (n / batch) == 0);
}

// Other programs share other micro-batches among tensor-parallel ranks than `train` can: between the two nearest ones that
// it can, times lie on a line.
template <class Function>
double between_batches(const Layout& layout, int64_t context, Function&& value) {
  Layout low = layout, high = layout;
  while (!shares(layout, low.batch, context)) --low.batch;
  while (!shares(layout, high.batch, context)) ++high.batch;
  const double at_low = value(low);
  if (low.batch == high.batch) return at_low;
  return at_low + (value(high) - at_low) * static_cast<double>(layout.batch - low.batch) /
                      static_cast<double>(high.batch - low.batch);
}

double parameters_of_layer(const ModelConfig& model) {
  double parameters = 0;
  for (const Parameter& p : parameter_table(model))
    if (p.layer == 0) parameters += static_cast<double>(p.shape.elements());
  return parameters;
}

struct Model {
  Job job;
  Hardware hardware;
  StepTimer timer;
  double layer_parameters;  // of the matrices of a layer
  // Of the rank that needs the most, by the description's bytes; 0: it has none. Other programs cut the vocabulary among
  // tensor-parallel ranks, too, and keep logits.
  double bytes(const Layout& layout) const {
    const ModelConfig& m = job.model;
    const Hardware& h = hardware;
    const Mesh& mesh = layout.mesh;
    const double tokens = static_cast<double>(layout.batch * job.context), tensor = mesh.tensor;
    const auto channels = static_cast<double>(m.channels), vocabulary = static_cast<double>(m.vocabulary);
    const double gathered = layout.is_pipeline() ? 0 : h.gathered_bytes * (1 - 1 / tensor);
    const double activations = tokens * (channels * (h.channel_bytes / tensor + gathered) +
                                         static_cast<double>(m.hidden) * h.hidden_bytes / tensor);
    double most = 0;
    for (int stage = 0; stage < mesh.stage; ++stage) {
      const bool first = stage == 0, last = stage + 1 == mesh.stage;
      const double layers = layout.is_pipeline()
                                ? layout.cuts[static_cast<size_t>(stage) + 1] - layout.cuts[static_cast<size_t>(stage)]
                                : static_cast<double>(m.layers);
      const auto in_flight = static_cast<double>(std::min<int64_t>(layout.grad_accum, mesh.stage - stage));
      const double parameters = (layers * layer_parameters + vocabulary * channels * (first + last)) / tensor;
      most = std::max(most, parameters * (h.parameter_bytes + h.divided_bytes / (layout.zero ? mesh.data : 1)) +
                                in_flight * layers * activations +
                                (last ? tokens * vocabulary / tensor * h.logit_bytes : 0));
    }
    return most;
  }
  std::vector<int> cuts(int stages) const {
    const ModelConfig& m = job.model;
    std::vector<int> cuts(static_cast<size_t>(stages) + 1, static_cast<int>(m.layers));
    if (hardware.cuts == LayerCuts::by_cost) return cut_layers(m, job.context, stages);
    const double all =
        static_cast<double>(m.layers) * layer_parameters + static_cast<double>(m.vocabulary * m.channels);
    for (int64_t s = 0; s < stages; ++s)
      cuts[static_cast<size_t>(s)] =
          hardware.cuts == LayerCuts::equal
              ? static_cast<int>(m.layers * s / stages)
              : std::min(static_cast<int>(m.layers),
                         s == 0 ? 0
                                : static_cast<int>(all * static_cast<double>(s) / static_cast<double>(stages) /
                                                   layer_parameters) +
                                      1);
    return cuts;
  }
};

}  // namespace

Validation validate(const std::string& path, const std::string& hardware) {
  Table table(path);
  Validation v;
  std::map<std::string, Model> models;
  std::map<std::string, std::vector<size_t>> choices;  // rows, by model, ranks and size of the step
  while (table.next()) {
    std::string name;
    for (const char* column : {"hardware", "architecture", "layers", "channels", "heads", "kv_heads", "hidden",
                               "vocabulary", "context", "gpus_per_node"})
      name += table.text(column) + " ";
    auto found = models.find(name);
    if (found == models.end()) {
      const Job job = job_of(table);
      Hardware machine = hardware_of(hardware.empty() ? table.text("hardware") : hardware, true);
      machine.ranks_a_node = static_cast<double>(table.whole("gpus_per_node"));
      found = models.emplace(name, Model{job, machine, StepTimer(job, machine), parameters_of_layer(job.model)}).first;
    }
    Model& model = found->second;
    Layout layout = layout_of(table);
    if (layout.is_pipeline()) layout.cuts = model.cuts(layout.mesh.stage);
    ValidatedRow row;
    row.line = table.line(), row.failed = table.text("status") != "ok";
    row.layout = concat(layout.mesh.text(), ", ZeRO ", layout.zero, ", ", layout.grad_accum, " x ", layout.batch);
    if (!row.failed) {
      row.measured_ms = table.number("step_ms"), row.measured_gib = table.number("memory_gib", true);
      if (row.measured_ms == 0) fail(path, ", line ", row.line, ": step_ms is 0");
    }
    // What no graph can be built for, `train` could not do either.
    try {
      const auto predict = [&](auto&& value) { return between_batches(layout, model.job.context, value); };
      row.predicted_gib = model.bytes(layout) * 0x1p-30;
      row.fits = row.predicted_gib <= model.hardware.memory_gib - model.hardware.reserved_gib;
      if (!row.failed) {
        row.predicted_ms = predict([&](const Layout& l) { return 1e3 * model.timer.time(l, !row.fits).total(); });
        const int64_t samples = layout.mesh.data * layout.batch * layout.grad_accum;
        choices[concat(name, table.text("gpus"), " ", samples)].push_back(v.rows.size());
      }
    } catch (const Error&) {
      row.fits = false;
    }
    v.rows.push_back(row);
  }
  std::vector<double> errors, measured, predicted, regrets, measured_gib, predicted_gib;
  for (const ValidatedRow& row : v.rows)
    if (row.predicted_ms > 0)
      errors.push_back(std::abs(row.error())), measured.push_back(row.measured_ms),
          predicted.push_back(row.predicted_ms);
  for (const ValidatedRow& row : v.rows)
    if (row.measured_gib > 0 && row.predicted_gib > 0)
      measured_gib.push_back(row.measured_gib), predicted_gib.push_back(row.predicted_gib);
  v.memory_correlation = rank_correlation(measured_gib, predicted_gib);
  v.mean_error = mean_of(errors);
  std::sort(errors.begin(), errors.end());
  if (!errors.empty()) v.median_error = (errors[errors.size() / 2] + errors[(errors.size() - 1) / 2]) / 2;
  v.rank_correlation = rank_correlation(measured, predicted);
  for (const auto& [key, rows] : choices) {
    size_t fastest = rows[0], chosen = rows[0];
    const auto rank = [&](size_t i) { return std::pair{!v.rows[i].fits, v.rows[i].predicted_ms}; };
    for (const size_t i : rows) {
      if (v.rows[i].measured_ms < v.rows[fastest].measured_ms) fastest = i;
      if (rank(i) < rank(chosen)) chosen = i;
    }
    regrets.push_back(v.rows[chosen].measured_ms / v.rows[fastest].measured_ms - 1);
  }
  v.regret = mean_of(regrets);
  return v;
}

}  // namespace llm
