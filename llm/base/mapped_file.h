// A file mapped read-only into memory: opening it copies nothing, and its pages are loaded as they are read.
#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace llm {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws Error with the path and the system's reason
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace llm
