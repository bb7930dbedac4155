// What bench measured, as text and as Markdown.
#include <iostream>
#include <map>
#include <string>

#include "llm/base/json.h"
#include "llm/cli/bench.h"
#include "llm/cli/progress.h"
#include "llm/device/ceilings.h"

namespace llm {
namespace {

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

// How many times as fast as earlier; blank where there is nothing to compare.
std::string ratio_text(double earlier, double now) {
  return earlier > 0 && now > 0 ? format("%.2fx", earlier / now) : "-";
}

void print_rows(const Json& result, const Json& earlier, const char* list) {
  std::map<std::string, double> before;
  if (!earlier.is_null())
    for (const Json& row : earlier[list]) before[row["name"].string()] = row["ms"].get<double>();
  size_t width = 2;
  for (const Json& row : result[list]) width = std::max(width, row["name"].string().size());
  const double total = result["step"]["ops_ms"].get<double>();
  std::cout << "op" << std::string(width - 2, ' ')
            << "  calls        ms  % step  GFLOP/s    GB/s  floor ms  bound   of ceiling"
            << (earlier.is_null() ? "" : "  earlier ms  speed-up") << "\n";
  for (const Json& row : result[list]) {
    const std::string name = row["name"].string(), bound = row["bound"].string();
    const double ms = row["ms"].get<double>(), floor = row["floor_ms"].get<double>();
    std::cout << name << std::string(width - name.size(), ' ')
              << format("  %5d  %8.3f  %5.1f%%  %7.1f  %6.1f  %8.3f  %-6s  %9.0f%%", row["calls"].get<int>(), ms,
                        100 * ms / total, row["gflops"].get<double>(), row["gbs"].get<double>(), floor, bound.c_str(),
                        ms > 0 ? 100 * floor / ms : 0.0);
    if (!earlier.is_null())
      std::cout << (before.contains(name) ? format("  %10.3f", before[name]) : "           -")
                << format("  %8s", ratio_text(before.contains(name) ? before[name] : 0, ms).c_str());
    std::cout << "\n";
  }
}

}  // namespace

void print_step(const Json& r, const Json& earlier, bool nodes) {
  const auto& c = r["ceilings"];
  const auto value = [](const Json& object, const char* key) { return object[key].get<double>(); };
  std::cout << "machine   " << format("%.0f GFLOP/s %s; ", value(c, "gflops"), r["dtype"].string().c_str())
            << format("memory: read %.1f, copy %.1f, update %.1f GB/s; ", value(c, "read_gbs"), value(c, "copy_gbs"),
                      value(c, "update_gbs"))
            << format("cache (%zu MiB): %.1f, %.1f, %.1f GB/s; %d threads\n", Ceilings::kCachedBytes >> 20,
                      value(c, "cached_read_gbs"), value(c, "cached_copy_gbs"), value(c, "cached_update_gbs"),
                      r["threads"].get<int>())
            << "model     " << r["model"].string() << ": " << format_count(value(r, "parameters")) << " parameters, "
            << format("%d x %d tokens a step, ", r["batch"].get<int>(), r["context"].get<int>())
            << r["optimizer"].string() << format("; medians of %d steps\n\n", r["steps"].get<int>());
  print_rows(r, earlier, nodes ? "nodes" : "ops");
  const auto& step = r["step"];
  const double wall = value(step, "ms"), ops = value(step, "ops_ms"), floor = value(step, "floor_ms");
  std::cout << format("\nstep      %.2f ms: ops %.2f, between ops %.2f; floor %.2f (%.0f%%)\n", wall, ops, wall - ops,
                      floor, 100 * floor / wall);
  if (step.contains("mfu"))
    std::cout << format("          %.0f tokens/s, MFU %.1f%%\n", value(step, "tokens_per_second"),
                        100 * value(step, "mfu"));
  if (!earlier.is_null())
    std::cout << format("earlier   %.2f ms a step: ", value(earlier["step"], "ms"))
              << ratio_text(value(earlier["step"], "ms"), wall) << "\n";
}

// One table, for reports.
void print_step_as_markdown(const Json& r, bool nodes) {
  const auto value = [](const Json& object, const char* key) { return object[key].get<double>(); };
  const auto &c = r["ceilings"], &step = r["step"];
  std::cout << "| " << r["device"].string() << ", " << r["dtype"].string() << ", " << r["model"].string()
            << format(", %d x %d tokens, ", r["batch"].get<int>(), r["context"].get<int>()) << r["optimizer"].string()
            << " | calls | ms | % of step | TFLOP/s | GB/s | floor ms | bound | of the ceiling |\n"
            << "|---|---:|---:|---:|---:|---:|---:|---|---:|\n";
  for (const Json& row : r[nodes ? "nodes" : "ops"]) {
    const double ms = row["ms"].get<double>(), floor = row["floor_ms"].get<double>();
    std::cout << "| " << row["name"].string()
              << format(" | %d | %.3f | %.1f | %.1f | %.0f | %.3f | %s | %.0f %% |\n", row["calls"].get<int>(), ms,
                        100 * ms / value(step, "ops_ms"), value(row, "gflops") * 1e-3, value(row, "gbs"), floor,
                        row["bound"].string().c_str(), ms > 0 ? 100 * floor / ms : 0.0);
  }
  std::cout << format("| the whole step | | %.3f | | | | %.3f | | %.0f %% |\n", value(step, "ms"),
                      value(step, "floor_ms"), 100 * value(step, "floor_ms") / value(step, "ms"))
            << format("\nCeilings measured: %.1f TFLOP/s, read %.0f, copy %.0f, update %.0f GB/s.",
                      value(c, "gflops") * 1e-3, value(c, "read_gbs"), value(c, "copy_gbs"), value(c, "update_gbs"));
  if (step.contains("mfu"))
    std::cout << format(" %.0f tokens/s, MFU %.1f %%.", value(step, "tokens_per_second"), 100 * value(step, "mfu"));
  std::cout << "\n";
}

void print_products(const Json& r) {
  const auto value = [](const Json& object, const char* key) { return object[key].get<double>(); };
  const Json &total = r["total"], &means = r["geometric_means"];
  const bool peer = means.contains("ratio");
  const double peak = value(r["ceilings"], "gflops");
  std::cout << format("machine   %.1f GFLOP/s fp32, %d threads\n", peak, r["threads"].get<int>()) << "model     "
            << r["model"].string() << ": "
            << format("%d x %d tokens a step; medians of %d interleaved rounds\n\n", r["batch"].get<int>(),
                      r["context"].get<int>(), r["steps"].get<int>());
  size_t width = 14;
  for (const Json& row : r["products"]) width = std::max(width, row["name"].string().size());
  const auto print = [&](const std::string& name, const std::string& calls, const std::string& ms, double gflops,
                         const std::string& peer_ms, double ratio) {
    std::cout << name << std::string(width - name.size(), ' ')
              << format("  %5s  %9s  %7.1f  %7.1f%%", calls.c_str(), ms.c_str(), gflops, 100 * gflops / peak);
    if (peer) std::cout << format("  %9s  %7.1f  %5.2fx", peer_ms.c_str(), gflops / ratio, ratio);
    std::cout << "\n";
  };
  std::cout << "m x n x k" << std::string(width - 9, ' ') << "  calls         ms  GFLOP/s   of peak"
            << (peer ? "  oneDNN ms  GFLOP/s  ratio" : "") << "\n";
  for (const Json& row : r["products"])
    print(row["name"].string(), std::to_string(row["calls"].get<int>()), format("%.3f", value(row, "ms")),
          value(row, "gflops"), peer ? format("%.3f", value(row, "onednn_ms")) : "", peer ? value(row, "ratio") : 0);
  print("geometric mean", "", "", value(means, "gflops"), "", peer ? value(means, "ratio") : 0);
  print("all of a step", "", format("%.3f", value(total, "ms")), value(total, "gflops"),
        peer ? format("%.3f", value(total, "onednn_ms")) : "", peer ? value(total, "ratio") : 0);
}

void print_scaling(const Json& r) {
  const auto value = [](const Json& object, const char* key) { return object[key].get<double>(); };
  std::cout << "model     " << r["model"].string() << ": "
            << format("%d x %d tokens a step; medians of %d steps\n", r["batch"].get<int>(), r["context"].get<int>(),
                      r["steps"].get<int>())
            << format("waking    %.2f us for each thread of a team but the first, measured on %d\n\n",
                      value(r, "wake_us_a_thread"), r["threads"].get<int>());
  std::cout << "threads   step ms  speed-up  efficiency   work ms     alone    uneven    waking  calls  measured ms\n";
  for (const Json& row : r["scaling"])
    std::cout << format("%7d  %8.2f  %7.1fx  %9.0f%%  %8.2f  %8.3f  %8.3f  %8.3f  %5.0f", row["threads"].get<int>(),
                        value(row, "ms"), value(row, "speed_up"), 100 * value(row, "efficiency"), value(row, "work_ms"),
                        value(row, "alone_ms"), value(row, "uneven_ms"), value(row, "waking_ms"), value(row, "calls"))
              << (row.contains("measured_ms") ? format("  %11.2f", value(row, "measured_ms")) : "") << "\n";
  size_t width = 2;
  for (const Json& row : r["ops"]) width = std::max(width, row["name"].string().size());
  std::cout << "\nop" << std::string(width - 2, ' ')
            << format("  on 1 ms  on %d ms  efficiency     alone    uneven    waking\n",
                      r["scaling"].back()["threads"].get<int>());
  for (const Json& row : r["ops"]) {
    const std::string name = row["name"].string();
    std::cout << name << std::string(width - name.size(), ' ')
              << format("  %7.2f  %8.3f  %9.0f%%  %8.3f  %8.3f  %8.3f\n", value(row, "one_ms"), value(row, "ms"),
                        100 * value(row, "efficiency"), value(row, "alone_ms"), value(row, "uneven_ms"),
                        value(row, "waking_ms"));
  }
}

void print_decode(const Json& r) {
  const auto value = [](const Json& object, const char* key) { return object[key].get<double>(); };
  std::cout << "model     " << r["model"].string() << " in " << r["dtype"].string()
            << format(", %d threads; %d steps after prompts of %d tokens\n\n", r["threads"].get<int>(),
                      r["steps"].get<int>(), r["prompt"].get<int>())
            << "texts    step ms  tokens/s  GB/s read  engine's own share\n";
  for (const Json& row : r["decode"])
    std::cout << format("%5d  %9.2f  %8.1f  %9.1f  %17.2f%%\n", row["texts"].get<int>(), value(row, "ms"),
                        value(row, "tokens_per_second"), value(row, "gigabytes_per_second"),
                        100 * value(row, "own_share"));
}

}  // namespace llm
