#include "test/simt/child.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

namespace llm::simt::bed {
namespace {

struct Child {
  pid_t process;
  int from;  // the reading end of its pipe
  size_t work;
};

Child start(const std::function<std::string()>& work, size_t number, int seconds) {
  int ends[2];
  if (::pipe(ends) != 0) std::abort();
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) std::abort();
  if (child > 0) {
    ::close(ends[1]);
    return {child, ends[0], number};
  }
  ::close(ends[0]);
  ::close(2);  // silences a sanitizer's report, since the work may be wrong on purpose
  // The test framework's handlers of signals would report a failed test.
  for (int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTERM}) std::signal(signal, SIG_DFL);
  ::alarm(static_cast<unsigned>(seconds));
  std::string said;
  try {
    said = work();
  } catch (const std::exception& e) {
    said = e.what();
  }
  said.resize(std::min<size_t>(said.size(), 4000));  // a pipe holds this much without a reader
  [[maybe_unused]] const auto written = ::write(ends[1], said.data(), said.size());
  ::_exit(0);
}

std::string finish(const Child& child) {
  std::string said;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(child.from, buffer, sizeof buffer)) > 0;) said.append(buffer, static_cast<size_t>(n));
  ::close(child.from);
  int status = 0;
  ::waitpid(child.process, &status, 0);
  if (WIFSIGNALED(status)) return WTERMSIG(status) == SIGALRM ? "time" : "crash";
  return WEXITSTATUS(status) == 0 ? said : "crash";
}

}  // namespace

std::vector<std::string> outcomes_of(const std::vector<std::function<std::string()>>& works, int seconds) {
  std::vector<std::string> outcomes(works.size());
  std::vector<Child> running;
  const size_t most = std::max(1u, std::thread::hardware_concurrency());
  for (size_t next = 0; next < works.size() || !running.empty();) {
    while (next < works.size() && running.size() < most) {
      running.push_back(start(works[next], next, seconds));
      ++next;
    }
    std::vector<pollfd> ends;
    for (const Child& child : running) ends.push_back({child.from, POLLIN, 0});
    ::poll(ends.data(), ends.size(), -1);
    for (size_t i = ends.size(); i-- > 0;) {
      if (ends[i].revents == 0) continue;
      outcomes[running[i].work] = finish(running[i]);
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  return outcomes;
}

std::string outcome_of(const std::function<std::string()>& work, int seconds) {
  return outcomes_of({work}, seconds).front();
}

}  // namespace llm::simt::bed
