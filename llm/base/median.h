#pragma once
#include <algorithm>
#include <vector>

namespace llm {

// The median: of an even number of values the upper of the two middle ones, of no values 0.
inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace llm
