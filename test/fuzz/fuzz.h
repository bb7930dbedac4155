// For the fuzz targets: readers that open files get the input as one. An Error is the expected end of wrong input, anything
// else is a finding.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "llm/base/error.h"

namespace fuzz {

// The path of a file in memory that holds the input.
inline std::string file_of(const uint8_t* data, size_t size) {
  static const int file = ::memfd_create("fuzz", 0);
  if (::ftruncate(file, 0) != 0 || ::pwrite(file, data, size, 0) != static_cast<ssize_t>(size)) std::abort();
  return "/proc/self/fd/" + std::to_string(file);
}

template <class Work>
int run(Work&& work) {
  try {
    work();
  } catch (const llm::Error&) {
  }
  return 0;
}

}  // namespace fuzz
