// Batches on their way to the GPU and results on their way back, beside the work on the stream; and walks over kernels that
// are captured once and launched as a whole. Plain C++, as cuda.h.
#pragma once
#include <cstddef>
#include <initializer_list>
#include <vector>

#include "llm/device/cuda.h"

struct CUevent_st;
struct CUgraphExec_st;

namespace llm {

// A part of a block: `bytes` at `offset` of it, from or to an address of the GPU.
struct TransferPiece {
  void* device;
  size_t offset, bytes;
};

// Blocks of input, copied in while the stream is busy with the one before: host -> pinned memory -> (copy stream) -> the
// GPU -> (stream) -> where the kernels read it.
class Upload {
 public:
  [[gnu::weak]] Upload(CudaDevice& device, size_t bytes);
  [[gnu::weak]] ~Upload();
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;

  // Pinned memory for the next block; waits until the copy from it two blocks ago is done.
  [[gnu::weak]] std::byte* slot();
  // Starts the copy of the slot, as soon as the block before has been consumed.
  [[gnu::weak]] void submit();
  // Puts the submitted block to its places, in the order of the stream.
  [[gnu::weak]] void consume(std::initializer_list<TransferPiece> pieces);

 private:
  CudaDevice& device_;
  size_t bytes_;
  std::byte* pinned_[2] = {};
  void* staged_ = nullptr;
  CUevent_st *copied_[2] = {}, *consumed_ = nullptr;
  int next_ = 0;
};

// Small results, up to two of which may be on their way: the host waits for the older one while newer work is running.
// `beside`: they are copied on the copy stream, so that newer work need not wait for the copy; it must not write them.
class Download {
 public:
  [[gnu::weak]] Download(CudaDevice& device, size_t bytes, bool beside = false);
  [[gnu::weak]] ~Download();
  Download(const Download&) = delete;
  Download& operator=(const Download&) = delete;

  [[gnu::weak]] void submit(std::initializer_list<TransferPiece> pieces);
  // The oldest block that was submitted and not waited for; valid until the next but one submit.
  [[gnu::weak]] const std::byte* wait();

 private:
  CudaDevice& device_;
  CUstream_st* stream_;
  std::byte* pinned_[2] = {};
  CUevent_st *made_ = nullptr, *arrived_[2] = {};
  int submitted_ = 0, taken_ = 0;
};

// At most 256 bytes, taken at once and put to their place in the order of the stream: nothing waits, nothing must be kept.
[[gnu::weak]] void store_small(CudaDevice& device, void* to, const void* from, size_t bytes);

// Points in the stream's work and the time between them, as the GPU's clock sees it.
class Stopwatch {
 public:
  [[gnu::weak]] Stopwatch(CudaDevice& device, size_t marks);
  [[gnu::weak]] ~Stopwatch();
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  [[gnu::weak]] void mark(size_t i);
  [[gnu::weak]] double seconds(size_t from, size_t to);  // waits for both

 private:
  CudaDevice& device_;
  std::vector<CUevent_st*> events_;
};

// What was put on the stream between begin and end, to be launched again and again with the same addresses.
class CudaGraph {
 public:
  CudaGraph() = default;
  [[gnu::weak]] ~CudaGraph();
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  [[gnu::weak]] static bool supported();  // not in the test bed, which runs each kernel when it is launched
  bool ready() const { return executable_ != nullptr; }
  [[gnu::weak]] void begin(CudaDevice& device);
  [[gnu::weak]] void end(CudaDevice& device);
  [[gnu::weak]] void launch(CudaDevice& device);

 private:
  CUgraphExec_st* executable_ = nullptr;
};

}  // namespace llm
