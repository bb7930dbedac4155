#include "llm/train/log.h"

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"

namespace llm {

std::string LogEntry::json() const {
  Json j;
  const auto put = [&](const char* name, const auto& value) {
    if (value) j[name] = *value;  // a number that is not finite is written as null
  };
  j["step"] = step;
  put("loss", loss), put("val_loss", val_loss), put("val_bits_per_byte", val_bits_per_byte);
  put("val_tokens", val_tokens);
  put("expert_load", expert_load), put("balance_loss", balance_loss), put("router_entropy", router_entropy);
  put("ranks", ranks);
  put("sent_bytes", sent_bytes);
  put("wait_ms", wait_ms);
  put("learning_rate", learning_rate), put("grad_norm", grad_norm), put("tokens", tokens), put("ms", ms);
  put("tokens_per_second", tokens_per_second), put("mfu", mfu);
  put("skipped", skipped);
  return j.dump();
}

RunLog::RunLog(const std::string& run, int64_t keep_up_to) : path_(run + "/log.jsonl") {
  if (std::filesystem::exists(path_)) {
    std::string kept;
    std::istringstream lines(read_file(path_));
    for (std::string line; std::getline(lines, line);) {
      // A line that a killed process left half-written is not JSON and is removed, too.
      const auto j = json_or_null(line);
      if (j["step"].is_number_integer() && j["step"].get<int64_t>() <= keep_up_to) kept += line + "\n";
    }
    write_file_atomically(path_, kept);
  }
  file_ = std::fopen(path_.c_str(), "ae");
  if (!file_) fail("cannot open ", path_, ": ", std::strerror(errno));
}

RunLog::~RunLog() {
  if (file_) std::fclose(file_);
}

void RunLog::write(const LogEntry& entry) {
  const std::string line = entry.json() + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0)
    fail("cannot write ", path_, ": ", std::strerror(errno));
}

}  // namespace llm
