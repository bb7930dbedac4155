// The safetensors format (github.com/huggingface/safetensors): the header's length as a little-endian u64, a JSON
// header {name: {dtype, shape, data_offsets}}, then the tensors' bytes, row-major and little-endian, without holes or
// overlaps.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "llm/base/mapped_file.h"

namespace llm {

struct SafetensorsEntry {
  std::string dtype;  // "F32", "BF16", "I64", ... as the file names it
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // may be unaligned for its dtype
  int64_t elements() const;
};

struct SafetensorsContent {
  std::map<std::string, SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;
};

// Checks everything that the format promises; the spans point into `file`. Throws Error with `path`, the tensor and the
// fault.
SafetensorsContent parse_safetensors(std::span<const std::byte> file, const std::string& path);

// A file on disk, mapped into memory: opening it reads the header only.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path) : file_(path), content_(parse_safetensors(file_.bytes(), path)) {}

  const std::string& path() const { return file_.path(); }
  const std::map<std::string, SafetensorsEntry>& tensors() const { return content_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return content_.metadata; }
  const SafetensorsEntry* find(const std::string& name) const;    // nullptr when there is none
  const SafetensorsEntry& tensor(const std::string& name) const;  // throws Error when there is none

 private:
  MappedFile file_;
  SafetensorsContent content_;
};

// The tensors of a .safetensors file, or of a directory: of its model.safetensors, or else of all shards that its
// model.safetensors.index.json names. Throws Error for a tensor that two shards have, or that none has.
class ShardedSafetensors {
 public:
  explicit ShardedSafetensors(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, SafetensorsEntry>& tensors() const { return tensors_; }

 private:
  void add(const std::string& file);
  void add_shards(const std::string& directory, const std::string& index);

  std::string path_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, SafetensorsEntry> tensors_;
};

// Whether read_floats() can read the tensor: F32, F16, BF16 or F64.
bool is_floating(const SafetensorsEntry& entry);
// Elements [first, first + destination.size()) of the tensor as float. F32, F16 and BF16 are exact, F32 with the bits
// of NaNs; F64 is rounded. Throws Error for another dtype, or for elements that the tensor does not have.
void read_floats(const SafetensorsEntry& entry, int64_t first, std::span<float> destination);

// A float tensor to be written. `transposed`: memory holds the transpose of `shape`, which then has two dimensions.
struct FloatTensor {
  std::string name;
  std::vector<int64_t> shape;  // as the file will have it
  bool transposed = false;
};

// Writes the tensors as F32, in their order, atomically. `source(i)` is called once for each tensor, in order; its
// pointer must stay valid until the next call. Data is written from there without a copy, transposes through a buffer
// of at most 1 MiB. Throws Error when two tensors have one name.
void write_safetensors(const std::string& path, std::span<const FloatTensor> tensors,
                       const std::function<const float*(size_t index)>& source);

// Elements [first, first + count) of a tensor, in its order in memory.
struct TensorPiece {
  int64_t first;
  const float* values;
  int64_t count;
};
// Writes the pieces that one of several processes has of the tensors, all of which write the same file at once: it is
// complete when all have returned, and lies in an AtomicDirectory until then. `begins`: this process writes the header.
// `pieces(i)` is called once for each tensor, in order; the pointers must stay valid until the next call. Of a transposed
// tensor a piece is all of it.
void write_safetensors_together(const std::string& path, std::span<const FloatTensor> tensors, bool begins,
                                const std::function<std::vector<TensorPiece>(size_t index)>& pieces);

}  // namespace llm
