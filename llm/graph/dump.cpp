#include "llm/graph/dump.h"
#include "llm/base/json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <map>
#include <ostream>
#include <set>

namespace llm {
namespace {

constexpr std::array kPersistentRoles = {Role::parameter, Role::accumulator, Role::state};

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

std::string text_of(const Attributes::Value& value) {
  if (const auto* number = std::get_if<double>(&value)) return format("%.10g", *number);
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "yes" : "no";
  if (const auto* whole = std::get_if<int64_t>(&value)) return std::to_string(*whole);
  std::string list;
  if (const auto* numbers = std::get_if<std::vector<double>>(&value)) {
    for (const double v : *numbers) list += (list.empty() ? "" : ",") + format("%.10g", v);
    return list;
  }
  for (const int64_t v : std::get<std::vector<int64_t>>(value)) list += (list.empty() ? "" : ",") + std::to_string(v);
  return list;
}

// A flag that is off or a number that is 0 goes without saying.
bool says_nothing(const Attributes::Value& value) {
  return value == Attributes::Value(false) || value == Attributes::Value(0.0) || value == Attributes::Value(0);
}

// Everything about a node except names: equal for corresponding nodes of layers that are alike.
std::string signature(const Graph& g, const Node& node) {
  std::string text = node.op->name;
  for (auto& [key, value] : node.attributes.all()) text += " " + key + text_of(value);
  const auto tensor = [&](TensorId id) {
    text += id == kNone ? " -" : " " + std::string(name_of(g.tensor(id).role)) + g.shape(id).text();
  };
  for (TensorId id : node.inputs) tensor(id);
  text += " ->";
  for (TensorId id : node.outputs) tensor(id);
  return text + ";";
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (char ch : text) {
    if (ch == '"' || (ch == '\\')) result += '\\';
    result += ch;
  }
  return result + "\"";
}

const char* colour_of(Phase phase) {
  return phase == Phase::forward ? "#cfe8cf" : phase == Phase::backward ? "#f6d5c3" : "#d3dcf2";
}

class DotWriter {
 public:
  DotWriter(std::ostream& out, const Compiled& c, const DumpOptions& options)
      : out_(out), c_(c), folded_(options.all ? std::vector<FoldedLayers>{} : fold_layers(c.graph)) {
    const auto runs = runs_by_node(c.graph, folded_);
    for (size_t i = 0; i < runs.size(); ++i)
      ids_.push_back(runs[i] ? "folded" + std::to_string(runs[i] - folded_.data()) : "node" + std::to_string(i));
  }

  void write() {
    const Graph& g = c_.graph;
    out_ << "digraph graph_of_a_run {\n  rankdir=TB;\n"
            "  node [shape=box, style=\"filled,rounded\", fontname=\"Helvetica\", fontsize=10];\n"
            "  edge [fontname=\"Helvetica\", fontsize=8, color=\"#606060\"];\n";
    // Each phase of a layer is a cluster: one cluster for all phases would tie the ends of the graph together.
    std::map<std::pair<Phase, int>, std::vector<size_t>> layers;
    for (size_t i = 0; i < g.nodes.size(); ++i)
      if (ids_[i][0] == 'n') layers[{g.nodes[i].phase, layer_of(g, g.nodes[i])}].push_back(i);
    for (auto& [key, nodes] : layers) {
      const auto [phase, layer] = key;
      if (layer >= 0)
        out_ << "  subgraph cluster_layer" << layer << "_" << name_of(phase) << " {\n    label=\"layer " << layer
             << ", " << name_of(phase) << "\"; color=\"#a0a0a0\";\n";
      for (size_t i : nodes) box(ids_[i], node_label(g.nodes[i]), colour_of(g.nodes[i].phase));
      if (layer >= 0) out_ << "  }\n";
    }
    for (size_t f = 0; f < folded_.size(); ++f)
      box("folded" + std::to_string(f), folded_[f].text() + "\n" + std::to_string(folded_[f].nodes.size()) + " nodes",
          colour_of(folded_[f].phase));
    edges();
    out_ << "}\n";
  }

 private:
  void box(const std::string& id, const std::string& label, const char* colour) {
    std::string text = quoted(label);
    for (size_t at; (at = text.find('\n')) != text.npos;) text.replace(at, 1, "\\n");
    out_ << "    " << id << " [label=" << text << ", fillcolor=\"" << colour << "\"];\n";
  }

