#include "llm/model/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/fp16.h"
#include "llm/base/json.h"

namespace llm {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian, as this code assumes");

// The reference implementation's limit on the header.
constexpr uint64_t kLargestHeader = 100'000'000;
constexpr size_t kBufferFloats = (size_t{1} << 20) / sizeof(float);

constexpr std::pair<const char*, size_t> kItemSizes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
    {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};

size_t item_size(const std::string& dtype) {
  for (auto& [name, size] : kItemSizes)
    if (dtype == name) return size;
  return 0;
}

// A name from a file, safe to print on one line.
std::string shown_name(const std::string& name) {
  return shown(name.size() > 200 ? name.substr(0, 200) + "..." : name);
}

Json parse_header(std::string_view text, const std::string& path) {
  // The parser would take a zero byte for the end of its input.
  if (text.find('\0') != text.npos) fail(path, ": the header is not JSON: it has a zero byte");
  return parse_json(text, path + ": the header", {.depth = 4, .keys_once = true});
}

// Reads a list of JSON integers from 0 to 2^63 - 1, such as a shape; false: the value is something else.
bool read_integers(const Json& value, std::vector<int64_t>& result) {
  if (!value.is_array()) return false;
  for (const Json& item : value) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()})
      return false;
    result.push_back(item.get<int64_t>());
  }
  return true;
}

SafetensorsEntry parse_entry(const Json& value, std::span<const std::byte> data, const std::string& where) {
  if (!value.is_object()) fail(where, "its header entry is not an object");
  for (const char* key : {"dtype", "shape", "data_offsets"})
    if (!value.contains(key)) fail(where, "its header entry has no \"", key, "\"");
  if (!value["dtype"].is_string()) fail(where, "its dtype is not a string");

  SafetensorsEntry entry;
  entry.dtype = value["dtype"].get<std::string>();
  const size_t item = item_size(entry.dtype);
  std::vector<int64_t> offsets;
  if (!read_integers(value["shape"], entry.shape))
    fail(where, "its shape is not a list of integers from 0 to 2^63 - 1");
  if (!read_integers(value["data_offsets"], offsets) || offsets.size() != 2)
    fail(where, "its data_offsets are not two integers from 0 to 2^63 - 1");

  const auto begin = static_cast<uint64_t>(offsets[0]), end = static_cast<uint64_t>(offsets[1]);
  if (begin > end) fail(where, "its data ends (", end, ") before it begins (", begin, ")");
  if (end > data.size())
    fail(where, "its data ends at byte ", end, " of the data, but the file has ", data.size(), ": truncated?");
  entry.bytes = data.subspan(begin, end - begin);
  if (item == 0) return entry;  // of a newer format, which nobody may read: is_floating() is false
  uint64_t bytes = item;
  for (int64_t d : entry.shape)
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(d), &bytes))
      fail(where, "its shape's size overflows 64 bits");
  if (bytes != end - begin)
    fail(where, "its shape and dtype make ", bytes, " bytes, but its offsets hold ", end - begin);
  return entry;
}

void check_coverage(const SafetensorsContent& content, std::span<const std::byte> data, const std::string& path) {
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> order;
  for (const auto& named : content.tensors) order.push_back(&named);
  const auto begin_of = [&](const SafetensorsEntry& e) { return static_cast<size_t>(e.bytes.data() - data.data()); };
  std::sort(order.begin(), order.end(), [&](auto* a, auto* b) {
    return std::pair(begin_of(a->second), a->second.bytes.size()) <
           std::pair(begin_of(b->second), b->second.bytes.size());
  });
  size_t covered = 0;
  for (const auto* named : order) {
    const size_t begin = begin_of(named->second);
    if (begin > covered)
      fail(path, ": tensor ", shown_name(named->first), ": bytes ", covered, " to ", begin,
           " of the data before it are a hole");
    if (begin < covered) fail(path, ": tensor ", shown_name(named->first), ": its data overlaps another tensor's");
    covered += named->second.bytes.size();
  }
  if (covered != data.size()) fail(path, ": ", data.size() - covered, " bytes at the end belong to no tensor");
}

template <class Stored, class Convert>
void convert(const std::byte* from, std::span<float> to, Convert convert_one) {
  for (size_t i = 0; i < to.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, from + i * sizeof stored, sizeof stored);  // may be unaligned
    to[i] = convert_one(stored);
  }
}

