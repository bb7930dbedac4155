// A block of a device's memory, zero at the start, released by the destructor. A run has one arena for all of its
// tensors, made before its first step; nothing is allocated after that.
#pragma once
#include <cstddef>

#include "llm/device/device.h"

namespace llm {

class Arena {
 public:
  Arena(size_t bytes, Device& device)  // throws Error when the device does not have so much free memory
      : device_(device), bytes_(bytes), data_(device.allocate(bytes)) {}
  ~Arena() { device_.release(data_, bytes_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Device& device() const { return device_; }
  size_t bytes() const { return bytes_; }
  std::byte* data() const { return data_; }                      // the device's address
  std::byte* on_host() const { return device_.on_host(data_); }  // the host's address; null where it has none

  // Copy between the host's memory and `offset` (bytes) of the arena; the copy is complete on return.
  void write(size_t offset, const void* from, size_t bytes) const { device_.copy_in(data_ + offset, from, bytes); }
  void read(size_t offset, void* to, size_t bytes) const { device_.copy_out(to, data_ + offset, bytes); }

 private:
  Device& device_;
  size_t bytes_;
  std::byte* data_;
};

}  // namespace llm
