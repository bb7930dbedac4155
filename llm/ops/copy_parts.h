// The rectangles of the op copy_parts.
#pragma once
#include <vector>

#include "llm/graph/graph.h"

namespace llm {

struct CopiedPart {
  int64_t input;              // its number
  int64_t from, from_stride;  // in the input: the first element, and from one row to the next
  int64_t to, to_stride;      // in the output
  int64_t rows, columns;
};

// The attribute "parts", part by part.
class CopiedParts {
 public:
  explicit CopiedParts(std::span<const int64_t> numbers) : numbers_(numbers) {}
  class Iterator {
   public:
    explicit Iterator(const int64_t* at) : at_(at) {}
    CopiedPart operator*() const { return {at_[0], at_[1], at_[2], at_[3], at_[4], at_[5], at_[6]}; }
    Iterator& operator++() {
      at_ += 7;
      return *this;
    }
    bool operator!=(const Iterator& other) const { return at_ != other.at_; }

   private:
    const int64_t* at_;
  };
  Iterator begin() const { return Iterator(numbers_.data()); }
  Iterator end() const { return Iterator(numbers_.data() + numbers_.size() / 7 * 7); }

 private:
  std::span<const int64_t> numbers_;
};

inline CopiedParts parts_of(const Attributes& attributes) { return CopiedParts(attributes.list("parts")); }

// The same rectangle the other way.
inline CopiedPart turned(const CopiedPart& p) {
  return {p.input, p.to, p.to_stride, p.from, p.from_stride, p.rows, p.columns};
}

inline void add_part(std::vector<int64_t>& list, const CopiedPart& p) {
  list.insert(list.end(), {p.input, p.from, p.from_stride, p.to, p.to_stride, p.rows, p.columns});
}

}  // namespace llm
