// The file format of ggml's programs (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian: "GGUF",
// version (u32), number of tensors and of fields (u64), the fields (key, type, value), of each tensor its name, number of
// dimensions, dimensions (the contiguous one first), type and offset, and from the next multiple of the alignment on the
// tensors' bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace llm {

// The types of tensors that are read and written, by their numbers in files. Q8_0 and Q4_0: quantize_blocks.h.
enum class GgmlType : uint32_t { F32 = 0, F16 = 1, Q4_0 = 2, Q8_0 = 8, BF16 = 30 };
const char* name_of(GgmlType type);

struct GgufTensor {
  GgmlType type = GgmlType::F32;
  std::vector<int64_t> shape;  // the contiguous dimension last
  std::span<const std::byte> bytes;
  int64_t elements() const;
};

// Elements of one type: whole numbers, numbers, or texts.
struct GgufArray {
  uint32_t type = 0;
  uint64_t count = 0;
  std::span<const std::byte> bytes;
};

struct GgufContent {
  using Value = std::variant<uint64_t, int64_t, double, bool, std::string, GgufArray>;
  std::string path;
  std::map<std::string, Value> fields;
  std::map<std::string, GgufTensor> tensors;

  bool has(const std::string& key) const { return fields.contains(key); }
  // Throw Error with the path and the key for a field that is missing (without `otherwise`) or of another kind.
  std::string text(const std::string& key) const;
  uint64_t whole(const std::string& key) const;
  uint64_t whole(const std::string& key, uint64_t otherwise) const { return has(key) ? whole(key) : otherwise; }
  double number(const std::string& key) const;
  double number(const std::string& key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  bool flag(const std::string& key, bool otherwise) const;
  std::vector<std::string> texts(const std::string& key) const;
  std::vector<double> numbers(const std::string& key) const;
};

// Checks everything that the format promises; the spans point into `file`. Throws Error with `path`, the field or tensor and
// the fault; a tensor of a type that is not among GgmlType is named with it.
GgufContent parse_gguf(std::span<const std::byte> file, const std::string& path);

// All elements of a tensor as floats: exact but for a NaN's bits.
void read_floats(const GgufTensor& tensor, std::span<float> destination);

// Bytes of a row of so many elements; Q8_0 and Q4_0 take multiples of 32 alone.
int64_t row_bytes(GgmlType type, int64_t columns);

// The fields of a file to be written, in the order in which they are added.
class GgufFields {
 public:
  void add(std::string_view key, uint32_t value);
  void add(std::string_view key, float value);
  void add(std::string_view key, bool value);
  void add(std::string_view key, std::string_view value);
  void add(std::string_view key, const char* value) { add(key, std::string_view(value)); }
  void add(std::string_view key, const std::vector<std::string>& values);
  void add(std::string_view key, const std::vector<float>& values);
  void add(std::string_view key, const std::vector<int32_t>& values);

  void add_all(const GgufFields& others) { count_ += others.count_, bytes_ += others.bytes_; }
  uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void begin(std::string_view key, uint32_t type);
  void begin_array(std::string_view key, uint32_t type, uint64_t count);
  uint64_t count_ = 0;
  std::string bytes_;
};

struct GgufTensorPlan {
  std::string name;
  std::vector<int64_t> shape;  // the contiguous dimension last
  GgmlType type = GgmlType::F32;
};
// Writes a file of version 3, atomically. `source(i)` gives the elements of tensor i and is called once for each, in order.
void write_gguf(const std::string& path, const GgufFields& fields, std::span<const GgufTensorPlan> tensors,
                const std::function<std::span<const float>(size_t index)>& source);

}  // namespace llm
