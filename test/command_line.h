// Runs train_gpt as a program of its own, for the tests of its command line. TRAIN_GPT_BINARY names the binary (as
// `make test` does); without it ./train_gpt is run, if it is there.
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

// The path of the binary; empty: there is none, and TRAIN_GPT_BINARY named none.
std::string binary();

struct Result {
  int status = -1;  // the exit status; -1: a signal ended the process
  std::string out, err;
};

// A running train_gpt. Its output goes to files, so that it never waits for a reader.
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
// Standard output of a run that must end with status 0.
std::string run_well(const Folder& folder, const Arguments& arguments);
// Checks that the run ends with this status and one line of error, which holds `part`.
void check_error(const Folder& folder, const Arguments& arguments, int status, const std::string& part = "",
                 const std::string& out = "");

// Text in which a small model can learn something, with characters of two and three bytes.
std::string sample_text(size_t bytes);
// The arguments of a small, short run; `more` are pairs of a flag and its value that are added or replace.
Arguments train_arguments(const std::string& data, const std::string& out, const Arguments& more = {});
// The lines of a run's log, by step.
std::map<int64_t, nlohmann::json> read_log(const std::string& run);

// One small run that several tests read; none changes it.
struct Trained {
  Folder folder;
  std::string text = folder / "text.txt", run_path = folder / "run";
  Trained();
};
const Trained& trained();

}  // namespace test