  std::string node_label(const Node& node) const {
    const TensorId id = first_output(node);
    return describe(node) + "\n" + (id == kNone ? "" : c_.graph.tensor(id).name + "\n") +
           format("%.3f GFLOP", cost_of(c_.graph, node).flops * 1e-9);
  }

  // Edges lead from the writer of each tensor to its readers. Persistent tensors have none: they would tie each
  // parameter's gradient to the norm of all gradients and to its optimizer step, more edges than Graphviz can lay out.
  void edges() {
    const Graph& g = c_.graph;
    std::vector<std::string> writer(g.tensors.size());
    std::set<std::string> drawn;
    for (size_t i = 0; i < g.nodes.size(); ++i) {
      for (TensorId id : g.nodes[i].inputs) {
        if (id == kNone) continue;
        const Tensor& t = g.tensor(id);
        if (is_persistent(t.role)) continue;
        std::string& from = writer[static_cast<size_t>(id)];
        if (from.empty() && t.role == Role::input) {
          from = "input" + std::to_string(id);
          out_ << "  " << from
               << " [shape=ellipse, fillcolor=\"#eeeeee\", label=" << quoted(t.name + " " + t.shape.text()) << "];\n";
        }
        if (from.empty() || from == ids_[i] || !drawn.insert(from + ">" + ids_[i]).second) continue;
        out_ << "  " << from << " -> " << ids_[i] << " [label=" << quoted(t.shape.text()) << "];\n";
      }
      for (TensorId id : g.nodes[i].outputs)
        if (id != kNone) writer[static_cast<size_t>(id)] = ids_[i];
    }
  }

  std::ostream& out_;
  const Compiled& c_;
  std::vector<FoldedLayers> folded_;
  std::vector<std::string> ids_;  // by node
};

}  // namespace

size_t persistent_bytes(const Compiled& c, Role role) {
  size_t bytes = 0;
  for (const Tensor& t : c.graph.tensors)
    if (t.role == role && t.alias == kNone && !(c.target.cuda && t.on_host)) bytes += placed_bytes(t.storage_bytes());
  return bytes;
}

double bytes_sent_of(const Graph& g) {
  double bytes = 0;
  for (const Node& node : g.nodes) bytes += cost_of(g, node).bytes_sent;
  return bytes;
}

double flops_of(const Graph& g, Phase phase) {
  double flops = 0;
  for (const Node& node : g.nodes)
    if (node.phase == phase) flops += cost_of(g, node).flops;
  return flops;
}

TensorId first_output(const Node& node) {
  for (TensorId id : node.outputs)
    if (id != kNone) return id;
  return kNone;
}

Cost cost_of(const Graph& graph, const Node& node) { return node.op->cost ? node.op->cost(graph, node) : Cost{}; }

std::string describe(const Node& node) {
  std::string text = node.op->name;
  for (auto& [key, value] : node.attributes.all()) {
    // Of AdamW's settings, which differ little from node to node, only the decay is shown.
    if ((std::string_view(node.op->name) == "adamw" && key != "weight_decay") || key == "epsilon" ||
        says_nothing(value))
      continue;
    if (key == "kv_heads" && node.attributes.integer(key) == node.attributes.integer("heads", 0)) continue;
    if (key == "activation")
      text += concat(" activation=", name_of(static_cast<ActivationKind>(node.attributes.integer(key))));
    else
      text += " " + key + (std::holds_alternative<bool>(value) ? "" : "=" + text_of(value));
  }
  return text;
}

int layer_of(const Graph& graph, const Node& node) {
  const TensorId id = first_output(node);
  if (node.layer >= 0 || id == kNone) return node.layer;
  constexpr std::string_view kPrefix = "layers.";  // with which the parameter table's names of a block begin
  const std::string& name = graph.tensor(id).name;
  int layer = -1;
  if (name.starts_with(kPrefix)) std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  return layer;
}

std::string FoldedLayers::text() const {
  const std::string like = " as layer " + std::to_string(shown);
  if (last == shown + 1) return "layer " + std::to_string(last) + like;
  return "layers " + std::to_string(shown + 1) + " to " + std::to_string(last) + like;
}

std::vector<FoldedLayers> fold_layers(const Graph& graph) {
  struct Layer {
    std::string signature;
    std::vector<size_t> nodes;
  };
  std::vector<FoldedLayers> result;
  for (Phase phase : kPhases) {
    std::map<int, Layer> layers;
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      const Node& node = graph.nodes[i];
      const int number = node.phase == phase ? layer_of(graph, node) : -1;
      if (number < 0) continue;
      layers[number].signature += signature(graph, node);
      layers[number].nodes.push_back(i);
    }
    const Layer* before = nullptr;
    for (auto& [number, layer] : layers) {
      const bool same = before && before->signature == layer.signature;
      if (same && (result.empty() || result.back().phase != phase || result.back().last != number - 1))
        result.push_back({phase, number - 1, number, {}});
      if (same) {
        result.back().last = number;
        result.back().nodes.insert(result.back().nodes.end(), layer.nodes.begin(), layer.nodes.end());
      }
      before = &layer;
    }
  }
  for (FoldedLayers& f : result) std::sort(f.nodes.begin(), f.nodes.end());
  return result;
}

