// Launchers of tiny kernels for the bed's own tests (test_simt.cpp). `data` is device memory.
#pragma once
#include <cstdint>

struct CUstream_st;

namespace llm::samples {

// data[i] = data[63 - i] through shared memory, by one block of 64 threads, with a barrier or without.
void reverse(CUstream_st* stream, float* data, bool with_barrier);
// data[i] = data[31 - i] inside one warp, with __syncwarp or without.
void reverse_in_warp(CUstream_st* stream, float* data, bool with_barrier);
// to[i] = from[i] by asynchronous copies of 16 bytes, two in flight; 256 floats.
void copy(CUstream_st* stream, float* to, const float* from);
// data[i] = shared memory that nobody wrote.
void uninitialised(CUstream_st* stream, float* data);
// Mistakes: half of the block waits at another barrier; a thread ends before the barrier; a lane stays away from a
// shuffle; a lane is not in its own mask.
void divergent(CUstream_st* stream, float* data);
void left_out(CUstream_st* stream, float* data);
void short_of_a_lane(CUstream_st* stream, float* data);
void wrong_mask(CUstream_st* stream, float* data);
void spoils_another_block(CUstream_st* stream, float* data);
void writes_behind(CUstream_st* stream, float* data, int count, bool shared);
// results: 32 per operation, in the order of test_simt.cpp.
void shuffles(CUstream_st* stream, int* results);
// d (16, 8) += a (16, 16) b (16, 8), bits of bf16, b stored by columns: loaded by load_matrix.
void multiply(CUstream_st* stream, float* d, const uint16_t* a, const uint16_t* b);
// (8, 32) 16-bit values -> each lane's four pairs, plain and transposed: 2 x (32, 4) words.
void matrices(CUstream_st* stream, uint32_t* results, const uint16_t* values);
void count(CUstream_st* stream, int* counts, const int* values, int n);

}  // namespace llm::samples
