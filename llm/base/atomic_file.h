// Files and directories that appear whole or not at all: written under a temporary name beside the final one, synced to
// the disk, renamed. A process killed at any moment leaves the old content under the final name, and at most a leftover
// ".tmp-..." that remove_abandoned() finds. All functions throw Error with the path and the system's reason.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace llm {

// One file that several processes write at once, each of them other ranges of its bytes, within an AtomicDirectory.
class SharedFile {
 public:
  explicit SharedFile(std::string path);  // creates the file where no other process has
  ~SharedFile();
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  void write(size_t at, const void* data, size_t bytes);
  void sync();  // to the disk, what this process has written

 private:
  std::string path_;
  int file_ = -1;
};

class AtomicFile {
 public:
  explicit AtomicFile(std::string path);  // creates the temporary; an existing file at `path` stays until commit()
  ~AtomicFile();                          // without a commit() the temporary is removed
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Appends straight from the caller's memory: nothing is buffered, so write large pieces.
  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();  // syncs the file and gives it its final name

 private:
  std::string path_, temporary_;
  int file_ = -1;
};

// A directory that is filled under path() and appears as PARENT/NAME at commit(), in place of an earlier one.
class AtomicDirectory {
 public:
  AtomicDirectory(std::string parent, const std::string& name);  // creates PARENT, too, if it is missing
  ~AtomicDirectory();  // without a commit() the temporary and all in it are removed
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::string& path() const { return temporary_; }
  void commit();  // syncs the directory (not the files in it) and gives it its final name

 private:
  std::string parent_, final_, temporary_;
  int directory_ = -1;
  bool committed_ = false;
};

void write_file_atomically(const std::string& path, std::string_view content);
// The whole content of a file, which may also be a pipe or a device.
std::string read_file(const std::string& path);
// Creates the directory and its missing parents.
void make_directories(const std::string& path);

// Removes PARENT/NAME, renamed first: a kill in between leaves nothing that looks like the directory.
void remove_directory(const std::string& parent, const std::string& name);

// Removes the ".tmp-..." entries of `directory` that no running process is writing. Each writer holds a lock on its
// temporary, which the kernel releases when the process ends, so process ids (reused, or of another container) do not
// matter.
void remove_abandoned(const std::string& directory);

}  // namespace llm
