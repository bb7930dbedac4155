// Files and directories that appear whole or not at all: written under a temporary name beside the final one, synced to
// the disk, renamed. A process killed at any moment leaves the old content under the final name, and at most a leftover
// ".tmp-..." that remove_abandoned() finds. All functions throw Error with the path and the system's reason.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace llm {

class AtomicFile {
 public:
  explicit AtomicFile(std::string path);  // creates the temporary; an existing file at `path` stays until commit()
  ~AtomicFile();                          // without a commit() the temporary is removed
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Appends straight from the caller's memory: nothing is buffered, so write large pieces.
  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  std::string path_, temporary_;
  int file_ = -1;
};

// A directory that is filled under path() and appears under PARENT/NAME at commit(), in place of one that was there.
class AtomicDirectory {
 public:
  AtomicDirectory(std::string parent, const std::string& name);  // creates PARENT, too, where it is missing
  ~AtomicDirectory();  // without a commit() the temporary and all in it are removed
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::string& path() const { return temporary_; }
  void commit();

 private:
  std::string parent_, final_, temporary_;
  int directory_ = -1;
  bool committed_ = false;
};

void write_file_atomically(const std::string& path, std::string_view content);
std::string read_file(const std::string& path);
void make_directories(const std::string& path);

// Removes a directory such that a kill in between leaves nothing that looks like it: it is renamed first.
void remove_directory(const std::string& parent, const std::string& name);

// Removes the ".tmp-..." entries of `directory` that no living process is writing. Each writer holds a lock on its
// temporary, which the kernel drops with the process, so process ids (reused, or those of another container) play no part.
void remove_abandoned(const std::string& directory);

}  // namespace llm
