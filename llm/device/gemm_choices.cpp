// The file: a line that says whose choices these are, then of each product its key and, in hexadecimal, the words of
// the algorithm. (cuBLASLt allows to keep these for the same version.)
#include "llm/device/gemm_choices.h"

#include <cstdio>
#include <sstream>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"

namespace llm {

void GemmChoices::remember(const std::string& path, const std::string& chooser) {
  path_ = path;
  chooser_ = chooser;
  known_.clear();
  read_file();
}

std::optional<GemmChoices::Algorithm> GemmChoices::find(const Key& key) const {
  const auto found = known_.find(key);
  return found == known_.end() ? std::nullopt : std::optional(found->second);
}

void GemmChoices::read_file() {
  std::FILE* file = path_.empty() ? nullptr : std::fopen(path_.c_str(), "r");
  if (!file) return;
  std::fclose(file);
  std::istringstream lines(llm::read_file(path_));
  std::string line;
  if (!std::getline(lines, line) || line != chooser_) return;
  for (int number = 2; std::getline(lines, line); ++number) {
    std::istringstream words(line);
    Key key{};
    Algorithm algorithm{};
    for (int64_t& word : key) words >> word;
    words >> std::hex;
    for (uint64_t& word : algorithm) words >> word;
    if (!words) fail(path_, ", line ", number, ": this is no line of cuBLASLt's algorithms; remove the file");
    known_.try_emplace(key, algorithm);
  }
}

void GemmChoices::keep(const Key& key, const Algorithm& algorithm) {
  known_[key] = algorithm;
  if (path_.empty()) return;
  read_file();  // what others have found meanwhile stays
  std::ostringstream text;
  text << chooser_ << '\n';
  for (const auto& [of, words] : known_) {
    text << std::dec;
    for (const int64_t word : of) text << word << ' ';
    text << std::hex;
    for (size_t i = 0; i < words.size(); ++i) text << words[i] << (i + 1 == words.size() ? '\n' : ' ');
  }
  write_file_atomically(path_, text.str());
}

}  // namespace llm
