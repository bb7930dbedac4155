// The dumps of a graph: they can be parsed, their sums are those of the plan, and folding hides only layers that are
// the same. And sizes of memory as people write them.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "llm/base/bytes.h"
#include "llm/graph/dump.h"
#include "llm/model/gpt.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;
using nlohmann::json;

namespace {

ModelConfig config_of_layers(int64_t layers) {
  ModelConfig c;
  c.vocabulary = 29, c.context = 16, c.layers = layers, c.heads = c.kv_heads = 2, c.channels = 16, c.head_size = 8,
  c.hidden = 24;
  return c;
}

Compiled compile_training(int64_t layers, const CompileOptions& options = {}) {
  TrainingGraph t = build_training_graph(config_of_layers(layers), 2, 16, {});
  return compile(std::move(t.graph), t.results(), {.threads = 2}, options);
}

std::string text_of(const Compiled& c, bool all = false) {
  std::ostringstream out;
  dump_text(out, c, {.all = all});
  return out.str();
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

}  // namespace

TEST_CASE("dump: the JSON parses and its sums are the plan's") {
  for (const bool fuse : {true, false}) {
    const Compiled c = compile_training(3, {.fuse = fuse});
    std::ostringstream out;
    dump_json(out, c);
    const json root = json::parse(out.str());
    REQUIRE(root["nodes"].size() == c.graph.nodes.size());
    REQUIRE(root["tensors"].size() == c.graph.tensors.size());

    const json& memory = root["memory"];
    size_t persistent = 0;
    for (const json& bytes : memory["persistent"]) persistent += bytes.get<size_t>();
    CHECK(persistent == c.persistent_bytes);
    CHECK(memory["persistent_bytes"] == c.persistent_bytes);
    CHECK(memory["transient_bytes"] == c.plan.bytes);
    REQUIRE(memory["live_bytes"].size() == c.graph.nodes.size());

    std::map<std::string, double> flops;
    for (const json& node : root["nodes"]) {
      flops[node["phase"]] += node["flops"].get<double>();
      for (const json& id : node["inputs"]) CHECK((id.is_null() || id.get<size_t>() < c.graph.tensors.size()));
    }
    for (const char* phase : {"forward", "backward", "optimizer"}) {
      CHECK(flops[phase] > 0);
      CHECK(root["flops"][phase].get<double>() == doctest::Approx(flops[phase]).epsilon(1e-12));
    }
    size_t end = 0;
    for (const json& tensor : root["tensors"])
      if (tensor.contains("offset"))
        end = std::max(end, tensor["offset"].get<size_t>() + tensor["bytes"].get<size_t>());
    CHECK(end <= c.plan.bytes);
    CHECK(end + 256 > c.plan.bytes);
  }
}

TEST_CASE("dump: the tensors of the JSON that live at one time do not overlap") {
  const Compiled c = compile_training(2);
  std::ostringstream out;
  dump_json(out, c);
  const json root = json::parse(out.str());
  std::vector<std::array<size_t, 4>> places;  // offset, end, first, last
  for (const json& t : root["tensors"])
    if (t.contains("offset") && t.contains("lifetime"))
      places.push_back(
          {t["offset"], t["offset"].get<size_t>() + t["bytes"].get<size_t>(), t["lifetime"][0], t["lifetime"][1]});
  int overlaps = 0;
  for (const auto& a : places)
    for (const auto& b : places) {
      // A tensor may lie in the place of another whose use ends where its own begins.
      const bool same_place = a[0] == b[0] && (a[3] == b[2] || b[3] == a[2] || (a[2] == b[2] && a[3] == b[3]));
      if (!same_place && a[0] < b[1] && b[0] < a[1] && a[2] <= b[3] && b[2] <= a[3]) ++overlaps;
    }
  CHECK(overlaps == 0);
}

TEST_CASE("dump: the text names what matters") {
  const Compiled c = compile_training(5);
  const std::string text = text_of(c);
  for (const char* part : {"persistent", "with sharing", "GFLOP", "fusion", "dead code", "head_loss", "layers.0.mlp_in",
                           "forward", "backward", "optimizer", "[0, ", "peak ", "█"})
    CHECK_MESSAGE(has(text, part), part);
  const auto peak = static_cast<size_t>(std::max_element(c.plan.live.begin(), c.plan.live.end()) - c.plan.live.begin());
  CHECK(has(text, "at node " + std::to_string(peak) + " "));
  CHECK(has(text, format_bytes(c.persistent_bytes)));
  // The memory curve has 12 rows, and no more columns than a terminal.
  const auto lines = lines_of(text);
  CHECK(std::count_if(lines.begin(), lines.end(), [](const std::string& l) { return has(l, "│"); }) == 12);
}

TEST_CASE("dump: repeated layers are folded, and every node is either shown or folded") {
  const Compiled c = compile_training(6);
  const auto folded = fold_layers(c.graph);
  REQUIRE_FALSE(folded.empty());
  std::set<size_t> hidden;
  for (const FoldedLayers& f : folded) {
    CHECK(f.last > f.shown);
    // Each hidden layer has as many nodes as the shown one.
    const auto shown = std::count_if(c.graph.nodes.begin(), c.graph.nodes.end(), [&](const Node& node) {
      return node.phase == f.phase && layer_of(c.graph, node) == f.shown;
    });
    CHECK(static_cast<long>(f.nodes.size()) == shown * (f.last - f.shown));
    for (size_t i : f.nodes) CHECK(hidden.insert(i).second);
  }
  const std::string text = text_of(c), whole = text_of(c, true);
  // The first layer has no sum in front of it and the last one no norm behind it: others stand for the rest.
  CHECK(has(text, "layers 2 to 5 as layer 1: "));
  CHECK(has(text, "layers 1 to 4 as layer 0: "));
  CHECK_FALSE(has(text, "layers.3.mlp_in "));
  CHECK(has(whole, "layers.3.mlp_in "));
  CHECK_FALSE(has(whole, "as layer"));
  for (size_t i = 0; i < c.graph.nodes.size(); ++i) {
    const auto lines = lines_of(whole);
    const std::string index = std::to_string(i) + "  ";
    CHECK(std::any_of(lines.begin(), lines.end(), [&](const std::string& line) {
      return line.find_first_not_of(' ') == line.find(index) && line.find(index) != line.npos;
    }));
  }
  CHECK(fold_layers(compile_training(1).graph).empty());
}

TEST_CASE("dump: the layers of a partly recomputed graph are not folded into others") {
  const Compiled free = compile_training(6);
  const Compiled c = compile_training(6, {.memory_budget = free.persistent_bytes + free.plan.bytes * 7 / 10});
  REQUIRE(c.recomputation.level != Recompute::none);
  CHECK(has(text_of(c), "recomputation"));
  for (const FoldedLayers& f : fold_layers(c.graph))
    if (f.phase == Phase::backward && c.recomputation.layers < 6)
      CHECK((f.last < c.recomputation.layers || f.shown >= c.recomputation.layers));
}

TEST_CASE("dump: the DOT is balanced and its edges join boxes that are there") {
  const Compiled c = compile_training(4);
  for (const bool all : {false, true}) {
    std::ostringstream out;
    dump_dot(out, c, {.all = all});
    const std::string dot = out.str();
    int depth = 0;
    bool quote = false;
    for (size_t i = 0; i < dot.size(); ++i) {
      if (dot[i] == '"' && (i == 0 || dot[i - 1] != '\\')) quote = !quote;
      if (quote) continue;
      depth += dot[i] == '{' ? 1 : dot[i] == '}' ? -1 : 0;
      CHECK(depth >= 0);
    }
    CHECK(depth == 0);
    CHECK_FALSE(quote);
    CHECK(dot.starts_with("digraph "));
    CHECK(has(dot, "cluster_layer0"));
    CHECK(has(dot, "as layer") != all);
    std::set<std::string> boxes;
    size_t edges = 0;
    for (const std::string& line : lines_of(dot)) {
      std::istringstream words(line);
      std::string from, second, to;
      words >> from >> second >> to;
      if (second == "->") {
        ++edges;
        CHECK_MESSAGE(boxes.contains(from), line);
        CHECK_MESSAGE(boxes.contains(to), line);
      } else if (second.starts_with("[")) {
        CHECK(boxes.insert(from).second);
      }
    }
    CHECK(edges > 0);
    if (all) CHECK(boxes.size() >= c.graph.nodes.size());
  }
}

TEST_CASE("bytes: sizes that people write") {
  CHECK(parse_bytes("0") == 0);
  CHECK(parse_bytes("4096") == 4096);
  CHECK(parse_bytes("17B") == 17);
  CHECK(parse_bytes("1KiB") == 1024);
  CHECK(parse_bytes("1kb") == 1000);
  CHECK(parse_bytes("512MiB") == size_t{512} << 20);
  CHECK(parse_bytes("20GiB") == size_t{20} << 30);
  CHECK(parse_bytes("20 gib") == size_t{20} << 30);
  CHECK(parse_bytes("1.5GB") == 1500000000);
  CHECK(parse_bytes(".5TiB") == size_t{1} << 39);
  CHECK(parse_bytes("2TB") == 2000000000000);
  for (const char* wrong : {"", "GiB", "-1", "-0", "20G", "20GiBs", "1e3", "nan", "inf", "0x10", "1,5GB", "20 Gi B B",
                            "9999999TiB", " 5", "+5", "5%"})
    CHECK_THROWS_AS_MESSAGE(parse_bytes(wrong), UsageError, wrong);
}

TEST_CASE("bytes: sizes that people read") {
  CHECK(format_bytes(0) == "0 B");
  CHECK(format_bytes(1023) == "1023 B");
  CHECK(format_bytes(1024) == "1.00 KiB");
  CHECK(format_bytes(size_t{10} << 20) == "10.0 MiB");
  CHECK(format_bytes(size_t{1023} << 20) == "1023 MiB");
  CHECK(format_bytes(size_t{3} << 29) == "1.50 GiB");
  CHECK(format_bytes(size_t{5000} << 40) == "5000 TiB");
}

TEST_CASE("dump: the table fits a terminal of any width, and loses nothing where there is none") {
  const Compiled c = compile_training(3);
  const auto table = [&](size_t width) {
    std::ostringstream out;
    dump_text(out, c, {.width = width});
    std::vector<std::string> lines;
    for (const std::string& line : lines_of(out.str()))
      if (!lines.empty() || line.starts_with("node  ")) lines.push_back(line);
    const auto end = std::find(lines.begin(), lines.end(), "");
    return std::vector<std::string>(lines.begin(), end);
  };
  const std::vector<std::string> whole = table(0);
  CHECK(has(whole[0], "attributes"));
  const auto holds = [&](const std::string& part) {
    return std::any_of(whole.begin(), whole.end(), [&](const std::string& line) { return has(line, part); });
  };
  CHECK(holds("tokens=16 head_size="));
  CHECK(holds("layers.0.attention.log_sum_exp"));
  CHECK_FALSE(holds("~"));
  for (const size_t width : {200, 160, 120, 100, 80, 60}) {
    CAPTURE(width);
    const std::vector<std::string> lines = table(width);
    CHECK(lines.size() == whole.size());
    size_t longest = 0;
    for (const std::string& line : lines) longest = std::max(longest, line.size());
    CHECK(longest <= width);
    CHECK(longest >= width * 3 / 5);  // the room is used
    CHECK(has(lines[0], "op "));
    CHECK(has(lines[0], "shape"));
    CHECK(has(lines[0], "written") == (width >= 120));
  }
}
