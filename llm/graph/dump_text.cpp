// The text form of a graph, for reading in a terminal.
#include <algorithm>
#include <cstdio>
#include <ostream>
#include <set>

#include "llm/base/bytes.h"
#include "llm/graph/dump.h"

namespace llm {
namespace {

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

double mebibytes(double bytes) { return bytes / (1 << 20); }

const MemoryPlan::Lifetime& lifetime_of(const Compiled& c, TensorId id) {
  return c.plan.lifetimes[static_cast<size_t>(id)];
}

// Columns are as wide as their widest cell. A row of a single cell is a line of text across all columns.
class Table {
 public:
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void add_line(std::string text) { rows_.push_back({std::move(text)}); }
  void print(std::ostream& out, const std::string& left_aligned) const {
    std::vector<size_t> widths(left_aligned.size(), 0);
    for (const auto& row : rows_)
      if (row.size() > 1)
        for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    for (const auto& row : rows_) {
      std::string line;
      for (size_t i = 0; i < row.size(); ++i) {
        const std::string padding(row.size() > 1 ? widths[i] - row[i].size() : 0, ' ');
        line += (i ? "  " : "") + (left_aligned[i] == 'l' ? row[i] + padding : padding + row[i]);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      out << line << "\n";
    }
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

void print_header(std::ostream& out, const Compiled& c) {
  const Graph& g = c.graph;
  size_t used = 0;
  for (size_t i = 0; i < g.tensors.size(); ++i) used += lifetime_of(c, static_cast<TensorId>(i)).first >= 0;
  out << "graph       " << g.nodes.size() << " nodes, " << used << " tensors\n";
  out << "persistent  " << format_bytes(c.persistent_bytes);
  const char* separator = ": ";
  for (Role role : {Role::parameter, Role::accumulator, Role::state})
    if (const size_t bytes = persistent_bytes(g, role)) {
      out << separator << name_of(role) << " " << format_bytes(bytes);
      separator = ", ";
    }
  out << "\ntransient   " << format_bytes(c.plan.bytes) << " with sharing, " << format_bytes(c.plan.unshared_bytes)
      << " without; " << c.plan.in_place << " outputs in place of an input\n";
  out << "together    " << format_bytes(c.persistent_bytes + c.plan.bytes) << "\nper run     ";
  double total = 0;
  std::string parts;
  for (Phase phase : kPhases)
    if (const double flops = flops_of(g, phase)) {
      total += flops;
      parts += (parts.empty() ? ": " : ", ") + std::string(name_of(phase)) + format(" %.3f", flops * 1e-9);
    }
  out << format("%.3f GFLOP", total * 1e-9) << parts << "\n";
  for (const PassReport& r : c.reports)
    out << format("%-14s  %zu -> %zu nodes", r.pass.c_str(), r.nodes_before, r.nodes_after)
        << (r.detail.empty() ? "" : ": " + r.detail) << "\n";
}

std::string lifetime_text(const Compiled& c, TensorId id) {
  const auto [first, last] = lifetime_of(c, id);
  return format("[%d, %d]", first, last);
}

std::string place_text(const Compiled& c, TensorId id) {
  const size_t offset = c.plan.offsets[static_cast<size_t>(id)];
  return offset == MemoryPlan::kNowhere ? name_of(c.graph.tensor(id).role)
                                        : format("%.2f", mebibytes(static_cast<double>(offset)));
}

void add_node(Table& table, const Compiled& c, size_t index) {
  const Node& node = c.graph.nodes[index];
  const Cost cost = cost_of(c.graph, node);
  const int layer = layer_of(c.graph, node);
  std::vector<std::string> row = {std::to_string(index),
                                  name_of(node.phase),
                                  layer < 0 ? "" : std::to_string(layer),
                                  describe(node),
                                  format("%.3f", cost.flops * 1e-9),
                                  format("%.2f", mebibytes(cost.bytes_read)),
                                  format("%.2f", mebibytes(cost.bytes_written))};
  for (TensorId id : node.outputs) {
    if (id == kNone) continue;
    const Tensor& t = c.graph.tensor(id);
    // State that a node updates besides its first output (moments beside the parameter) would only lengthen the table.
    if (t.role == Role::state && id != first_output(node)) continue;
    row.insert(row.end(), {t.name, t.shape.text(), lifetime_text(c, id), place_text(c, id)});
    table.add(row);
    row.assign(7, "");
  }
}

void print_nodes(std::ostream& out, const Compiled& c, const DumpOptions& options) {
  const std::vector<FoldedLayers> folded = options.all ? std::vector<FoldedLayers>{} : fold_layers(c.graph);
  const auto runs = runs_by_node(c.graph, folded);
  Table table;
  table.add({"node", "phase", "layer", "op", "GFLOP", "read MiB", "written", "output", "shape", "lives", "at MiB"});
  std::set<const FoldedLayers*> mentioned;
  for (size_t i = 0; i < c.graph.nodes.size(); ++i) {
    if (!runs[i]) {
      add_node(table, c, i);
    } else if (mentioned.insert(runs[i]).second) {
      Cost sum;
      for (size_t n : runs[i]->nodes) {
        const Cost cost = cost_of(c.graph, c.graph.nodes[n]);
        sum.flops += cost.flops, sum.bytes_read += cost.bytes_read, sum.bytes_written += cost.bytes_written;
      }
      table.add_line("      ... " + runs[i]->text() +
                     format(": %zu nodes, %.3f GFLOP, %.2f MiB read, %.2f written", runs[i]->nodes.size(),
                            sum.flops * 1e-9, mebibytes(sum.bytes_read), mebibytes(sum.bytes_written)));
    }
  }
  table.print(out, "rlllrrrlllr");
}

// A curve of the live transient memory, node by node. A column that stands for several nodes shows their maximum.
void print_curve(std::ostream& out, const Compiled& c) {
  constexpr const char* kEighths[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  constexpr size_t kColumns = 60, kRows = 12;
  const std::vector<size_t>& live = c.plan.live;
  if (live.empty()) return;
  const size_t peak_node = static_cast<size_t>(std::max_element(live.begin(), live.end()) - live.begin());
  const size_t peak = live[peak_node];
  if (peak == 0) return;
  const size_t columns = std::min(kColumns, live.size());
  std::vector<size_t> most(columns, 0);
  std::vector<Phase> phases(columns);
  for (size_t i = 0; i < live.size(); ++i) {
    const size_t column = i * columns / live.size();
    most[column] = std::max(most[column], live[i]);
    phases[column] = c.graph.nodes[i].phase;
  }
  const Node& node = c.graph.nodes[peak_node];
  out << "transient memory, node by node; peak " << format_bytes(peak) << " at node " << peak_node << " ("
      << node.op->name;
  if (const TensorId id = first_output(node); id != kNone) out << " -> " << c.graph.tensor(id).name;
  out << ")\n";
  for (size_t row = kRows; row-- > 0;) {
    std::string line;
    for (size_t bytes : most) {
      const size_t eighths = (bytes * kRows * 8 + peak - 1) / peak;  // rounded up, so that any memory at all is seen
      line += kEighths[std::min<size_t>(8, eighths > row * 8 ? eighths - row * 8 : 0)];
    }
    const bool labelled = row + 1 == kRows || row == kRows / 2 - 1;
    out << format("%10s ", labelled ? format_bytes(peak * (row + 1) / kRows).c_str() : "") << "│" << line << "\n";
  }
  out << "           └";
  for (size_t i = 0; i < columns; ++i) out << "─";
  std::string names(columns, ' ');
  for (size_t i = 0; i < columns; ++i) {
    if (i && phases[i] == phases[i - 1]) continue;
    const std::string name = "|" + std::string(name_of(phases[i]));
    names.replace(i, std::min(name.size(), columns - i), name, 0, columns - i);
  }
  out << "\n            " << names << "\n";
}

}  // namespace

void dump_text(std::ostream& out, const Compiled& compiled, const DumpOptions& options) {
  print_header(out, compiled);
  out << "\n";
  print_nodes(out, compiled, options);
  out << "\n";
  print_curve(out, compiled);
}

}  // namespace llm
