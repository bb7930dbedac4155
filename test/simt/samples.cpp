// Kernels with a known result or a known mistake, compiled as the ops' kernels are.
#include "test/simt/samples.h"

#include "llm/device/simt.h"

namespace llm::samples {
namespace {

struct Row {
  float values[64];
};

__global__ void reverse_kernel(float* data, bool with_barrier) {
  Row& row = simt::shared_memory<Row>();
  const int i = static_cast<int>(threadIdx.x);
  row.values[i] = data[i];
  if (with_barrier) __syncthreads();
  data[i] = row.values[63 - i];
}

__global__ void reverse_in_warp_kernel(float* data, bool with_barrier) {
  Row& row = simt::shared_memory<Row>();
  const int i = static_cast<int>(threadIdx.x);
  row.values[i] = data[i];
  if (with_barrier) __syncwarp();
  data[i] = row.values[31 - i];
}

// Two stages of 32 floats; 8 threads.
__global__ void copy_kernel(float* to, const float* from) {
  Row& row = simt::shared_memory<Row>();
  const int i = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int stage) {
    simt::copy_async_16(row.values + stage % 2 * 32 + 4 * i, from + (stage % 8) * 32 + 4 * i, stage < 8);
    simt::copy_commit();
  };
  fetch(0);
  for (int stage = 0; stage < 8; ++stage) {
    fetch(stage + 1);
    simt::copy_wait<1>();
    __syncthreads();
    for (int k = 0; k < 4; ++k) to[stage * 32 + k * 8 + i] = row.values[stage % 2 * 32 + k * 8 + i];
    __syncthreads();
  }
}

__global__ void uninitialised_kernel(float* data) {
  data[threadIdx.x] = simt::shared_memory<Row>().values[threadIdx.x];
}

__global__ void divergent_kernel(float* data) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  data[threadIdx.x] = 1;
}

__global__ void left_out_kernel(float* data) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  data[threadIdx.x] = 1;
}

__global__ void short_of_a_lane_kernel(float* data) {
  float sum = data[threadIdx.x];
  if (threadIdx.x != 7) sum += __shfl_xor_sync(simt::kWholeWarp, sum, 1);
  data[threadIdx.x] = sum;
}

__global__ void wrong_mask_kernel(float* data) { data[threadIdx.x] += __shfl_sync(0xff, data[threadIdx.x], 0); }

__global__ void spoil_kernel(float* data) { data[0] = static_cast<float>(blockIdx.x); }

__global__ void write_kernel(float* data, int count, bool shared) {
  float* to = shared ? simt::shared_memory<Row>().values : data;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += 32) to[i] = 1;
}

__global__ void shuffles_kernel(int* results) {
  const int lane = static_cast<int>(threadIdx.x);
  int operation = 0;
  const auto put = [&](int value) { results[operation++ * 32 + lane] = value; };
  const int v = 100 + lane;
  put(__shfl_sync(simt::kWholeWarp, v, 5));
  put(__shfl_sync(simt::kWholeWarp, v, lane + 3, 8));
  put(__shfl_xor_sync(simt::kWholeWarp, v, 9));
  put(__shfl_down_sync(simt::kWholeWarp, v, 3));
  put(__shfl_up_sync(simt::kWholeWarp, v, 3));
  put(__shfl_down_sync(simt::kWholeWarp, v, 3, 8));
  put(static_cast<int>(__ballot_sync(simt::kWholeWarp, lane % 3 == 0)));
  put(__any_sync(simt::kWholeWarp, lane == 31));
  put(__all_sync(simt::kWholeWarp, lane != 31));
  put(lane < 16 ? __shfl_xor_sync(0xffff, v, 1) : __shfl_xor_sync(0xffff0000, v, 2));
  put(static_cast<int>(__shfl_sync(simt::kWholeWarp, static_cast<double>(v) * 1e9, 4) / 1e9));
  put(__syncthreads_count(lane < 7));
}

struct Tiles {
  uint16_t a[16 * 16], b[8 * 16];
};

