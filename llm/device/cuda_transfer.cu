// Batches on their way to a GPU and results on their way back, beside the work on its stream; and walks over kernels
// that are captured once and launched as a whole.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "llm/device/arena.h"
#include "llm/device/check_cuda.h"
#include "llm/device/cuda.h"
#include "llm/device/cuda_event.h"
#include "llm/device/simt.h"

namespace llm {
namespace {

// The host's memory, from and to which copies run in the background.
class Pinned {
 public:
  explicit Pinned(size_t bytes) {
    check_cuda(cudaMallocHost(&memory_, std::max<size_t>(1, bytes)), "allocate ", bytes, " bytes of pinned memory");
  }
  ~Pinned() { cudaFreeHost(memory_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(memory_); }

 private:
  void* memory_ = nullptr;
};

// The host -> pinned memory -> (copy stream) -> the GPU -> (stream) -> where the kernels read it.
class CudaUpload final : public Upload {
 public:
  CudaUpload(CudaDevice& device, size_t bytes)
      : device_(device), bytes_(bytes), pinned_{Pinned(bytes), Pinned(bytes)}, staged_(bytes, device) {
    consumed_.record(device.stream());  // the first copy waits until the stream has cleared the buffer
  }
  ~CudaUpload() override { cudaStreamSynchronize(device_.copy_stream()); }

  std::byte* slot() override {
    copied_[next_].wait("copy a batch");
    return pinned_[next_].data();
  }
  void submit() override {
    const cudaStream_t copies = device_.copy_stream();
    consumed_.hold_back(copies);
    check_cuda(cudaMemcpyAsync(staged_.data(), pinned_[next_].data(), bytes_, cudaMemcpyHostToDevice, copies),
               "copy a batch");
    copied_[next_].record(copies);
  }
  void consume(std::initializer_list<TransferPiece> pieces) override {
    const cudaStream_t stream = device_.stream();
    copied_[next_].hold_back(stream);
    for (const TransferPiece& p : pieces)
      check_cuda(cudaMemcpyAsync(p.device, staged_.data() + p.offset, p.bytes, cudaMemcpyDeviceToDevice, stream),
                 "copy a batch");
    consumed_.record(stream);
    next_ ^= 1;
  }

 private:
  CudaDevice& device_;
  size_t bytes_;
  Pinned pinned_[2];
  Arena staged_;
  CudaEvent copied_[2], consumed_;
  int next_ = 0;
};

class CudaDownload final : public Download {
 public:
  CudaDownload(CudaDevice& device, size_t bytes, bool beside)
      : device_(device),
        stream_(beside ? device.copy_stream() : device.stream()),
        pinned_{Pinned(bytes), Pinned(bytes)} {}
  ~CudaDownload() override { cudaStreamSynchronize(stream_); }

  void submit(const std::vector<TransferPiece>& pieces) override {
    if (submitted_ - taken_ == 2) fail("two results are on their way from the GPU already");
    const int slot = submitted_++ % 2;
    if (stream_ != device_.stream()) {
      made_.record(device_.stream());
      made_.hold_back(stream_);
    }
    for (const TransferPiece& p : pieces)
      check_cuda(cudaMemcpyAsync(pinned_[slot].data() + p.offset, p.device, p.bytes, cudaMemcpyDeviceToHost, stream_),
                 "copy a result");
    arrived_[slot].record(stream_);
  }
  const std::byte* wait() override {
    const int slot = taken_++ % 2;
    arrived_[slot].wait("read a result");
    return pinned_[slot].data();
  }

 private:
  CudaDevice& device_;
  cudaStream_t stream_;
  Pinned pinned_[2];
  CudaEvent made_, arrived_[2];
  int submitted_ = 0, taken_ = 0;
};

class CudaStopwatch final : public Stopwatch {
 public:
  CudaStopwatch(CudaDevice& device, size_t marks) : device_(device) {
    for (size_t i = 0; i < marks; ++i) events_.emplace_back(cudaEventDefault);
  }
  void mark(size_t i) override { events_[i].record(device_.stream()); }
  double seconds(size_t from, size_t to) override {
    events_[to].wait("wait for the end of a measurement");
    return events_[to].milliseconds_since(events_[from]) * 1e-3;
  }

 private:
  CudaDevice& device_;
  std::vector<CudaEvent> events_;
};

// The first run is made kernel by kernel: then products choose their algorithms, which cannot be captured.
class CudaReplay final : public Replay {
 public:
  explicit CudaReplay(CudaDevice& device) : device_(device) {}
  ~CudaReplay() override {
    if (executable_) cudaGraphExecDestroy(executable_);
  }

  void run(const Work& work) override {
    if (!ran_ || !CudaDevice::captures()) {
      ran_ = true;
      return work();
    }
    capture(work);
    check_cuda(cudaGraphLaunch(executable_, device_.stream()), "launch a captured graph");
  }
  void prepare(const Work& work) override {
    if (!ran_) run(work);
    if (CudaDevice::captures()) capture(work);
  }

 private:
  void capture(const Work& work) {
    if (executable_) return;
    check_cuda(cudaStreamBeginCapture(device_.stream(), cudaStreamCaptureModeThreadLocal), "begin a capture");
    work();
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(device_.stream(), &graph), "end a capture");
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "make a captured graph run");
  }

  CudaDevice& device_;
  bool ran_ = false;
  cudaGraphExec_t executable_ = nullptr;
};

struct Small {
  unsigned char bytes[256];
};

// One byte a thread.
__global__ void store_bytes(unsigned char* to, Small value, int bytes) {
  const int i = static_cast<int>(threadIdx.x);
  if (simt::in_bounds(i < bytes)) to[i] = value.bytes[i];
}

}  // namespace

void CudaDevice::store(void* to, const void* from, size_t bytes) {
  Small value;
  if (bytes > sizeof value.bytes) fail("only ", sizeof value.bytes, " bytes can be stored at once, not ", bytes);
  std::memcpy(value.bytes, from, bytes);
  simt::launch(stream(), 1, sizeof value.bytes, 0, store_bytes, static_cast<unsigned char*>(to), value,
               static_cast<int>(bytes));
}

std::unique_ptr<Upload> CudaDevice::new_upload(size_t bytes) { return std::make_unique<CudaUpload>(*this, bytes); }
std::unique_ptr<Download> CudaDevice::new_download(size_t bytes, bool beside) {
  return std::make_unique<CudaDownload>(*this, bytes, beside);
}
std::unique_ptr<Stopwatch> CudaDevice::new_stopwatch(size_t marks) {
  return std::make_unique<CudaStopwatch>(*this, marks);
}
std::unique_ptr<Replay> CudaDevice::new_replay() { return std::make_unique<CudaReplay>(*this); }

}  // namespace llm
