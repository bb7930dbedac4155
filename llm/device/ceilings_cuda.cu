#include "llm/device/ceilings_cuda.h"

#include <algorithm>

#include "llm/device/arena.h"
#include "llm/device/gemm_cuda.h"
#include "llm/device/simt.h"

namespace llm {
namespace {

constexpr double kEnoughSeconds = 1e-3;
constexpr int kRounds = 5, kThreads = 256, kPacksAThread = 4;

using Packed = simt::Pack<float>;

// y[i] = x[i] + addend, 16 bytes at a time; x, y (packs). With y == x this is an update, with y null a read: then a sum
// above 1e30 would be written, which never occurs but keeps the compiler from leaving the loads out.
__global__ void stream_kernel(const Packed* x, Packed* y, float* sums, float addend, int64_t packs) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads * kPacksAThread) + threadIdx.x;
  Packed values[kPacksAThread];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPacksAThread; ++i) {
    const int64_t at = first + i * kThreads;
    if (simt::in_bounds(at < packs)) values[i] = x[at];
  }
#pragma unroll
  for (int i = 0; i < kPacksAThread; ++i) {
    const int64_t at = first + i * kThreads;
    if (simt::in_bounds(at < packs)) {
      for (int k = 0; k < 4; ++k) sum += values[i].values[k];
      for (int k = 0; k < 4; ++k) values[i].values[k] += addend;
      if (y) y[at] = values[i];
    }
  }
  if (!y && sum > 1e30f) sums[0] = sum;
}

// Fills x (count) with varied values in [-1, 1): a GPU multiplies zeros at a higher clock than a model's numbers.
template <class T>
__global__ void fill_kernel(T* x, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (!simt::in_bounds(i < count)) return;
  uint32_t bits = static_cast<uint32_t>(i) * 2654435761u + 12345u;
  bits = (bits ^ bits >> 15) * 2246822519u;
  x[i] = simt::stored<T>(static_cast<float>(static_cast<int32_t>(bits ^ bits >> 13)) * 0x1p-31f);
}

void fill(CudaDevice& device, void* x, int64_t count, DType dtype) {
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  if (dtype == DType::bf16)
    simt::launch(device.stream(), blocks, kThreads, 0, fill_kernel<bf16>, static_cast<bf16*>(x), count);
  else
    simt::launch(device.stream(), blocks, kThreads, 0, fill_kernel<float>, static_cast<float*>(x), count);
}

// The median of kRounds runs of `work`, after one run to warm up.
template <class Work>
double median_seconds(CudaDevice& device, Work&& work) {
  const auto watch = device.new_stopwatch(kRounds + 1);
  work();
  watch->mark(0);
  for (int i = 0; i < kRounds; ++i) {
    work();
    watch->mark(static_cast<size_t>(i) + 1);
  }
  double seconds[kRounds];
  for (int i = 0; i < kRounds; ++i) seconds[i] = watch->seconds(static_cast<size_t>(i), static_cast<size_t>(i) + 1);
  std::nth_element(seconds, seconds + kRounds / 2, seconds + kRounds);
  return seconds[kRounds / 2];
}

struct Streams {
  double read = 0, copy = 0, update = 0;  // 10^9 bytes per second, read plus written
};

// Two arrays grow from 1 MiB each until a pass takes kEnoughSeconds, up to 512 MiB each or half of the free memory
// together.
Streams measure_streams(CudaDevice& device) {
  Streams result;
  const size_t most = std::min<size_t>(size_t{1} << 29, device.free_bytes() / 4);
  for (size_t bytes = size_t{1} << 20; bytes <= most; bytes *= 8) {
    const Arena x(bytes, device), y(bytes, device), sums(256, device);
    const auto packs = static_cast<int64_t>(bytes / sizeof(Packed));
    const auto blocks = static_cast<unsigned>((packs + kThreads * kPacksAThread - 1) / (kThreads * kPacksAThread));
    const auto packed = [](const Arena& memory) { return reinterpret_cast<Packed*>(memory.data()); };
    const auto run = [&](Packed* to) {
      return median_seconds(device, [&] {
        simt::launch(device.stream(), blocks, kThreads, 0, stream_kernel, packed(x), to,
                     reinterpret_cast<float*>(sums.data()), 1.0f, packs);
      });
    };
    const auto rate = [&](double seconds, double times) {
      return seconds > 0 ? times * static_cast<double>(bytes) / seconds * 1e-9 : 0;
    };
    const double reading = run(nullptr);
    result = {rate(reading, 1), rate(run(packed(y)), 2), rate(run(packed(x)), 2)};
    if (reading > kEnoughSeconds) break;
  }
  return result;
}

}  // namespace

double measure_cuda_peak_gflops(CudaDevice& device, DType dtype) {
  double best = 0;
  for (int64_t n = 512; n <= 8192; n *= 2) {
    const auto bytes = static_cast<size_t>(n * n) * size_of(dtype);
    if (3 * bytes > device.free_bytes()) break;
    const Arena a(bytes, device), b(bytes, device), c(bytes, device);
    fill(device, a.data(), n * n, dtype);
    fill(device, b.data(), n * n, dtype);
    const CudaGemm gemm = {.m = n,
                           .n = n,
                           .k = n,
                           .a = {a.data(), dtype, n, false},
                           .b = {b.data(), dtype, n, true},
                           .c = c.data(),
                           .c_dtype = dtype,
                           .c_stride = n};
    const double seconds = median_seconds(device, [&] { cuda_gemm(device, gemm); });
    const double n3 = static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
    if (seconds > 0) best = std::max(best, 2 * n3 / seconds * 1e-9);
    if (seconds > kEnoughSeconds) break;
  }
  return best;
}

Ceilings measure_cuda_ceilings(CudaDevice& device, DType dtype) {
  Ceilings c;
  c.gflops = measure_cuda_peak_gflops(device, dtype);
  const Streams s = measure_streams(device);
  c.read_gbs = c.cached_read_gbs = s.read;
  c.copy_gbs = c.cached_copy_gbs = s.copy;
  c.update_gbs = c.cached_update_gbs = s.update;
  return c;
}

}  // namespace llm
