// Copies between a GPU's memory and the host's pinned memory (Device::allocate_on_host) that run beside kernels, in both
// directions at once. Plain C++, like cuda.h.
#pragma once
#include <cstddef>
#include <memory>

namespace llm {

class CudaDevice;

class HostCopies {
 public:
  enum class Direction { from_host, to_host };
  virtual ~HostCopies() = default;

  // A transfer: begin, its copies, end. It starts after the kernels that were handed over so far.
  virtual void begin(Direction direction) = 0;
  virtual void add(void* to, const void* from, size_t bytes) = 0;
  virtual void end(int transfer) = 0;
  // Kernels that are handed over later find the transfer of this number done. Each transfer is waited for before its
  // number is used again, and within the phase of a step that started it.
  virtual void wait(int transfer) = 0;
};

[[gnu::weak]] std::unique_ptr<HostCopies> make_host_copies(CudaDevice& device);

}  // namespace llm
