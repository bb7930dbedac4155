// Memory of a device, full of zeros, which is given back at the end. A run has one arena, made before its first step;
// nothing is allocated after that.
#pragma once
#include <cstddef>

#include "llm/device/device.h"

namespace llm {

class Arena {
 public:
  Arena(size_t bytes, Device& device)  // throws Error when there is not that much
      : device_(device), bytes_(bytes), data_(device.allocate(bytes)) {}
  ~Arena() { device_.release(data_, bytes_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Device& device() const { return device_; }
  size_t bytes() const { return bytes_; }
  std::byte* data() const { return data_; }                      // an address of the device
  std::byte* on_host() const { return device_.on_host(data_); }  // null where the host cannot use it

  // From and to the host's memory.
  void write(size_t offset, const void* from, size_t bytes) const { device_.copy_in(data_ + offset, from, bytes); }
  void read(size_t offset, void* to, size_t bytes) const { device_.copy_out(to, data_ + offset, bytes); }

 private:
  Device& device_;
  size_t bytes_;
  std::byte* data_;
};

}  // namespace llm
