#pragma once
#include <algorithm>
#include <vector>

namespace llm {

// The upper one of the two in the middle of an even number of values; 0 of none.
inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace llm
