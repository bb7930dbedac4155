// For the fuzz targets: readers of files get the input as a file. An Error is the expected end of wrong input; anything
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

// Writes the input to a file in memory and returns its path.
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
