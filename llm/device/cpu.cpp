#include "llm/device/cpu.h"

#include <sys/mman.h>

#include <chrono>
#include <cstring>
#include <vector>

#include "llm/base/error.h"

namespace llm {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;

size_t aligned(size_t bytes, size_t page) { return (bytes + page - 1) / page * page; }

size_t page_of(size_t bytes) { return bytes < kHugePage ? kPage : kHugePage; }

size_t mapped_bytes(size_t bytes) { return std::max(aligned(bytes, page_of(bytes)), kPage); }

class CpuUpload : public Upload {
 public:
  explicit CpuUpload(size_t bytes) : block_(bytes) {}
  std::byte* slot() override { return block_.data(); }
  void submit() override {}
  void consume(std::initializer_list<TransferPiece> pieces) override {
    for (const TransferPiece& p : pieces) std::memcpy(p.device, block_.data() + p.offset, p.bytes);
  }

 private:
  std::vector<std::byte> block_;
};

class CpuDownload : public Download {
 public:
  explicit CpuDownload(size_t bytes) : blocks_{std::vector<std::byte>(bytes), std::vector<std::byte>(bytes)} {}
  void submit(const std::vector<TransferPiece>& pieces) override {
    if (submitted_ - taken_ == 2) fail("two results wait to be taken already");
    std::byte* const block = blocks_[submitted_++ % 2].data();
    for (const TransferPiece& p : pieces) std::memcpy(block + p.offset, p.device, p.bytes);
  }
  const std::byte* wait() override { return blocks_[taken_++ % 2].data(); }

 private:
  std::vector<std::byte> blocks_[2];
  size_t submitted_ = 0, taken_ = 0;
};

class CpuStopwatch : public Stopwatch {
 public:
  explicit CpuStopwatch(size_t marks) : times_(marks) {}
  void mark(size_t i) override { times_[i] = Clock::now(); }
  double seconds(size_t from, size_t to) override {
    return std::chrono::duration<double>(times_[to] - times_[from]).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> times_;
};

class CpuReplay : public Replay {
 public:
  void run(const Work& work) override { work(); }
  void prepare(const Work&) override {}
};

}  // namespace

std::byte* CpuDevice::allocate(size_t bytes) {
  const size_t page = page_of(bytes), mapped = mapped_bytes(bytes);
  void* data =
      ::mmap(nullptr, mapped + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    fail("the system does not give ", mapped >> 20, " MiB of memory; a smaller batch or a memory budget needs less");
  // Start on a page's boundary, and give what lies in front of it and behind back.
  const auto address = reinterpret_cast<size_t>(data);
  const size_t start = aligned(address, page);
  if (start > address) ::munmap(data, start - address);
  if (const size_t tail = address + page - start; tail > 0) ::munmap(reinterpret_cast<void*>(start + mapped), tail);
  auto* const memory = reinterpret_cast<std::byte*>(start);
  if (page == kHugePage) ::madvise(memory, mapped, MADV_HUGEPAGE);  // only an advice: small pages work too
  return memory;
}

void CpuDevice::release(void* memory, size_t bytes) { ::munmap(memory, mapped_bytes(bytes)); }

void CpuDevice::copy_in(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void CpuDevice::copy_out(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void CpuDevice::store(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void CpuDevice::copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

std::unique_ptr<Upload> CpuDevice::new_upload(size_t bytes) { return std::make_unique<CpuUpload>(bytes); }
std::unique_ptr<Download> CpuDevice::new_download(size_t bytes, bool) { return std::make_unique<CpuDownload>(bytes); }
std::unique_ptr<Stopwatch> CpuDevice::new_stopwatch(size_t marks) { return std::make_unique<CpuStopwatch>(marks); }
std::unique_ptr<Replay> CpuDevice::new_replay() { return std::make_unique<CpuReplay>(); }

}  // namespace llm
