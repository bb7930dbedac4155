// The text form of a graph, for reading in a terminal.
#include <algorithm>
#include <cstdio>
#include <ostream>
#include <set>
#include <utility>

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

struct Column {
  const char* name;
  bool right = false;  // aligned
  size_t least = 0;    // where there is no room it is cut to so many characters; 0: it is not cut
  int leaves = 0;      // and then left out, those with 1 first; 0: it stays
};

// Columns are as wide as their widest cell, or as there is room for. A row of a single cell is a line of text across all
// columns.
class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {
    for (const Column& c : columns_) widths_.push_back(std::string_view(c.name).size());
  }
  void add(std::vector<std::string> row) {
    for (size_t i = 0; i < row.size(); ++i) widths_[i] = std::max(widths_[i], row[i].size());
    rows_.push_back(std::move(row));
  }
  void add_line(std::string text) { rows_.push_back({std::move(text)}); }

  void print(std::ostream& out, size_t room) {
    if (room > 0) fit(room);
    std::vector<std::string> names;
    for (const Column& c : columns_) names.push_back(c.name);
    print_row(out, names);
    for (const auto& row : rows_) row.size() > 1 ? print_row(out, row) : print_line(out, row[0], room);
  }

 private:
  static constexpr size_t kGap = 2;

  size_t total() const {
    size_t sum = 0;
    for (const size_t width : widths_) sum += width ? width + kGap : 0;
    return sum - kGap;
  }
  void fit(size_t room) {
    const std::vector<size_t> wanted = widths_;
    for (size_t i = columns_.size(); i-- > 0 && total() > room;)
      if (const size_t least = columns_[i].least; least && widths_[i] > least)
        widths_[i] -= std::min(widths_[i] - least, total() - room);
    for (int next = 1; total() > room; ++next) {
      const auto leaves = [&](const Column& c) { return c.leaves == next; };
      const auto found = std::find_if(columns_.begin(), columns_.end(), leaves);
      if (found == columns_.end()) return;
      widths_[static_cast<size_t>(found - columns_.begin())] = 0;
    }
    // What a column took that was left out is for those that were cut.
    for (size_t i = 0; i < columns_.size(); ++i)
      if (widths_[i]) widths_[i] += std::min(wanted[i] - widths_[i], room - total());
  }
  void print_row(std::ostream& out, const std::vector<std::string>& row) const {
    std::string line;
    for (size_t i = 0; i < columns_.size(); ++i) {
      const size_t width = widths_[i];
      if (width == 0) continue;
      std::string cell = i < row.size() ? row[i] : "";
      if (cell.size() > width) cell.replace(width - 1, cell.npos, "~");
      const std::string padding(width - cell.size(), ' ');
      line += (line.empty() ? "" : std::string(kGap, ' ')) + (columns_[i].right ? padding + cell : cell + padding);
    }
    print_line(out, line, 0);
  }
  static void print_line(std::ostream& out, std::string line, size_t room) {
    if (room > 0 && line.size() > room) line.resize(room);
    line.erase(line.find_last_not_of(' ') + 1);
    out << line << "\n";
  }

  std::vector<Column> columns_;
  std::vector<size_t> widths_;  // 0: left out
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
    if (const size_t bytes = persistent_bytes(c, role)) {
      out << separator << name_of(role) << " " << format_bytes(bytes);
      separator = ", ";
    }
  if (c.host_bytes)
    out << "; " << format_bytes(c.host_bytes) << (c.target.cuda ? " more" : " of it") << " in the host's memory";
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
  if (const double sent = bytes_sent_of(g))
    out << "sent        " << format_bytes(static_cast<size_t>(sent)) << " to other ranks\n";
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
                                  node.op->name,
                                  format("%.3f", cost.flops * 1e-9),
                                  format("%.2f", mebibytes(cost.bytes_read)),
                                  format("%.2f", mebibytes(cost.bytes_written))};
  const std::string description = describe(node);
  std::string attributes = description.substr(std::min(description.find(' '), description.size() - 1) + 1);
  for (TensorId id : node.outputs) {
    if (id == kNone) continue;
    const Tensor& t = c.graph.tensor(id);
    // State that a node updates besides its first output (moments beside the parameter) would only lengthen the table.
    if (t.role == Role::state && id != first_output(node)) continue;
    row.insert(row.end(),
               {t.name, t.shape.text(), lifetime_text(c, id), place_text(c, id), std::exchange(attributes, "")});
    table.add(row);
    row.assign(7, "");
  }
}

void print_nodes(std::ostream& out, const Compiled& c, const DumpOptions& options) {
  const std::vector<FoldedLayers> folded = options.all ? std::vector<FoldedLayers>{} : fold_layers(c.graph);
  const auto runs = runs_by_node(c.graph, folded);
  Table table({{"node", true},
               {"phase", false, 0, 5},
               {"layer"},
               {"op", false, 14},
               {"GFLOP", true, 0, 7},
               {"read MiB", true, 0, 2},
               {"written", true, 0, 3},
               {"output", false, 18},
               {"shape", false, 10},
               {"lives", false, 0, 4},
               {"at MiB", true, 0, 6},
               {"attributes", false, 10, 1}});
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
  table.print(out, options.width);
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
