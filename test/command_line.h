// train_gpt run as a program of its own, for the tests of its command line. TRAIN_GPT_BINARY names it (as `make test` does);
// without it ./train_gpt, if it is there.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "test/helpers.h"

namespace test {

using Arguments = std::vector<std::string>;

// Empty: there is none, and nobody promised one.
std::string binary();

struct Result {
  int status = -1;  // of exit; -1: a signal ended it
  std::string out, err;
};

// A running train_gpt. Its output goes to files, so that it never waits for its reader.
class Process {
 public:
  Process(const Folder& folder, const Arguments& arguments, const std::string& out = "");
  ~Process();
  void kill(int signal) const;
  bool is_running();
  Result wait();

 private:
  void end(int status);

  const Folder& folder_;
  std::string out_;
  pid_t id_ = -1;
  Result result_;
};

Result run(const Folder& folder, const Arguments& arguments, const std::string& out = "");
// What it prints; it must end with status 0.
std::string run_well(const Folder& folder, const Arguments& arguments);
// It must end with this status and one line, which holds `part`.
void check_error(const Folder& folder, const Arguments& arguments, int status, const std::string& part = "",
                 const std::string& out = "");

// Words in an order that a small model can learn a little of, with characters of two and three bytes.
std::string sample_text(size_t bytes);
// A small, short run; `more` are pairs of a flag and its value that come on top or instead.
Arguments train_arguments(const std::string& data, const std::string& out, const Arguments& more = {});
// The lines of a run's log by their step.
std::map<int64_t, nlohmann::json> read_log(const std::string& run);

// One small run that several tests look at; none changes it.
struct Trained {
  Folder folder;
  std::string text = folder / "text.txt", run_path = folder / "run";
  Trained();
};
const Trained& trained();

}  // namespace test
