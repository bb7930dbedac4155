// Which algorithm each kind of product was found fastest with: in memory, and in a file that all ranks of a run, in one
// process or many, and other runs beside it may share. Plain C++.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace llm {

class GemmChoices {
 public:
  using Key = std::array<int64_t, 22>;        // all on which the choice may depend
  using Algorithm = std::array<uint64_t, 8>;  // as the library has it

  // From here on the file is read and written, where `path` is not empty. `chooser`, one line, says whose choices these
  // are: those of another are left alone until they are written over. Throws Error for a line that is none of ours.
  void remember(const std::string& path, const std::string& chooser);

  std::optional<Algorithm> find(const Key& key) const;
  void read_file();  // takes in what is new there
  void keep(const Key& key, const Algorithm& algorithm);

 private:
  std::string path_, chooser_;
  std::map<Key, Algorithm> known_;
};

}  // namespace llm
