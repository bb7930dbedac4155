#include "llm/base/atomic_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "llm/base/error.h"

namespace llm {
namespace {

constexpr char kPrefix[] = ".tmp-";

[[noreturn]] void fail_with(const char* what, const std::string& path, int reason) {
  fail("cannot ", what, " ", path, ": ", std::strerror(reason));
}

std::string parent_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string temporary_name(const std::string& parent, const std::string& name, int attempt) {
  return concat(parent, "/", kPrefix, name, "-", ::getpid(), "-", attempt);
}

// Locks a temporary, which marks it as in use. Returns false when remove_abandoned() of another process removed the
// temporary before the lock was taken. On a file system without locks the temporary stays unmarked; remove_abandoned()
// cannot lock anything there either, and removes nothing.
bool lock_temporary(int file) {
  while (::flock(file, LOCK_EX) != 0 && errno == EINTR) {
  }
  struct stat status {};
  return ::fstat(file, &status) == 0 && status.st_nlink > 0;
}

void sync(int file, const std::string& path) {
  // Some file systems cannot sync a directory and return EINVAL: nothing more can be done there.
  if (::fsync(file) != 0 && errno != EINVAL) fail_with("write", path, errno);
}

void sync_directory(const std::string& path) {
  const int directory = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) fail_with("open", path, errno);
  const int reason = ::fsync(directory) == 0 ? 0 : errno;
  ::close(directory);
  if (reason != 0 && reason != EINVAL) fail_with("write", path, reason);
}

void remove_quietly(const std::string& path) {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

// Renames PARENT/NAME to a free temporary name and returns its path; "" when there is no PARENT/NAME.
std::string set_aside(const std::string& parent, const std::string& name) {
  const std::string path = parent + "/" + name;
  for (int attempt = 0;; ++attempt) {
    const std::string aside = temporary_name(parent, name + "-old", attempt);
    if (::rename(path.c_str(), aside.c_str()) == 0) return aside;
    if (errno == ENOENT) return "";
    if ((errno != ENOTEMPTY && errno != EEXIST) || attempt == 1000) fail_with("remove", path, errno);
  }
}

// write_some(address, bytes) writes some of the bytes, as the system calls do, and returns how many.
template <class WriteSome>
void write_all(const std::string& path, const void* data, size_t bytes, WriteSome&& write_some) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = write_some(next, std::min(bytes, size_t{1} << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail_with("write", path, written < 0 ? errno : EIO);
    next += written;
    bytes -= static_cast<size_t>(written);
  }
}

}  // namespace

SharedFile::SharedFile(std::string path) : path_(std::move(path)) {
  file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (file_ < 0) fail_with("write", path_, errno);
}

SharedFile::~SharedFile() { ::close(file_); }

void SharedFile::write(size_t at, const void* data, size_t bytes) {
  write_all(path_, data, bytes, [&](const char* next, size_t count) {
    const ssize_t written = ::pwrite(file_, next, count, static_cast<off_t>(at));
    if (written > 0) at += static_cast<size_t>(written);
    return written;
  });
}

void SharedFile::sync() { llm::sync(file_, path_); }

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  const std::string parent = parent_of(path_);
  const std::string name = path_.substr(path_.rfind('/') + 1);
  if (name.empty()) fail_with("write", path_, EISDIR);
  for (int attempt = 0; file_ < 0; ++attempt) {
    temporary_ = temporary_name(parent, name, attempt);
    file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file_ < 0 && (errno != EEXIST || attempt == 1000)) fail_with("write", path_, errno);
    if (file_ >= 0 && !lock_temporary(file_)) {
      ::close(file_);
      file_ = -1;
    }
  }
}

AtomicFile::~AtomicFile() {
  if (file_ < 0) return;
  ::unlink(temporary_.c_str());
  ::close(file_);
}

void AtomicFile::write(const void* data, size_t bytes) {
  write_all(path_, data, bytes, [&](const char* next, size_t count) { return ::write(file_, next, count); });
}