__global__ void multiply_kernel(float* d, const uint16_t* a, const uint16_t* b) {
  Tiles& s = simt::shared_memory<Tiles>();
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, member = lane % 4;
  for (int i = lane; i < 256; i += 32) s.a[i] = a[i];
  for (int i = lane; i < 128; i += 32) s.b[i] = b[i];
  __syncwarp();
  // Matrices: rows 0-7, rows 8-15 of columns 0-7; the same of columns 8-15.
  uint32_t x[4], y[4];
  simt::load_matrix_x4(x, s.a + (lane % 16) * 16 + lane / 16 * 8);
  simt::load_matrix_x4(y, s.b + (lane % 8) * 16 + lane / 8 % 2 * 8);
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[(group + i / 2 * 8) * 8 + 2 * member + i % 2];
  simt::mma_16x8x16(sum, x, {y[0], y[1]});
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + 2 * member + i % 2] = sum[i];
}

__global__ void matrices_kernel(uint32_t* results, const uint16_t* values) {
  Tiles& s = simt::shared_memory<Tiles>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) s.a[i] = values[i];
  __syncwarp();
  uint32_t r[4];
  simt::load_matrix_x4(r, s.a + lane % 8 * 32 + lane / 8 * 8);
  for (int i = 0; i < 4; ++i) results[lane * 4 + i] = r[i];
  simt::load_matrix_x4_transposed(r, s.a + lane % 8 * 32 + lane / 8 * 8);
  for (int i = 0; i < 4; ++i) results[128 + lane * 4 + i] = r[i];
}

__global__ void count_kernel(int* counts, const int* values, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (simt::in_bounds(i < n)) atomicAdd(counts + values[i], 1);
}

}  // namespace

void reverse(CUstream_st* stream, float* data, bool with_barrier) {
  simt::launch(stream, 1, 64, sizeof(Row), reverse_kernel, data, with_barrier);
}
void reverse_in_warp(CUstream_st* stream, float* data, bool with_barrier) {
  simt::launch(stream, 1, 32, sizeof(Row), reverse_in_warp_kernel, data, with_barrier);
}
void copy(CUstream_st* stream, float* to, const float* from) {
  simt::launch(stream, 1, 8, sizeof(Row), copy_kernel, to, from);
}
void uninitialised(CUstream_st* stream, float* data) {
  simt::launch(stream, 1, 64, sizeof(Row), uninitialised_kernel, data);
}
void divergent(CUstream_st* stream, float* data) { simt::launch(stream, 1, 64, 0, divergent_kernel, data); }
void left_out(CUstream_st* stream, float* data) { simt::launch(stream, 1, 64, 0, left_out_kernel, data); }
void short_of_a_lane(CUstream_st* stream, float* data) { simt::launch(stream, 1, 32, 0, short_of_a_lane_kernel, data); }
void wrong_mask(CUstream_st* stream, float* data) { simt::launch(stream, 1, 32, 0, wrong_mask_kernel, data); }
void spoils_another_block(CUstream_st* stream, float* data) { simt::launch(stream, 3, 1, 0, spoil_kernel, data); }
void writes_behind(CUstream_st* stream, float* data, int count, bool shared) {
  simt::launch(stream, 1, 32, sizeof(Row), write_kernel, data, count, shared);
}
void shuffles(CUstream_st* stream, int* results) { simt::launch(stream, 1, 32, 0, shuffles_kernel, results); }
void multiply(CUstream_st* stream, float* d, const uint16_t* a, const uint16_t* b) {
  simt::launch(stream, 1, 32, sizeof(Tiles), multiply_kernel, d, a, b);
}
void matrices(CUstream_st* stream, uint32_t* results, const uint16_t* values) {
  simt::launch(stream, 1, 32, sizeof(Tiles), matrices_kernel, results, values);
}
void count(CUstream_st* stream, int* counts, const int* values, int n) {
  simt::launch(stream, (n + 63) / 64, 64, 0, count_kernel, counts, values, n);
}

}  // namespace llm::samples
