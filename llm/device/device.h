// What a rank computes on: a team of CPU threads (cpu.h) or a GPU (cuda.h). It has memory, ways into and out of it, and
// takes work that is handed over; whoever programs against this interface need not know which of the two it is.
#pragma once
#include <cstddef>
#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "llm/base/threads.h"

namespace llm {

class CudaDevice;

// A part of a block: `bytes` at `offset` of it, from or to an address of the device.
struct TransferPiece {
  void* device;
  size_t offset, bytes;
};

// Blocks of input, copied in while the device is busy with the one before.
class Upload {
 public:
  virtual ~Upload() = default;
  // The host's memory for the next block; waits until what was in it has been copied.
  virtual std::byte* slot() = 0;
  // Starts the copy of the slot, as soon as the block before has been consumed.
  virtual void submit() = 0;
  // Puts the submitted block to its places, in the order of the work that is handed over.
  virtual void consume(std::initializer_list<TransferPiece> pieces) = 0;
};

// Small results, up to two of which may be on their way: the host waits for the older one while newer work is running.
class Download {
 public:
  virtual ~Download() = default;
  // Copies the pieces, as the work that was handed over so far leaves them.
  virtual void submit(const std::vector<TransferPiece>& pieces) = 0;
  // The oldest block that was submitted and not waited for; valid until the next but one submit.
  virtual const std::byte* wait() = 0;
};

// Points in the work that is handed over and the time between them, as the device's clock sees it.
class Stopwatch {
 public:
  virtual ~Stopwatch() = default;
  virtual void mark(size_t i) = 0;
  virtual double seconds(size_t from, size_t to) = 0;  // waits for both
};

// Work that is handed over again and again, each time with the same addresses. A GPU gets it as a captured whole.
class Replay {
 public:
  using Work = std::function<void()>;
  virtual ~Replay() = default;
  virtual void run(const Work& work) = 0;
  // Makes the next run() as fast as the later ones will be. That may run the work once.
  virtual void prepare(const Work& work) = 0;
};

// Used by one thread at a time.
class Device {
 public:
  explicit Device(ThreadTeam& threads) : threads_(threads) {}
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // The host's: a CPU's kernels run on them, and what the host prepares for a GPU.
  ThreadTeam& threads() const { return threads_; }
  // What kernels for GPUs are given; null where those for the CPU run.
  virtual CudaDevice* cuda() { return nullptr; }
  // How much work may usefully be handed over before the host takes the results of what came before: 0 where all is
  // done when the call returns.
  virtual int ahead() const = 0;

  // Memory full of zeros; throws Error when there is not that much. To be released with the size that was asked for.
  virtual std::byte* allocate(size_t bytes) = 0;
  virtual void release(void* memory, size_t bytes) = 0;
  // The same memory as the host may use it; null where it may not.
  virtual std::byte* on_host(std::byte* memory) const = 0;

  // The host's memory, full of zeros, from and to which a GPU's copies run beside its kernels.
  virtual std::byte* allocate_on_host(size_t bytes) = 0;
  virtual void release_on_host(void* memory, size_t bytes) = 0;

  // In the order of the work that is handed over. `copy_in` and `copy_out` return when the copy is done; `store` takes
  // at most 256 bytes at once and waits for nothing.
  virtual void copy_in(void* to, const void* from, size_t bytes) = 0;
  virtual void copy_out(void* to, const void* from, size_t bytes) = 0;
  virtual void store(void* to, const void* from, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;  // within the device's memory; waits for nothing
  virtual void wait() = 0;  // until all work is done; throws Error for what went wrong on the device

  virtual std::unique_ptr<Upload> new_upload(size_t bytes) = 0;
  // `beside`: the copies run beside newer work, which must not write what they read.
  virtual std::unique_ptr<Download> new_download(size_t bytes, bool beside = false) = 0;
  virtual std::unique_ptr<Stopwatch> new_stopwatch(size_t marks) = 0;
  virtual std::unique_ptr<Replay> new_replay() = 0;

 private:
  ThreadTeam& threads_;
};

}  // namespace llm
