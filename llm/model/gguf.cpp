#include "llm/model/gguf.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/fp16.h"
#include "llm/base/json.h"
#include "llm/base/quantize_blocks.h"
#include "llm/base/rounding.h"

namespace llm {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kVersion = 3, kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9;
constexpr size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // of a value, by its type; 0: it varies
constexpr uint64_t kAlignment = 32;

// The names of ggml's types by number; empty: none.
constexpr const char* kTypes[] = {"F32",     "F16",    "Q4_0",    "Q4_1",  "",       "",      "Q5_0",  "Q5_1",
                                  "Q8_0",    "Q8_1",   "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
                                  "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
                                  "I8",      "I16",    "I32",     "I64",   "F64",    "IQ1_M", "BF16",  "",
                                  "",        "",       "TQ1_0",   "TQ2_0", "",       "",      "",      "MXFP4"};

bool is_known(uint32_t type) { return type == 0 || type == 1 || type == 2 || type == 8 || type == 30; }

std::string type_text(uint32_t type) {
  const char* name = type < std::size(kTypes) ? kTypes[type] : "";
  return *name ? name : concat("number ", type);
}

// A file's bytes, one value after the other.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  std::span<const std::byte> take(uint64_t count, const char* what) {
    if (count > bytes_.size() - at_) fail(path_, ": truncated: it ends at byte ", bytes_.size(), ", inside ", what);
    const auto taken = bytes_.subspan(at_, count);
    at_ += count;
    return taken;
  }
  template <class T>
  T value(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof value, what).data(), sizeof value);
    return value;
  }
  std::string text(const char* what) {
    const auto taken = take(value<uint64_t>(what), what);
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }
  size_t at() const { return at_; }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
  size_t at_ = 0;
};

// The double of the shortest decimal number that is nearest to this float: 1e-6, not 9.99999997e-07.
double decimal(float value) {
  char digits[32];
  double result = value;
  std::from_chars(digits, std::to_chars(digits, digits + sizeof digits, value).ptr, result);
  return result;
}

GgufContent::Value read_value(Reader& reader, uint32_t type, const std::string& path, const std::string& key) {
  const char* what = "a field";
  switch (type) {
    case 0: return uint64_t{reader.value<uint8_t>(what)};
    case 1: return int64_t{reader.value<int8_t>(what)};
    case 2: return uint64_t{reader.value<uint16_t>(what)};
    case 3: return int64_t{reader.value<int16_t>(what)};
    case kUint32: return uint64_t{reader.value<uint32_t>(what)};
    case kInt32: return int64_t{reader.value<int32_t>(what)};
    case kFloat32: return decimal(reader.value<float>(what));
    case kBool: return reader.value<uint8_t>(what) != 0;
    case kString: return reader.text(what);
    case 10: return uint64_t{reader.value<uint64_t>(what)};
    case 11: return int64_t{reader.value<int64_t>(what)};
    case 12: return reader.value<double>(what);
    case kArray: break;
    default: fail(path, ": the field ", shown(key), " has a type that is not known, ", type);
  }
  GgufArray array{reader.value<uint32_t>(what), reader.value<uint64_t>(what), {}};
  if (array.type >= std::size(kSizes) || array.type == kArray)
    fail(path, ": the field ", shown(key), " is a list of a type that is not read, ", array.type);
  // Of a list of texts each takes at least its length.
  const size_t least = array.type == kString ? sizeof(uint64_t) : kSizes[array.type];
  if (array.count > uint64_t{1} << 40) fail(path, ": the field ", shown(key), " is a list of ", array.count);
  if (array.type != kString) {
    array.bytes = reader.take(array.count * least, what);
    return array;
  }
  const size_t begin = reader.at();
  Reader ahead = reader;
  for (uint64_t i = 0; i < array.count; ++i) ahead.take(ahead.value<uint64_t>(what), what);
  array.bytes = reader.take(ahead.at() - begin, what);
  return array;
}

template <class Kind>
const Kind* find(const GgufContent& content, const std::string& key) {
  const auto found = content.fields.find(key);
  if (found == content.fields.end()) fail(content.path, ": no field ", key);
  return std::get_if<Kind>(&found->second);
}

