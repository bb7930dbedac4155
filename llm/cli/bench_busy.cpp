// How a training step runs where something else wants a core: a browser, a compiler, another run. Processes that compute
// all the time are started beside it, at the priorities that such things have, and the step is timed on all threads and
// on one fewer.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <iostream>

#include "llm/base/error.h"
#include "llm/cli/bench.h"
#include "llm/device/cpu.h"
#include "llm/model/parameters.h"

namespace llm {
namespace {

// A process that is always busy, until the object goes.
class BusyProcess {
 public:
  // `core`: the only one that it may run on; -1: any.
  BusyProcess(int nice, int core) : child_(::fork()) {
    if (child_ < 0) fail("cannot start a process to be busy");
    if (child_ > 0) return;
    if (::nice(nice) == -1) ::_exit(1);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<size_t>(std::max(0, core)), &set);
    if (core >= 0) ::sched_setaffinity(0, sizeof set, &set);
    for (volatile unsigned n = 0;;) n = n + 1;
  }
  ~BusyProcess() {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }
  BusyProcess(const BusyProcess&) = delete;
  BusyProcess& operator=(const BusyProcess&) = delete;

 private:
  pid_t child_;
};

double step_seconds(const BenchFlags& flags, const ModelConfig& config, int threads) {
  ThreadTeam team(threads);
  CpuDevice device(team);
  BenchedStep step(flags, device, config);
  std::vector<double> seconds;
  for (int64_t i = 0; i <= flags.steps; ++i)
    if (const double one = step.run(step.whole(), i); i > 0) seconds.push_back(one);
  return median(seconds);
}

struct Beside {
  const char* name;
  int nice, processes;
  bool pinned;
};

}  // namespace

Json bench_busy(const BenchFlags& flags, Device& on, const ModelConfig& config) {
  if (on.cuda()) fail_usage("--busy is about the CPU's threads; leave out --device cuda");
  const int threads = on.threads().size();
  Json::List rows;
  double quiet = 0;
  for (const Beside& beside :
       {Beside{"nothing else", 0, 0, false}, Beside{"one process, nice 19", 19, 1, false},
        Beside{"one process, nice 10", 10, 1, false}, Beside{"one process, nice 0", 0, 1, false},
        Beside{"one on the first core, nice 0", 0, 1, true}, Beside{"two processes, nice 10 and 19", 10, 2, false}}) {
    std::cerr << "bench: a step beside " << beside.name << "\n";
    std::vector<std::unique_ptr<BusyProcess>> busy;
    for (int i = 0; i < beside.processes; ++i)
      busy.push_back(std::make_unique<BusyProcess>(i ? 19 : beside.nice, beside.pinned ? 0 : -1));
    const double all = step_seconds(flags, config, threads);
    if (quiet == 0) quiet = all;
    Json row = {{"beside", beside.name}, {"ms", all * 1e3}, {"of_quiet", quiet / all}};
    if (threads > 1) row["one_fewer_ms"] = step_seconds(flags, config, threads - 1) * 1e3;
    rows.push_back(row);
  }
  return {{"model", flags.model_name()},
          {"parameters", parameter_count(config)},
          {"batch", flags.batch},
          {"context", config.context},
          {"steps", flags.steps},
          {"threads", threads},
          {"busy", rows}};
}

void print_busy(const Json& result) {
  const auto number = [](const Json& x) { return x.get<double>(); };
  std::printf("%s, batch %.0f x %.0f tokens, %.0f threads; the median of %.0f steps, beside\n",
              result["model"].string().c_str(), number(result["batch"]), number(result["context"]),
              number(result["threads"]), number(result["steps"]));
  for (const Json& row : result["busy"]) {
    std::printf("  %-32s %8.1f ms, %3.0f %% of the speed beside nothing", row["beside"].string().c_str(),
                number(row["ms"]), 100 * number(row["of_quiet"]));
    if (row.contains("one_fewer_ms")) std::printf("; on one thread fewer %8.1f ms", number(row["one_fewer_ms"]));
    std::printf("\n");
  }
}

}  // namespace llm
