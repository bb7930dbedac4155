// The main() of what `make portable` builds: one binary with the program three times, compiled for three kinds of CPU.
// This main() chooses the copy that runs; this file itself is compiled for the plainest kind.
//
// The first copy is linked as usual. Each other copy is one object, of which only main() can be seen, under another
// name, and whose constructors are in a section of their own (portable.mk says how): constructors may use instructions
// that this CPU does not have, so they run only if their copy was chosen.
//
// The environment variable TRAIN_GPT_CPU names the copy to run instead of the best one; for tests.
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string_view>

#if !defined(__x86_64__)
#error "only the kinds of x86-64 are told apart; for other CPUs: make, which compiles for the one it runs on"
#endif

namespace {
using Main = int(int, char**);
using Constructor = void (*)(int, char**, char**);
}  // namespace

extern "C" {
Main __real_main;  // the linker's name for the plain copy's main() (ld --wrap=main); it calls __wrap_main for main()
Main __wrap_main;
Main train_gpt_x86_64_v3, train_gpt_x86_64_v4;
// The linker's names for the ends of the sections constructors_x86_64_v3 and constructors_x86_64_v4.
extern Constructor __start_constructors_x86_64_v3[], __stop_constructors_x86_64_v3[];
extern Constructor __start_constructors_x86_64_v4[], __stop_constructors_x86_64_v4[];
}

namespace {

struct Copy {
  std::string_view name;  // as g++'s -march takes it
  bool runs_here;
  Main* main;
  Constructor *constructors, *end;
};

int run(const Copy& copy, int argc, char** argv) {
  for (Constructor* c = copy.constructors; c != copy.end; ++c) (*c)(argc, argv, environ);
  return copy.main(argc, argv);
}

}  // namespace

int __wrap_main(int argc, char** argv) {
  const Copy copies[] = {// the best first
                         {"x86-64-v4", __builtin_cpu_supports("x86-64-v4") != 0, train_gpt_x86_64_v4,
                          __start_constructors_x86_64_v4, __stop_constructors_x86_64_v4},
                         {"x86-64-v3", __builtin_cpu_supports("x86-64-v3") != 0, train_gpt_x86_64_v3,
                          __start_constructors_x86_64_v3, __stop_constructors_x86_64_v3},
                         {"x86-64", true, __real_main, nullptr, nullptr}};
  const char* wanted = std::getenv("TRAIN_GPT_CPU");
  for (const Copy& copy : copies) {
    if (wanted ? copy.name != wanted : !copy.runs_here) continue;
    if (copy.runs_here) return run(copy, argc, argv);
    std::cerr << "train_gpt: TRAIN_GPT_CPU=" << wanted << ": this CPU lacks instructions of that kind; without the "
              << "variable the best copy that it can run is chosen\n";
    return 2;
  }
  std::cerr << "train_gpt: TRAIN_GPT_CPU=" << wanted << ": no such copy; this binary has";
  for (const Copy& copy : copies) std::cerr << (&copy == copies ? " " : ", ") << copy.name;
  std::cerr << "\n";
  return 2;
}