[[noreturn]] void fail_kind(const GgufContent& content, const std::string& key, const char* kind) {
  fail(content.path, ": the field ", key, " is not ", kind);
}

template <class T>
T element(const GgufArray& array, uint64_t i) {
  T value;
  std::memcpy(&value, array.bytes.data() + i * sizeof value, sizeof value);
  return value;
}

uint64_t alignment_of(const GgufContent& content) {
  const uint64_t alignment = content.whole("general.alignment", kAlignment);
  if (alignment == 0 || alignment > 1 << 20 || (alignment & (alignment - 1)))
    fail(content.path, ": general.alignment is ", alignment, ", not a power of two");
  return alignment;
}

void append(std::string& bytes, const void* from, size_t count) { bytes.append(static_cast<const char*>(from), count); }
template <class T>
void append(std::string& bytes, T value) {
  append(bytes, &value, sizeof value);
}
void append_text(std::string& bytes, std::string_view text) {
  append(bytes, uint64_t{text.size()});
  bytes += text;
}

// A block of 32 values as files have it.
void append_block(std::string& bytes, GgmlType type, const float* values) {
  const QuantizedBlock block = type == GgmlType::Q8_0 ? quantize_to_8_bits(values) : quantize_to_4_bits(values);
  append(bytes, block.scale);
  if (type == GgmlType::Q8_0) return append(bytes, block.numbers, kBlockValues);
  for (int64_t i = 0; i < kBlockValues / 2; ++i)
    append(bytes, static_cast<uint8_t>((block.numbers[i] + 8) | (block.numbers[i + kBlockValues / 2] + 8) << 4));
}

std::string encode(GgmlType type, std::span<const float> values) {
  std::string bytes;
  bytes.reserve(static_cast<size_t>(row_bytes(type, static_cast<int64_t>(values.size()))));
  if (type == GgmlType::Q8_0 || type == GgmlType::Q4_0) {
    for (size_t i = 0; i < values.size(); i += kBlockValues) append_block(bytes, type, values.data() + i);
  } else {
    for (const float value : values)
      append(bytes, type == GgmlType::F16 ? nearest_half(value) : nearest_bf16(value).bits);
  }
  return bytes;
}

}  // namespace

const char* name_of(GgmlType type) { return kTypes[static_cast<uint32_t>(type)]; }

int64_t GgufTensor::elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

std::string GgufContent::text(const std::string& key) const {
  if (const auto* value = find<std::string>(*this, key)) return *value;
  fail_kind(*this, key, "a text");
}

uint64_t GgufContent::whole(const std::string& key) const {
  if (const auto* value = find<uint64_t>(*this, key)) return *value;
  if (const auto* value = find<int64_t>(*this, key); value && *value >= 0) return static_cast<uint64_t>(*value);
  fail_kind(*this, key, "a whole number of 0 or more");
}

double GgufContent::number(const std::string& key) const {
  if (const auto* value = find<double>(*this, key)) return *value;
  return static_cast<double>(whole(key));
}

bool GgufContent::flag(const std::string& key, bool otherwise) const {
  if (!has(key)) return otherwise;
  if (const auto* value = find<bool>(*this, key)) return *value;
  fail_kind(*this, key, "a flag");
}

std::vector<std::string> GgufContent::texts(const std::string& key) const {
  const auto* array = find<GgufArray>(*this, key);
  if (!array || array->type != kString) fail_kind(*this, key, "a list of texts");
  Reader reader(array->bytes, path);
  std::vector<std::string> all;
  for (uint64_t i = 0; i < array->count; ++i) all.push_back(reader.text("a list"));
  return all;
}

std::vector<double> GgufContent::numbers(const std::string& key) const {
  const auto* array = find<GgufArray>(*this, key);
  if (!array || (array->type != kUint32 && array->type != kInt32 && array->type != kFloat32))
    fail_kind(*this, key, "a list of numbers of 32 bits");
  std::vector<double> all;
  for (uint64_t i = 0; i < array->count; ++i)
    all.push_back(array->type == kFloat32 ? static_cast<double>(element<float>(*array, i))
                  : array->type == kInt32 ? static_cast<double>(element<int32_t>(*array, i))
                                          : static_cast<double>(element<uint32_t>(*array, i)));
  return all;
}

