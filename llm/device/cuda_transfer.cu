#include "llm/device/cuda_transfer.h"

#include <cstring>

#include "llm/device/check_cuda.h"
#include "llm/device/simt.h"

namespace llm {
namespace {

cudaEvent_t new_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "make an event");
  return event;
}

struct Small {
  unsigned char bytes[256];
};

// One byte a thread.
__global__ void store_bytes(unsigned char* to, Small value, int bytes) {
  const int i = static_cast<int>(threadIdx.x);
  if (simt::in_bounds(i < bytes)) to[i] = value.bytes[i];
}

}  // namespace

void store_small(CudaDevice& device, void* to, const void* from, size_t bytes) {
  Small value;
  if (bytes > sizeof value.bytes) fail("only ", sizeof value.bytes, " bytes can be stored at once, not ", bytes);
  std::memcpy(value.bytes, from, bytes);
  simt::launch(device.stream(), 1, sizeof value.bytes, 0, store_bytes, static_cast<unsigned char*>(to), value,
               static_cast<int>(bytes));
}

Stopwatch::Stopwatch(CudaDevice& device, size_t marks) : device_(device), events_(marks) {
  for (CUevent_st*& event : events_) check_cuda(cudaEventCreate(&event), "make an event");
}

Stopwatch::~Stopwatch() {
  for (CUevent_st* event : events_) cudaEventDestroy(event);
}

void Stopwatch::mark(size_t i) { check_cuda(cudaEventRecord(events_[i], device_.stream()), "record an event"); }

double Stopwatch::seconds(size_t from, size_t to) {
  float milliseconds = 0;
  check_cuda(cudaEventSynchronize(events_[to]), "wait for the end of a measurement");
  check_cuda(cudaEventElapsedTime(&milliseconds, events_[from], events_[to]), "read a measurement");
  return static_cast<double>(milliseconds) * 1e-3;
}

Upload::Upload(CudaDevice& device, size_t bytes) : device_(device), bytes_(bytes) {
  for (int i = 0; i < 2; ++i) {
    pinned_[i] = static_cast<std::byte*>(device.allocate_pinned(bytes));
    copied_[i] = new_event();
  }
  staged_ = device.allocate(bytes);
  consumed_ = new_event();
  // The first copy waits until the stream has cleared the buffer.
  check_cuda(cudaEventRecord(consumed_, device.stream()), "record an event");
}

Upload::~Upload() {
  cudaStreamSynchronize(device_.copy_stream());
  for (int i = 0; i < 2; ++i) {
    device_.release_pinned(pinned_[i]);
    cudaEventDestroy(copied_[i]);
  }
  device_.release(staged_);
  cudaEventDestroy(consumed_);
}

std::byte* Upload::slot() {
  check_cuda(cudaEventSynchronize(copied_[next_]), "copy a batch");
  return pinned_[next_];
}

void Upload::submit() {
  const cudaStream_t copies = device_.copy_stream();
  check_cuda(cudaStreamWaitEvent(copies, consumed_, 0), "let a stream wait");
  check_cuda(cudaMemcpyAsync(staged_, pinned_[next_], bytes_, cudaMemcpyHostToDevice, copies), "copy a batch");
  check_cuda(cudaEventRecord(copied_[next_], copies), "record an event");
}

void Upload::consume(std::initializer_list<TransferPiece> pieces) {
  check_cuda(cudaStreamWaitEvent(device_.stream(), copied_[next_], 0), "let a stream wait");
  for (const TransferPiece& p : pieces)
    check_cuda(cudaMemcpyAsync(p.device, static_cast<std::byte*>(staged_) + p.offset, p.bytes, cudaMemcpyDeviceToDevice,
                               device_.stream()),
               "copy a batch");
  check_cuda(cudaEventRecord(consumed_, device_.stream()), "record an event");
  next_ ^= 1;
}

Download::Download(CudaDevice& device, size_t bytes, bool beside)
    : device_(device), stream_(beside ? device.copy_stream() : device.stream()), made_(new_event()) {
  for (int i = 0; i < 2; ++i) {
    pinned_[i] = static_cast<std::byte*>(device.allocate_pinned(bytes));
    arrived_[i] = new_event();
  }
}

Download::~Download() {
  cudaStreamSynchronize(stream_);
  cudaEventDestroy(made_);
  for (int i = 0; i < 2; ++i) {
    device_.release_pinned(pinned_[i]);
    cudaEventDestroy(arrived_[i]);
  }
}

void Download::submit(std::initializer_list<TransferPiece> pieces) {
  if (submitted_ - taken_ == 2) fail("two results are on their way from the GPU already");
  const int slot = submitted_++ % 2;
  if (stream_ != device_.stream()) {
    check_cuda(cudaEventRecord(made_, device_.stream()), "record an event");
    check_cuda(cudaStreamWaitEvent(stream_, made_, 0), "let a stream wait");
  }
  for (const TransferPiece& p : pieces)
    check_cuda(cudaMemcpyAsync(pinned_[slot] + p.offset, p.device, p.bytes, cudaMemcpyDeviceToHost, stream_),
               "copy a result");
  check_cuda(cudaEventRecord(arrived_[slot], stream_), "record an event");
}

const std::byte* Download::wait() {
  const int slot = taken_++ % 2;
  check_cuda(cudaEventSynchronize(arrived_[slot]), "read a result");
  return pinned_[slot];
}

CudaGraph::~CudaGraph() {
  if (executable_) cudaGraphExecDestroy(executable_);
}

bool CudaGraph::supported() {
#if defined(LLM_TEST_BED)
  return false;
#else
  return true;
#endif
}

void CudaGraph::begin(CudaDevice& device) {
  check_cuda(cudaStreamBeginCapture(device.stream(), cudaStreamCaptureModeThreadLocal), "begin a capture");
}

void CudaGraph::end(CudaDevice& device) {
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamEndCapture(device.stream(), &graph), "end a capture");
  const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(status, "make a captured graph run");
}

void CudaGraph::launch(CudaDevice& device) {
  check_cuda(cudaGraphLaunch(executable_, device.stream()), "launch a captured graph");
}

}  // namespace llm
