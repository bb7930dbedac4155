#include "test/command_line.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "llm/base/atomic_file.h"
#include "llm/base/random.h"

using namespace llm;
using nlohmann::json;
namespace fs = std::filesystem;

namespace test {

std::string binary() {
  const char* named = std::getenv("TRAIN_GPT_BINARY");
  const std::string path = fs::absolute(named && *named ? named : "train_gpt").string();
  const bool there = ::access(path.c_str(), X_OK) == 0;
  if (named && *named) REQUIRE_MESSAGE(there, "TRAIN_GPT_BINARY=", path, " cannot be run");
  if (!there) MESSAGE("no ./train_gpt and no TRAIN_GPT_BINARY: the command line is not tested");
  return there ? path : "";
}

Process::Process(const Folder& folder, const Arguments& arguments, const std::string& out) : folder_(folder) {
  std::vector<std::string> words = {binary()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  out_ = out.empty() ? folder / "stdout" : out;
  const std::string err = folder / "stderr";
  id_ = ::fork();
  REQUIRE(id_ >= 0);
  if (id_ == 0) {
    ::dup2(::open("/dev/null", O_RDONLY), 0);
    ::dup2(::open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    ::setenv("TMPDIR", folder.path.c_str(), 1);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
}

Process::~Process() {
  if (id_ > 0) {
    kill(SIGKILL);
    wait();
  }
}

void Process::kill(int signal) const { ::kill(id_, signal); }

bool Process::is_running() {
  int status = 0;
  if (id_ > 0 && ::waitpid(id_, &status, WNOHANG) == id_) end(status);
  return id_ > 0;
}

Result Process::wait() {
  int status = 0;
  if (id_ > 0) {
    ::waitpid(id_, &status, 0);
    end(status);
  }
  if (out_ == folder_ / "stdout") result_.out = read_file(out_);
  result_.err = read_file(folder_ / "stderr");
  return result_;
}

void Process::end(int status) {
  id_ = -1;
  result_.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Result run(const Folder& folder, const Arguments& arguments, const std::string& out) {
  return Process(folder, arguments, out).wait();
}

namespace {
std::string joined(const Arguments& arguments) {
  std::string line;
  for (const std::string& word : arguments) line += word + " ";
  return line;
}
}  // namespace

std::string run_well(const Folder& folder, const Arguments& arguments) {
  const Result result = run(folder, arguments);
  CAPTURE(joined(arguments));
  CAPTURE(result.err);
  REQUIRE(result.status == 0);
  return result.out;
}

std::string sample_text(size_t bytes) {
  const std::vector<std::string> words = {"the ", "cat ", "sat ", "on ", "a ", "mat", ".\n", "für ", "naïve ", "… "};
  const Random random(1, 1);
  std::string text;
  for (uint64_t i = 0, word = 0; text.size() < bytes; ++i) {
    text += words[word];
    word = random.uniform(i) < 0.7 ? (word + 1) % words.size() : random.bits(i) % words.size();
  }
  return text;
}

Arguments train_arguments(const std::string& data, const std::string& out, const Arguments& more) {
  std::map<std::string, std::string> flags = {
      {"--layers", "2"}, {"--heads", "2"}, {"--channels", "32"},   {"--context", "32"},    {"--batch", "4"},
      {"--steps", "20"}, {"--seed", "5"},  {"--eval-every", "10"}, {"--save-every", "10"}, {"--sample-every", "0"}};
  for (size_t i = 0; i + 1 < more.size(); i += 2) flags[more[i]] = more[i + 1];
  Arguments a = {"train", "--data", data, "--out", out};
  for (auto& [flag, value] : flags) a.insert(a.end(), {flag, value});
  return a;
}

std::map<int64_t, json> read_log(const std::string& run) {
  std::map<int64_t, json> entries;
  std::ifstream file(run + "/log.jsonl");
  for (std::string line; std::getline(file, line);) {
    const json entry = json::parse(line);
    const auto step = entry.at("step").get<int64_t>();
    CHECK(entries.find(step) == entries.end());
    entries[step] = entry;
  }
  return entries;
}

Trained::Trained() {
  write_file_atomically(text, sample_text(12000));
  run_well(folder, train_arguments(text, run_path));
}

const Trained& trained() {
  static const Trained shared;
  return shared;
}

void check_error(const Folder& folder, const Arguments& arguments, int status, const std::string& part,
                 const std::string& out) {
  CAPTURE(joined(arguments));
  const Result result = run(folder, arguments, out);
  CAPTURE(result.err);
  CHECK(result.status == status);
  CHECK(result.err.starts_with("train_gpt: "));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  CHECK(result.err.ends_with("\n"));
  CHECK(has(result.err, part));
}

}  // namespace test