GgufContent parse_gguf(std::span<const std::byte> file, const std::string& path) {
  if (file.size() < 4 || std::memcmp(file.data(), "GGUF", 4) != 0) fail(path, ": not a GGUF file");
  Reader reader(file, path);
  reader.take(4, "the header");
  const auto version = reader.value<uint32_t>("the header");
  if (version != 2 && version != kVersion)
    fail(path, ": GGUF of version ", version, "; readable: 2 and 3, little-endian");
  const auto tensors = reader.value<uint64_t>("the header"), fields = reader.value<uint64_t>("the header");
  GgufContent content;
  content.path = path;
  for (uint64_t i = 0; i < fields; ++i) {
    const std::string key = reader.text("the name of a field");
    const auto type = reader.value<uint32_t>("a field");
    if (!content.fields.emplace(key, read_value(reader, type, path, key)).second)
      fail(path, ": two fields are named ", shown(key));
  }
  const uint64_t alignment = alignment_of(content);
  std::vector<std::pair<GgufTensor*, uint64_t>> places;
  for (uint64_t i = 0; i < tensors; ++i) {
    const std::string name = reader.text("the name of a tensor");
    const auto [at, is_new] = content.tensors.try_emplace(name);
    if (!is_new) fail(path, ": two tensors are named ", shown(name));
    GgufTensor& t = at->second;
    const auto rank = reader.value<uint32_t>("a tensor's shape");
    if (rank < 1 || rank > 4) fail(path, ": tensor ", shown(name), " has ", rank, " dimensions");
    int64_t elements = 1;
    for (uint32_t d = 0; d < rank; ++d) {
      const auto size = reader.value<uint64_t>("a tensor's shape");
      if (size > uint64_t{1} << 40 || __builtin_mul_overflow(elements, static_cast<int64_t>(size), &elements) ||
          elements > int64_t{1} << 48)
        fail(path, ": tensor ", shown(name), " has more than 2^48 elements");
      t.shape.insert(t.shape.begin(), static_cast<int64_t>(size));
    }
    const auto type = reader.value<uint32_t>("a tensor's type");
    if (!is_known(type))
      fail(path, ": tensor ", shown(name), " is ", type_text(type),
           ", which is not read; readable: F32, F16, BF16, Q8_0 and Q4_0");
    t.type = static_cast<GgmlType>(type);
    const bool in_blocks = t.type == GgmlType::Q8_0 || t.type == GgmlType::Q4_0;
    if (in_blocks && t.shape.back() % kBlockValues)
      fail(path, ": tensor ", shown(name), " is ", name_of(t.type), " with rows of ", t.shape.back(), " elements");
    places.emplace_back(&t, reader.value<uint64_t>("a tensor's place"));
  }
  const uint64_t begin = (reader.at() + alignment - 1) / alignment * alignment;
  for (const auto& [tensor, offset] : places) {
    const auto bytes = static_cast<uint64_t>(row_bytes(tensor->type, tensor->elements()));
    if (offset % alignment) fail(path, ": a tensor lies at ", offset, ", not at a multiple of ", alignment);
    if (begin > file.size() || offset > file.size() - begin || bytes > file.size() - begin - offset)
      fail(path, ": truncated: it has ", file.size(), " bytes, and a tensor ends at ", begin + offset + bytes);
    tensor->bytes = file.subspan(begin + offset, bytes);
  }
  return content;
}

int64_t row_bytes(GgmlType type, int64_t columns) {
  switch (type) {
    case GgmlType::F32: return columns * 4;
    case GgmlType::Q8_0: return columns / kBlockValues * (2 + kBlockValues);
    case GgmlType::Q4_0: return columns / kBlockValues * (2 + kBlockValues / 2);
    default: return columns * 2;
  }
}

