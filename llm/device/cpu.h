// The CPU as a device: its memory is the host's, and work is done when it has been handed over.
#pragma once
#include "llm/device/device.h"

namespace llm {

class CpuDevice : public Device {
 public:
  using Device::Device;

  int ahead() const override { return 0; }
  // Straight from the system, and in huge pages where it gives them and there is enough for one.
  std::byte* allocate(size_t bytes) override;
  void release(void* memory, size_t bytes) override;
  std::byte* on_host(std::byte* memory) const override { return memory; }
  std::byte* allocate_on_host(size_t bytes) override { return allocate(bytes); }
  void release_on_host(void* memory, size_t bytes) override { release(memory, bytes); }
  void copy_in(void* to, const void* from, size_t bytes) override;
  void copy_out(void* to, const void* from, size_t bytes) override;
  void store(void* to, const void* from, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void wait() override {}
  std::unique_ptr<Upload> new_upload(size_t bytes) override;
  std::unique_ptr<Download> new_download(size_t bytes, bool beside) override;
  std::unique_ptr<Stopwatch> new_stopwatch(size_t marks) override;
  std::unique_ptr<Replay> new_replay() override;
};

}  // namespace llm