void AtomicFile::commit() {
  sync(file_, path_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_with("write", path_, errno);
  const int closed = ::close(std::exchange(file_, -1));
  if (closed != 0 && errno != EINTR) fail_with("write", path_, errno);
  sync_directory(parent_of(path_));
}

AtomicDirectory::AtomicDirectory(std::string parent, const std::string& name)
    : parent_(std::move(parent)), final_(parent_ + "/" + name) {
  make_directories(parent_);
  for (int attempt = 0; directory_ < 0; ++attempt) {
    temporary_ = temporary_name(parent_, name, attempt);
    if (::mkdir(temporary_.c_str(), 0777) != 0) {
      if (errno != EEXIST || attempt == 1000) fail_with("write", final_, errno);
      continue;
    }
    directory_ = ::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory_ < 0 && errno != ENOENT) {
      const int reason = errno;
      ::rmdir(temporary_.c_str());
      fail_with("write", final_, reason);
    }
    if (directory_ >= 0 && !lock_temporary(directory_)) {
      ::close(directory_);
      directory_ = -1;
    }
  }
}

AtomicDirectory::~AtomicDirectory() {
  if (!committed_) remove_quietly(temporary_);
  ::close(directory_);
}

void AtomicDirectory::commit() {
  sync(directory_, final_);
  std::string old;  // the path of an earlier directory of this name, now out of the way
  if (::rename(temporary_.c_str(), final_.c_str()) == 0) {
    committed_ = true;
  } else if (errno != ENOTEMPTY && errno != EEXIST) {
    fail_with("write", final_, errno);
  } else if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, final_.c_str(), RENAME_EXCHANGE) == 0) {
    committed_ = true;
    old = temporary_;
  } else {
    // This file system cannot exchange two names: for a moment neither directory has the final name.
    old = set_aside(parent_, final_.substr(parent_.size() + 1));
    if (::rename(temporary_.c_str(), final_.c_str()) != 0) {
      const int reason = errno;
      ::rename(old.c_str(), final_.c_str());
      fail_with("write", final_, reason);
    }
    committed_ = true;
  }
  sync_directory(parent_);
  if (!old.empty()) remove_quietly(old);
}

void write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

std::string read_file(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail_with("open", path, errno);
  struct stat status {};
  const bool regular = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  std::string content(regular ? static_cast<size_t>(status.st_size) + 1 : 65536, '\0');
  size_t size = 0;
  int reason = 0;
  for (;;) {
    if (size == content.size()) content.resize(2 * size);
    const ssize_t got = ::read(file, content.data() + size, std::min(content.size() - size, size_t{1} << 30));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) reason = errno;
    if (got <= 0) break;
    size += static_cast<size_t>(got);
  }
  ::close(file);
  if (reason) fail_with("read", path, reason);
  content.resize(size);
  return content;
}

void make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error && !std::filesystem::is_directory(path, error)) error = std::make_error_code(std::errc::not_a_directory);
  if (error) fail("cannot create the directory ", path, ": ", error.message());
}

void remove_directory(const std::string& parent, const std::string& name) {
  const std::string aside = set_aside(parent, name);
  if (aside.empty()) return;
  std::error_code error;
  std::filesystem::remove_all(aside, error);
  if (error) fail("cannot remove ", aside, ": ", error.message());
}

void remove_abandoned(const std::string& directory) {
  DIR* entries = ::opendir(directory.c_str());
  if (!entries) {
    if (errno == ENOENT) return;
    fail_with("read", directory, errno);
  }
  while (const dirent* entry = ::readdir(entries)) {
    if (std::strncmp(entry->d_name, kPrefix, sizeof kPrefix - 1) != 0) continue;
    const std::string path = directory + "/" + entry->d_name;
    const int file = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) continue;
    if (::flock(file, LOCK_EX | LOCK_NB) == 0) remove_quietly(path);
    ::close(file);
  }
  ::closedir(entries);
}

}  // namespace llm