std::vector<const FoldedLayers*> runs_by_node(const Graph& g, const std::vector<FoldedLayers>& folded) {
  std::vector<const FoldedLayers*> runs(g.nodes.size(), nullptr);
  for (const FoldedLayers& f : folded)
    for (size_t i : f.nodes) runs[i] = &f;
  return runs;
}

void dump_dot(std::ostream& out, const Compiled& compiled, const DumpOptions& options) {
  DotWriter(out, compiled, options).write();
}

void dump_json(std::ostream& out, const Compiled& c) {
  const Graph& g = c.graph;
  Json root;
  for (Role role : kPersistentRoles) root["memory"]["persistent"][name_of(role)] = persistent_bytes(c, role);
  root["memory"]["persistent_bytes"] = c.persistent_bytes;
  root["memory"]["host_bytes"] = c.host_bytes;
  root["memory"]["transient_bytes"] = c.plan.bytes;
  root["memory"]["unshared_bytes"] = c.plan.unshared_bytes;
  root["memory"]["in_place"] = c.plan.in_place;
  root["memory"]["live_bytes"] = c.plan.live;
  root["recomputation"] = {{"level", name_of(c.recomputation.level)}, {"layers", c.recomputation.layers}};
  root["bytes_sent"] = bytes_sent_of(g);
  for (Phase phase : kPhases) root["flops"][name_of(phase)] = flops_of(g, phase);
  root["passes"] = Json::array();
  for (const PassReport& r : c.reports)
    root["passes"].push_back(
        {{"pass", r.pass}, {"nodes_before", r.nodes_before}, {"nodes_after", r.nodes_after}, {"detail", r.detail}});
  root["tensors"] = Json::array();
  for (size_t i = 0; i < g.tensors.size(); ++i) {
    const Tensor& t = g.tensors[i];
    Json shape = Json::array();
    for (int d = 0; d < t.shape.rank(); ++d) shape.push_back(t.shape[d]);
    Json tensor = {{"id", i},        {"name", t.name},          {"dtype", name_of(t.dtype)},
                   {"shape", shape}, {"role", name_of(t.role)}, {"bytes", t.storage_bytes()}};
    if (t.alias != kNone) tensor["alias"] = t.alias;
    // A tensor that no node uses any more has neither a lifetime nor an offset.
    if (const auto [first, last] = c.plan.lifetimes[i]; first >= 0) tensor["lifetime"] = {first, last};
    if (const size_t offset = c.plan.offsets[i]; offset != MemoryPlan::kNowhere) tensor["offset"] = offset;
    root["tensors"].push_back(std::move(tensor));
  }
  root["nodes"] = Json::array();
  for (size_t i = 0; i < g.nodes.size(); ++i) {
    const Node& node = g.nodes[i];
    const Cost cost = cost_of(g, node);
    Json attributes = Json::object();
    for (auto& [key, value] : node.attributes.all())
      std::visit([&, &name = key](const auto& held) { attributes[name] = held; }, value);
    const auto ids = [](const std::vector<TensorId>& tensors) {
      Json list = Json::array();
      for (TensorId id : tensors) list.push_back(id == kNone ? Json() : Json(id));
      return list;
    };
    root["nodes"].push_back({{"index", i},
                             {"op", node.op->name},
                             {"phase", name_of(node.phase)},
                             {"layer", layer_of(g, node)},
                             {"attributes", attributes},
                             {"inputs", ids(node.inputs)},
                             {"outputs", ids(node.outputs)},
                             {"workspace", node.workspace == kNone ? Json() : Json(node.workspace)},
                             {"flops", cost.flops},
                             {"bytes_read", cost.bytes_read},
                             {"bytes_written", cost.bytes_written}});
  }
  out << root.dump(1) << "\n";
}

}  // namespace llm
