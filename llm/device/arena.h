// A block of a device's memory, zero at the start, released by the destructor. A run has one arena for all of its
// tensors, made before its first step; nothing is allocated after that. An arena may have a second block, in the host's
// memory, for tensors that lie there between their uses (Tensor::on_host): offsets from kHostPart on lie in it.
#pragma once
#include <cstddef>
#include <cstring>

#include "llm/device/device.h"

namespace llm {

class Arena {
 public:
  static constexpr size_t kHostPart = size_t{1} << 62;

  Arena(size_t bytes, Device& device, size_t host_bytes = 0)  // throws Error when there is not so much free memory
      : device_(device),
        bytes_(bytes),
        host_bytes_(host_bytes),
        host_(host_bytes ? device.allocate_on_host(host_bytes) : nullptr) {
    try {
      data_ = device.allocate(bytes);
    } catch (...) {
      if (host_) device.release_on_host(host_, host_bytes);
      throw;
    }
  }
  ~Arena() {
    device_.release(data_, bytes_);
    if (host_) device_.release_on_host(host_, host_bytes_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Device& device() const { return device_; }
  size_t bytes() const { return bytes_; }            // without the host part
  size_t host_bytes() const { return host_bytes_; }  // of the host part
  std::byte* data() const { return data_; }          // the device's address
  std::byte* address(size_t offset) const {
    return offset >= kHostPart ? host_ + (offset - kHostPart) : data_ + offset;
  }
  // The host's address of `offset`, for memory that no work that was handed over still changes; null: it has none.
  std::byte* on_host(size_t offset = 0) const {
    if (offset < kHostPart) return device_.on_host(data_) ? device_.on_host(data_) + offset : nullptr;
    device_.wait();
    return address(offset);
  }

  // Copy between the host's memory and `offset` (bytes) of the arena; the copy is complete on return.
  void write(size_t offset, const void* from, size_t bytes) const {
    if (offset < kHostPart) return device_.copy_in(address(offset), from, bytes);
    std::memcpy(on_host(offset), from, bytes);
  }
  void read(size_t offset, void* to, size_t bytes) const {
    if (offset < kHostPart) return device_.copy_out(to, address(offset), bytes);
    std::memcpy(to, on_host(offset), bytes);
  }

 private:
  Device& device_;
  size_t bytes_, host_bytes_;
  std::byte* host_;
  std::byte* data_ = nullptr;
};

}  // namespace llm
