// Stands in for CUDA's header of this name, which llm/device/hopper.h includes: the bodies of that header's wrappers
// (asynchronous.cpp).
#pragma once
#include "test/simt/cuda_runtime.h"

struct CUtensorMap {
  llm::simt::bed::BoxMap map;
};

[[noreturn]] inline void __trap() { llm::simt::bed::fail_thread({nullptr, 0}, "a trap"); }

namespace llm::simt {

template <class T>
T& tile_memory(LLM_BED_SITE) {
  return *static_cast<T*>(bed::shared_memory(sizeof(T), {file, line}));
}
inline int computed_here(int value) { return value; }

template <class Barrier>
void initialize(Barrier& barrier, unsigned arrivals, LLM_BED_SITE) {
  bed::initialize_barrier(&barrier, arrivals, {file, line});
}
inline void fence_initialization() {}
template <class Barrier>
void arrive(Barrier& barrier, LLM_BED_SITE) {
  bed::arrive_at(&barrier, 0, {file, line});
}
template <class Barrier>
void arrive_expecting(Barrier& barrier, unsigned bytes, LLM_BED_SITE) {
  const bool disabled = bed::is_disabled(file, line, bed::Kind::expected_bytes);
  bed::arrive_at(&barrier, disabled ? 0 : bytes, {file, line});
}
template <class Barrier>
void wait(Barrier& barrier, unsigned parity, LLM_BED_SITE) {
  if (!bed::is_disabled(file, line, bed::Kind::phase)) bed::wait_for_phase(&barrier, parity, {file, line});
}

inline CUtensorMap tensor_map(const bf16* tensor, const uint64_t (&sizes)[4], const uint64_t (&strides)[3],
                              const uint32_t (&box)[4]) {
  CUtensorMap map{};
  map.map.tensor = reinterpret_cast<const std::byte*>(tensor);
  map.map.strides[0] = sizeof(bf16);
  for (int i = 0; i < 4; ++i) {
    map.map.sizes[i] = static_cast<int64_t>(sizes[i]), map.map.box[i] = static_cast<int>(box[i]);
    if (i > 0) map.map.strides[i] = static_cast<int64_t>(strides[i - 1]);
  }
  return map;
}
template <class Barrier>
void copy_box_async(void* shared, const CUtensorMap& map, int x, int y, int z, int w, Barrier& barrier, LLM_BED_SITE) {
  bed::copy_box(shared, map.map, {x, y, z, w}, &barrier, {file, line});
}
template <class Barrier>
void copy_bytes_async(void* shared, const void* global, unsigned bytes, Barrier& barrier, LLM_BED_SITE) {
  bed::copy_bytes(shared, global, bytes, &barrier, {file, line});
}
inline void prefetch(const CUtensorMap&) {}
inline void fence_async_proxy(LLM_BED_SITE) {
  if (!bed::is_disabled(file, line, bed::Kind::fence)) bed::fence_async_proxy();
}

inline void meet(int id, int threads, LLM_BED_SITE) {
  if (!bed::is_disabled(file, line, bed::Kind::barrier)) bed::meet_at(id, threads, true, {file, line});
}
inline void pass(int id, int threads, LLM_BED_SITE) { bed::meet_at(id, threads, false, {file, line}); }

template <int N>
void give_back_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
}
template <int N>
void take_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
}

using Operand = bed::Operand;
template <template <int, int> class Tile, int kRows, int kColumns>
Operand row_operand(const Tile<kRows, kColumns>& tile, int row, int step) {
  return {tile.values, kRows, kColumns, row, step, false};
}
template <template <int, int> class Tile, int kRows, int kColumns>
Operand column_operand(const Tile<kRows, kColumns>& tile, int step) {
  return {tile.values, kRows, kColumns, 0, step, true};
}

inline void products_begin(LLM_BED_SITE) {
  if (!bed::is_disabled(file, line, bed::Kind::fence)) bed::products_begin();
}
inline void products_commit() { bed::products_commit(); }
template <int kPending>
void products_wait(LLM_BED_SITE) {
  if (!bed::is_disabled(file, line, bed::Kind::copy_wait)) bed::products_wait(kPending, {file, line});
}
template <int N>
void hold(float (&)[N][4]) {}
template <bool, int N>
void multiply_async(float (&d)[N][4], Operand a, Operand b, bool add, LLM_BED_SITE) {
  bed::multiply({.d = d, .parts = N, .add = add, .left = a, .right = b}, {file, line});
}
template <bool, int N>
void multiply_async(float (&d)[N][4], const uint32_t (&a)[4], Operand b, bool add, LLM_BED_SITE) {
  bed::multiply({.d = d, .parts = N, .add = add, .left_registers = a, .right = b}, {file, line});
}

}  // namespace llm::simt