// The transpose of the matrix `data`, whose shape in the file is that of `t`, some rows, or a part of one, at a time: each
// block is put into `buffer`, and write(its first byte in the tensor, its bytes) is called.
template <class Write>
void for_transposed_blocks(const FloatTensor& t, const float* data, std::vector<float>& buffer, Write write) {
  const auto rows = static_cast<size_t>(t.shape[0]), columns = static_cast<size_t>(t.shape[1]);
  const size_t width = std::min(columns, kBufferFloats);
  const size_t height = std::max<size_t>(1, width == 0 ? 1 : kBufferFloats / width);
  buffer.resize(std::max(buffer.size(), std::min(rows, height) * width));
  for (size_t row = 0; row < rows; row += height) {
    const size_t block_rows = std::min(height, rows - row);
    for (size_t column = 0; column < columns; column += width) {
      const size_t block_columns = std::min(width, columns - column);
      // In strips of 16 columns, so that each cache line of the buffer is filled at once.
      for (size_t strip = 0; strip < block_columns; strip += 16)
        for (size_t r = 0; r < block_rows; ++r)
          for (size_t c = strip; c < std::min(strip + 16, block_columns); ++c)
            buffer[r * block_columns + c] = data[(column + c) * rows + row + r];
      write((row * columns + column) * sizeof(float), block_rows * block_columns * sizeof(float));
    }
  }
}

// Of a file that is to be written.
struct FileLayout {
  std::string header;           // with its length in front
  std::vector<size_t> offsets;  // of the tensors behind the header, and of their end
  size_t bytes_of(size_t i) const { return offsets[i + 1] - offsets[i]; }
};

FileLayout layout_of(const std::string& path, std::span<const FloatTensor> tensors) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  FileLayout layout{.header = "", .offsets = {0}};
  std::set<std::string> names;
  for (const FloatTensor& t : tensors) {
    if (!names.insert(t.name).second || t.name == "__metadata__")
      fail(path, ": two tensors named ", shown_name(t.name));
    if (t.transposed && t.shape.size() != 2) fail(path, ": only a matrix can be transposed, not ", shown_name(t.name));
    size_t count = 1;
    for (int64_t d : t.shape) count *= static_cast<size_t>(d);
    const size_t begin = layout.offsets.back(), end = begin + count * sizeof(float);
    header += "," + Json(t.name).dump() + R"(:{"dtype":"F32","shape":)" + Json(t.shape).dump() +
              concat(R"(,"data_offsets":[)", begin, ",", end, "]}");
    layout.offsets.push_back(end);
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data is aligned in a mapped file
  const uint64_t length = header.size();
  layout.header.assign(reinterpret_cast<const char*>(&length), sizeof length);
  layout.header += header;
  return layout;
}

// write(first byte behind the header, address, bytes) is called for what pieces(i) gives of each tensor, in order.
template <class Pieces, class Write>
void write_tensors(const FileLayout& layout, std::span<const FloatTensor> tensors, Pieces pieces, Write write) {
  std::vector<float> buffer;
  for (size_t i = 0; i < tensors.size(); ++i)
    for (const TensorPiece& piece : pieces(i))
      if (tensors[i].transposed)
        for_transposed_blocks(tensors[i], piece.values, buffer, [&](size_t from, size_t bytes) {
          write(layout.offsets[i] + from, buffer.data(), bytes);
        });
      else
        write(layout.offsets[i] + static_cast<size_t>(piece.first) * sizeof(float), piece.values,
              static_cast<size_t>(piece.count) * sizeof(float));
}

}  // namespace

int64_t SafetensorsEntry::elements() const {
  return static_cast<int64_t>(bytes.size() / std::max<size_t>(1, item_size(dtype)));
}

SafetensorsContent parse_safetensors(std::span<const std::byte> file, const std::string& path) {
  uint64_t length = 0;
  if (file.size() < sizeof length) fail(path, ": ", file.size(), " bytes are too few for a safetensors file");
  std::memcpy(&length, file.data(), sizeof length);
  if (length > kLargestHeader)
    fail(path, ": not a safetensors file: a header of ", length, " bytes, over the limit of ", kLargestHeader);
  if (length > file.size() - sizeof length)
    fail(path, ": the header has ", length, " bytes, but the file only ", file.size() - sizeof length,
         " more: truncated?");
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof length, length);
  if (!text.starts_with('{')) fail(path, ": not a safetensors file: the header does not start with '{'");
  const Json header = parse_header(text, path);
  const std::span<const std::byte> data = file.subspan(sizeof length + length);

  SafetensorsContent content;
  for (auto& [name, value] : header.items()) {
    if (name != "__metadata__") {
      content.tensors.emplace(name, parse_entry(value, data, concat(path, ": tensor ", shown_name(name), ": ")));
      continue;
    }
    if (!value.is_object() && !value.is_null()) fail(path, ": __metadata__ is not an object");
    for (auto& [key, entry] : value.items()) {
      if (!entry.is_string()) fail(path, ": __metadata__'s ", shown_name(key), " is not a string");
      content.metadata.emplace(key, entry.get<std::string>());
    }
  }
  check_coverage(content, data, path);
  return content;
}