void read_floats(const GgufTensor& tensor, std::span<float> to) {
  if (static_cast<int64_t>(to.size()) != tensor.elements()) fail("a GGUF tensor is read as another number of elements");
  const std::byte* from = tensor.bytes.data();
  if (tensor.type == GgmlType::F32) {
    if (!to.empty()) std::memcpy(to.data(), from, to.size_bytes());
    return;
  }
  if (tensor.type == GgmlType::F16 || tensor.type == GgmlType::BF16) {
    for (size_t i = 0; i < to.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, from + 2 * i, 2);
      to[i] = tensor.type == GgmlType::F16 ? float_of_half(bits) : to_float(bf16{bits});
    }
    return;
  }
  const auto block_bytes = static_cast<size_t>(row_bytes(tensor.type, kBlockValues));
  for (size_t first = 0; first < to.size(); first += kBlockValues, from += block_bytes) {
    uint16_t half;
    std::memcpy(&half, from, 2);
    const float scale = float_of_half(half);
    for (size_t i = 0; i < kBlockValues; ++i) {
      int number;
      if (tensor.type != GgmlType::Q4_0) {
        number = static_cast<int8_t>(from[2 + i]);
      } else {
        const auto two = static_cast<unsigned>(from[2 + i % (kBlockValues / 2)]);
        number = static_cast<int>(i < kBlockValues / 2 ? two & 15 : two >> 4) - 8;
      }
      to[first + i] = scale * static_cast<float>(number);
    }
  }
}

void GgufFields::begin(std::string_view key, uint32_t type) {
  append_text(bytes_, key);
  append(bytes_, type);
  ++count_;
}
void GgufFields::begin_array(std::string_view key, uint32_t type, uint64_t count) {
  begin(key, kArray);
  append(bytes_, type);
  append(bytes_, count);
}
void GgufFields::add(std::string_view key, uint32_t value) { begin(key, kUint32), append(bytes_, value); }
void GgufFields::add(std::string_view key, float value) { begin(key, kFloat32), append(bytes_, value); }
void GgufFields::add(std::string_view key, bool value) { begin(key, kBool), append(bytes_, uint8_t{value}); }
void GgufFields::add(std::string_view key, std::string_view value) { begin(key, kString), append_text(bytes_, value); }
void GgufFields::add(std::string_view key, const std::vector<std::string>& values) {
  begin_array(key, kString, values.size());
  for (const std::string& value : values) append_text(bytes_, value);
}
void GgufFields::add(std::string_view key, const std::vector<float>& values) {
  begin_array(key, kFloat32, values.size());
  append(bytes_, values.data(), values.size() * sizeof(float));
}
void GgufFields::add(std::string_view key, const std::vector<int32_t>& values) {
  begin_array(key, kInt32, values.size());
  append(bytes_, values.data(), values.size() * sizeof(int32_t));
}

void write_gguf(const std::string& path, const GgufFields& fields, std::span<const GgufTensorPlan> tensors,
                const std::function<std::span<const float>(size_t index)>& source) {
  const auto padded = [](uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  std::string header = "GGUF";
  append(header, kVersion);
  append(header, uint64_t{tensors.size()});
  append(header, fields.count());
  header += fields.bytes();
  uint64_t offset = 0;
  for (const GgufTensorPlan& t : tensors) {
    append_text(header, t.name);
    append(header, static_cast<uint32_t>(t.shape.size()));
    int64_t elements = 1;
    for (auto size = t.shape.rbegin(); size != t.shape.rend(); ++size) append(header, *size), elements *= *size;
    append(header, static_cast<uint32_t>(t.type));
    append(header, offset);
    offset += padded(static_cast<uint64_t>(row_bytes(t.type, elements)));
  }
  header.resize(padded(header.size()));
  AtomicFile file(path);
  file.write(header);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::span<const float> values = source(i);
    const std::string zeros(kAlignment, '\0'),
        bytes = tensors[i].type == GgmlType::F32 ? "" : encode(tensors[i].type, values);
    const size_t size = bytes.empty() ? values.size_bytes() : bytes.size();
    bytes.empty() ? file.write(values.data(), size) : file.write(bytes);
    file.write(zeros.data(), padded(size) - size);
  }
  file.commit();
}

}  // namespace llm
