#include "llm/device/hardware.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "llm/base/error.h"
#include "llm/base/json.h"

namespace llm {
namespace {

struct Number {
  const char* key;
  double Hardware::*place;
  bool needed = false;
};
constexpr std::array kNumbers = {Number{"memory_gib", &Hardware::memory_gib, true},
                                 Number{"reserved_gib", &Hardware::reserved_gib},
                                 Number{"peak_tflops", &Hardware::peak_tflops, true},
                                 Number{"price", &Hardware::price},
                                 Number{"product_efficiency", &Hardware::product_efficiency, true},
                                 Number{"product_depth", &Hardware::product_depth},
                                 Number{"attention_efficiency", &Hardware::attention_efficiency, true},
                                 Number{"attention_depth", &Hardware::attention_depth},
                                 Number{"logit_ps", &Hardware::logit_ps},
                                 Number{"shared_logit_ps", &Hardware::shared_logit_ps},
                                 Number{"bandwidth_gbs", &Hardware::bandwidth_gbs, true},
                                 Number{"cached_gbs", &Hardware::cached_gbs},
                                 Number{"cache_mib", &Hardware::cache_mib},
                                 Number{"kernel_us", &Hardware::kernel_us},
                                 Number{"launch_us", &Hardware::launch_us},
                                 Number{"micro_step_ms", &Hardware::micro_step_ms},
                                 Number{"step_ms", &Hardware::step_ms},
                                 Number{"ranks_a_node", &Hardware::ranks_a_node, true},
                                 Number{"inside_gbs", &Hardware::inside_gbs, true},
                                 Number{"between_gbs", &Hardware::between_gbs, true},
                                 Number{"reduce_gbs", &Hardware::reduce_gbs},
                                 Number{"inside_latency_us", &Hardware::inside_latency_us},
                                 Number{"between_latency_us", &Hardware::between_latency_us},
                                 Number{"reduce_latency_us", &Hardware::reduce_latency_us},
                                 Number{"exchange_host_us", &Hardware::exchange_host_us},
                                 Number{"beside_messages_us", &Hardware::beside_messages_us},
                                 Number{"hidden", &Hardware::hidden},
                                 Number{"hidden_zero", &Hardware::hidden_zero},
                                 Number{"stall_nodes", &Hardware::stall_nodes},
                                 Number{"stall_divided_nodes", &Hardware::stall_divided_nodes},
                                 Number{"stall_tensor_nodes", &Hardware::stall_tensor_nodes},
                                 Number{"stall_ms", &Hardware::stall_ms},
                                 Number{"parameter_bytes", &Hardware::parameter_bytes},
                                 Number{"divided_bytes", &Hardware::divided_bytes},
                                 Number{"channel_bytes", &Hardware::channel_bytes},
                                 Number{"hidden_bytes", &Hardware::hidden_bytes},
                                 Number{"gathered_bytes", &Hardware::gathered_bytes},
                                 Number{"logit_bytes", &Hardware::logit_bytes},
                                 Number{"host_gbs", &Hardware::host_gbs}};

struct Embedded {
  const char *name, *text;
};
constexpr Embedded kDescriptions[] = {
#include "llm/device/hardware.inc"
};

void take_numbers(Hardware& h, const Json& json) {
  for (const auto& [key, place, needed] : kNumbers)
    if (json.contains(key)) h.*place = json.at(key).get<double>();
  if (!json.contains("cuts")) return;
  const auto cuts = find_value<LayerCuts>(json.at("cuts").string());
  if (!cuts) fail("\"cuts\" is none of by_cost, equal and as_they_come");
  h.cuts = *cuts;
}

Hardware parse(const Json& json, const std::string& where, bool as_published) {
  Hardware h;
  h.name = json.at("name").string();
  for (const Json& source : json["sources"]) h.sources.push_back(source.string());
  h.cuda = !json.contains("device") || json.at("device").string() != "cpu";
  take_numbers(h, json);
  if (json.contains("ops"))
    for (const auto& [op, numbers] : json.at("ops").items())
      h.ops[op] = {numbers.at("flop_ps").get<double>(), numbers.at("byte_ps").get<double>(),
                   numbers.at("node_us").get<double>()};
  if (as_published) take_numbers(h, json["published"]);
  for (const auto& [key, place, needed] : kNumbers)
    if (h.*place < 0 || (needed && h.*place == 0)) fail(where, ": \"", key, "\" must be more than 0");
  return h;
}

}  // namespace

std::vector<std::string> hardware_names() {
  std::vector<std::string> names;
  for (const Embedded& e : kDescriptions) names.emplace_back(e.name);
  return names;
}

Hardware hardware_of(const std::string& name, bool as_published) {
  for (const Embedded& e : kDescriptions)
    if (name == e.name) return parse(parse_json(e.text, name), name, as_published);
  if (!std::filesystem::exists(name)) {
    std::string all;
    for (const std::string& known : hardware_names()) all += (all.empty() ? "" : ", ") + known;
    fail_usage("--hardware ", name, " is neither a file nor one of ", all);
  }
  try {
    return parse(read_json(name), name, as_published);
  } catch (const UsageError&) {
    throw;
  } catch (const Error& e) {
    fail(name, " describes no machine: ", e.what());
  }
}

Hardware shared_by(const Hardware& cpu, int ranks) {
  Hardware h = cpu;
  h.peak_tflops /= ranks, h.bandwidth_gbs /= ranks, h.cached_gbs /= ranks, h.memory_gib /= ranks;
  for (auto& [op, time] : h.ops) time.flop_ps *= ranks, time.byte_ps *= ranks;
  h.ranks_a_node = ranks;
  return h;
}

std::string hardware_json(const Hardware& h) {
  Json json = Json::object();
  json["name"] = h.name, json["sources"] = h.sources, json["device"] = h.cuda ? "cuda" : "cpu";
  for (const auto& [key, place, needed] : kNumbers)
    if (h.*place != 0) json[key] = h.*place;
  for (const auto& [op, time] : h.ops)
    json["ops"][op] = {{"flop_ps", time.flop_ps}, {"byte_ps", time.byte_ps}, {"node_us", time.node_us}};
  return json.dump(1) + "\n";
}

}  // namespace llm