const SafetensorsEntry* SafetensorsFile::find(const std::string& name) const {
  const auto found = content_.tensors.find(name);
  return found == content_.tensors.end() ? nullptr : &found->second;
}

const SafetensorsEntry& SafetensorsFile::tensor(const std::string& name) const {
  const SafetensorsEntry* entry = find(name);
  if (!entry) fail(path(), ": no tensor ", shown_name(name));
  return *entry;
}

ShardedSafetensors::ShardedSafetensors(const std::string& path) : path_(path) {
  std::error_code error;
  const std::string single = path + "/model.safetensors", index = single + ".index.json";
  if (!std::filesystem::is_directory(path, error)) {
    add(path);
  } else if (std::filesystem::exists(single, error)) {
    add(single);
  } else if (std::filesystem::exists(index, error)) {
    add_shards(path, index);
  } else {
    const bool pickled = std::filesystem::exists(path + "/pytorch_model.bin", error) ||
                         std::filesystem::exists(path + "/pytorch_model.bin.index.json", error);
    fail(path, ": neither model.safetensors nor model.safetensors.index.json is there",
         pickled ? ", only pytorch_model.bin, which is not read since it may run code; transformers' save_pretrained() "
                   "writes the "
                   "other form"
                 : "");
  }
}

void ShardedSafetensors::add(const std::string& file) {
  files_.emplace_back(file);
  for (auto& [name, entry] : files_.back().tensors())
    if (!tensors_.emplace(name, entry).second)
      fail(file, ": tensor ", shown_name(name), " is in an earlier shard, too");
}

void ShardedSafetensors::add_shards(const std::string& directory, const std::string& index) {
  const std::string text = read_file(index);
  const Json value = json_or_null(text);
  if (!value["weight_map"].is_object()) fail(index, ": not a JSON object with a \"weight_map\"");
  std::set<std::string> names;
  for (auto& [tensor, file] : value["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find('/') != name.npos || name.find('\0') != name.npos)
      fail(index, ": the place of tensor ", shown_name(tensor), " is not the name of a file beside the index");
    names.insert(name);
  }
  for (const std::string& name : names) add(directory + "/" + name);
  for (auto& [tensor, file] : value["weight_map"].items())
    if (!tensors_.contains(tensor))
      fail(index, ": tensor ", shown_name(tensor), " is not in ", shown_name(file.get<std::string>()));
}

bool is_floating(const SafetensorsEntry& e) {
  return e.dtype == "F32" || e.dtype == "F16" || e.dtype == "BF16" || e.dtype == "F64";
}

void read_floats(const SafetensorsEntry& entry, int64_t first, std::span<float> destination) {
  const auto count = static_cast<int64_t>(destination.size());
  if (!is_floating(entry)) fail("a tensor of dtype ", entry.dtype, " cannot be read as float");
  if (first < 0 || first > entry.elements() || count > entry.elements() - first)
    fail("elements ", first, " to ", first + count, " of a tensor of ", entry.elements());
  if (destination.empty()) return;
  const std::byte* from = entry.bytes.data() + static_cast<size_t>(first) * item_size(entry.dtype);
  if (entry.dtype == "F32") {
    std::memcpy(destination.data(), from, destination.size_bytes());
  } else if (entry.dtype == "BF16") {
    convert<uint16_t>(from, destination, [](uint16_t b) { return std::bit_cast<float>(uint32_t{b} << 16); });
  } else if (entry.dtype == "F16") {
    convert<uint16_t>(from, destination, float_of_half);
  } else {
    convert<double>(from, destination, [](double d) { return static_cast<float>(d); });
  }
}

void write_safetensors(const std::string& path, std::span<const FloatTensor> tensors,
                       const std::function<const float*(size_t index)>& source) {
  const FileLayout layout = layout_of(path, tensors);
  AtomicFile file(path);
  file.write(layout.header);
  const auto all = [&](size_t i) {
    return std::array{TensorPiece{0, source(i), static_cast<int64_t>(layout.bytes_of(i) / sizeof(float))}};
  };
  write_tensors(layout, tensors, all, [&](size_t, const float* data, size_t bytes) { file.write(data, bytes); });
  file.commit();
}

void write_safetensors_together(const std::string& path, std::span<const FloatTensor> tensors, bool begins,
                                const std::function<std::vector<TensorPiece>(size_t index)>& pieces) {
  const FileLayout layout = layout_of(path, tensors);
  SharedFile file(path);
  if (begins) file.write(0, layout.header.data(), layout.header.size());
  write_tensors(layout, tensors, pieces, [&](size_t at, const float* data, size_t bytes) {
    file.write(layout.header.size() + at, data, bytes);
  });
  file.sync();
}

}  // namespace llm
