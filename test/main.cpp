// The test binary's main(): doctest's own, and `--jobs=N`, which runs N test cases at a time, each in a process of its
// own. `make test` runs it with a job for each processor; `--help` lists doctest's options.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <vector>

namespace {

// What a test case's process tells its parent, in memory that both share.
struct Outcome {
  bool ended;          // the test case came to its end: its process did not crash
  unsigned in_binary;  // test cases of the binary
  unsigned selected;   // test cases that the filters select
  unsigned failed;     // 1: this one
  int assertions, failed_assertions;
};
Outcome* outcome = nullptr;

// Prints what doctest prints for a test case, without doctest's start and summary.
struct OneTestCase : doctest::ConsoleReporter {
  using ConsoleReporter::ConsoleReporter;
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& run) override {
    *outcome = {true,           run.numTestCases,    run.numTestCasesPassingFilters, run.numTestCasesFailed,
                run.numAsserts, run.numAssertsFailed};
    s << std::flush;
  }
};
REGISTER_REPORTER("one_test_case", 0, OneTestCase);

struct Process {
  int number;  // of its test case, counted from 1 among the selected ones
  std::FILE* output;
  Outcome* outcome;
};

pid_t start(int argc, char** argv, const Process& process) {
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::dup2(::fileno(process.output), STDOUT_FILENO);
  ::dup2(::fileno(process.output), STDERR_FILENO);
  outcome = process.outcome;
  doctest::Context context(argc, argv);
  context.setOption("first", process.number);
  context.setOption("last", process.number);
  context.setOption("reporters", "one_test_case");
  std::exit(context.run());
}

void print_and_close(std::FILE* output) {
  std::rewind(output);
  char part[1 << 14];
  for (size_t bytes; (bytes = std::fread(part, 1, sizeof part, output)) > 0;) std::fwrite(part, 1, bytes, stdout);
  std::fclose(output);
}

int run(int argc, char** argv, int jobs) {
  auto* const memory = static_cast<Outcome*>(::mmap(nullptr, static_cast<size_t>(jobs) * sizeof(Outcome),
                                                    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return std::perror("run_tests: mmap"), 1;
  std::vector<Outcome*> free;
  for (int job = 0; job < jobs; ++job) free.push_back(memory + job);
  std::map<pid_t, Process> running;
  Outcome all = {};
  bool more = true;
  for (int number = 1; more || !running.empty();) {
    if (more && !free.empty()) {
      const Process process{number++, std::tmpfile(), free.back()};
      free.pop_back();
      *process.outcome = {};
      const pid_t child = process.output ? start(argc, argv, process) : -1;
      if (child < 0) return std::perror("run_tests: cannot start a test case"), 1;
      running.emplace(child, process);
      continue;
    }
    int status = 0;
    const auto ended = running.find(::wait(&status));
    if (ended == running.end()) continue;
    const Process& process = ended->second;
    print_and_close(process.output);
    Outcome& seen = *process.outcome;
    if (seen.failed == 0 && (!seen.ended || status != 0)) {
      seen.failed = 1;
      std::printf("run_tests: test case %d ended with %s %d\n", process.number,
                  WIFSIGNALED(status) ? "signal" : "status",
                  WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
    if (seen.ended) all.in_binary = seen.in_binary, all.selected = seen.selected;
    if (seen.ended && process.number >= static_cast<int>(seen.selected)) more = false;
    all.failed += seen.failed;
    all.assertions += seen.assertions, all.failed_assertions += seen.failed_assertions;
    free.push_back(process.outcome);
    running.erase(ended);
  }
  std::printf("[doctest] test cases: %u | %u passed | %u failed | %u skipped\n", all.selected,
              all.selected - all.failed, all.failed, all.in_binary - all.selected);
  std::printf("[doctest] assertions: %d | %d passed | %d failed |\n", all.assertions,
              all.assertions - all.failed_assertions, all.failed_assertions);
  std::printf("[doctest] Status: %s\n", all.failed ? "FAILURE!" : "SUCCESS!");
  return all.failed ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  int jobs = 1;
  bool only_tells = false;  // doctest prints lists or help and runs no tests
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--jobs=", 0) == 0) jobs = std::max(1, std::atoi(argument.c_str() + 7));
    for (const char* const tells : {"-c", "--count", "-h", "-?", "--help", "-v", "--version"})
      only_tells |= argument == tells;
    only_tells |= argument.rfind("-l", 0) == 0 || argument.rfind("--list", 0) == 0;
  }
  if (jobs > 1 && !only_tells) return run(argc, argv, jobs);
  return doctest::Context(argc, argv).run();
}
