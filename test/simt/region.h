// The one region of addresses in which all memory of the device lies, shared by memory.cpp and watch.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "test/simt/bed.h"

namespace llm::simt::bed {

inline constexpr size_t kGap = 256 << 10;  // behind an allocation, so that a wrong index does not meet the next one
inline constexpr size_t kShared = kDeviceBytes + kGap, kRegion = kShared + (size_t{1} << 20);
extern uintptr_t region_start;  // before there is a region, far from all addresses

void* reserve(size_t bytes);          // zeros; only touched pages take memory
size_t end_of_allocation(size_t at);  // that holds the address region_start + at; 0: none does
std::string text_of_place(size_t at);

}  // namespace llm::simt::bed
