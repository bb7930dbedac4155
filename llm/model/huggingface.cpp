#include "llm/model/huggingface.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/simd.h"
#include "llm/model/gguf_model.h"
#include "llm/model/safetensors.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

std::vector<int64_t> dims(const Shape& shape) {
  std::vector<int64_t> result;
  for (int i = 0; i < shape.rank(); ++i) result.push_back(shape[i]);
  return result;
}

// Finds a tensor by its name, which may lack the prefix: a base model, which has no head, has none. nullptr: there is none.
const SafetensorsEntry* find_tensor(const ShardedSafetensors& weights, const std::string& name,
                                    std::string& name_in_file) {
  name_in_file = name;
  auto found = weights.tensors().find(name);
  for (const std::string_view prefix : {"transformer.", "model."})
    if (found == weights.tensors().end() && name.starts_with(prefix)) {
      name_in_file = name.substr(prefix.size());
      found = weights.tensors().find(name_in_file);
    }
  return found == weights.tensors().end() ? nullptr : &found->second;
}

// Constants that older versions of transformers saved along with the weights: the causal mask, rotary frequencies.
bool is_buffer(const std::string& name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || name.ends_with(".rotary_emb.inv_freq");
}

// Appends the first five items, and how many more there are.
void append_list(std::string& message, const char* title, const std::vector<std::string>& items) {
  if (items.empty()) return;
  message += (message.empty() ? "" : "; ") + std::string(title);
  for (size_t i = 0; i < std::min<size_t>(5, items.size()); ++i) message += (i ? ", " : " ") + items[i];
  if (items.size() > 5) message += concat(" and ", items.size() - 5, " more");
}

struct FoundPart {
  const SafetensorsEntry* entry;
  FilePart part;
};
using Found = std::vector<std::vector<FoundPart>>;  // [parameter][part]

// The parts of a parameter as this file has them: matrices that lie one behind another in the parameter may be one tensor
// (as in Phi-3's files) or a tensor each.
std::vector<FilePart> parts_in(const ShardedSafetensors& weights, const Parameter& p) {
  struct Join {
    std::string_view joined;
    std::vector<std::string_view> apart;
  };
  static const Join kJoins[] = {{".qkv_proj.", {".q_proj.", ".k_proj.", ".v_proj."}},
                                {".gate_up_proj.", {".gate_proj.", ".up_proj."}}};
  std::string in_file;
  const auto renamed = [&](std::string_view from, std::string_view to) {
    std::string name = p.file_parts[0].name;
    if (const size_t at = name.find(from); at != name.npos) return name.replace(at, from.size(), to);
    return std::string();
  };
  for (const Join& join : kJoins) {
    if (p.joined.size() != join.apart.size()) continue;
    const bool is_apart = p.file_parts.size() > 1;
    const std::string other = is_apart ? renamed(join.apart[0], join.joined) : renamed(join.joined, join.apart[0]);
    if (other.empty() || !find_tensor(weights, other, in_file)) continue;
    if (is_apart) return {{other, 0, p.shape[0], false, p.shape}};
    std::vector<FilePart> parts;
    int64_t row = 0;
    for (size_t i = 0; i < join.apart.size(); row += p.joined[i++])
      parts.push_back({renamed(join.joined, join.apart[i]), row, p.joined[i], false,
                       p.shape.rank() == 1 ? Shape{p.joined[i]} : Shape{p.joined[i], p.shape[1]}});
    return parts;
  }
  return p.file_parts;
}

Found find_parts(const ShardedSafetensors& weights, const std::vector<Parameter>& table) {
  Found found;
  std::vector<std::string> missing, unexpected, misshapen, unreadable;
  std::set<std::string> used;
  for (const Parameter& p : table) {
    auto& parts = found.emplace_back();
    for (const FilePart& part : parts_in(weights, p)) {
      std::string name;
      const SafetensorsEntry* entry = find_tensor(weights, part.name, name);
      parts.push_back({entry, part});
      used.insert(name);
      if (!entry) {
        missing.push_back(part.name);
      } else if (entry->shape != dims(part.shape)) {
        misshapen.push_back(concat(name, " is ", shape_text(entry->shape), ", not ", part.shape.text()));
      } else if (!is_floating(*entry)) {
        unreadable.push_back(concat(name, " is ", entry->dtype));
      }
    }
  }
  // Some writers store the head although it is tied.
  const auto head = weights.tensors().find("lm_head.weight");
  if (head != weights.tensors().end() && used.insert("lm_head.weight").second && !table.empty() && found[0][0].entry) {
    const auto bytes = head->second.bytes, embedding = found[0][0].entry->bytes;
    if (!std::equal(bytes.begin(), bytes.end(), embedding.begin(), embedding.end()))
      unexpected.push_back("lm_head.weight (the config says that the head is the embedding, but they differ)");
  }
  for (auto& [name, entry] : weights.tensors())
    if (!used.contains(name) && !is_buffer(name)) unexpected.push_back(shown(name).substr(0, 200));

  std::string message;
  append_list(message, "missing tensors:", missing);
  append_list(message, "unexpected tensors:", unexpected);
  append_list(message, "wrong shapes:", misshapen);
  append_list(message, "not floating point:", unreadable);
  if (!message.empty()) fail(weights.path(), ": the weights are not those of the config: ", message);
  return found;
}

// The element of the parameter at which a part begins.
int64_t offset_of(const Parameter& p, const FilePart& part) {
  return p.shape.rank() < 2 ? part.first_row : part.first_row * p.shape.last();
}

void read_part(const SafetensorsEntry& entry, const Parameter& p, const FilePart& part, float* parameter) {
  float* to = parameter + offset_of(p, part);
  if (!part.transposed) return read_floats(entry, 0, {to, static_cast<size_t>(entry.elements())});
  // The file's rows, a block at a time, become columns of the parameter (rows, columns).
  const int64_t columns = part.shape[0], rows = part.shape[1];
  const int64_t block = std::max<int64_t>(1, (int64_t{1} << 18) / std::max<int64_t>(1, rows));
  std::vector<float> buffer(static_cast<size_t>(std::min(block, columns) * rows));
  for (int64_t c0 = 0; c0 < columns; c0 += block) {
    const int64_t count = std::min(block, columns - c0);
    read_floats(entry, c0 * rows, {buffer.data(), static_cast<size_t>(count * rows)});
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < count; ++c) to[r * columns + c0 + c] = buffer[static_cast<size_t>(c * rows + r)];
  }
}

bool has_norms_less_one(const std::string& path) {
  std::error_code none;
  const std::string config = path + "/config.json";
  if (!fs::exists(config, none)) return false;
  const Json values = json_or_null(read_file(config));
  return values["model_type"].is_string() && holds_norms_less_one(values["model_type"].string());
}

// By whole vectors: every weight of a model passes here whenever it is loaded. x - x is 0, but NaN where x is not finite.
bool all_finite(const float* values, int64_t count) {
  simd::Vec sum = {};
  int64_t i = 0;
  for (; i + simd::kLanes <= count; i += simd::kLanes) sum += simd::load(values + i) - simd::load(values + i);
  if (i < count) sum += simd::load_part(values + i, count - i) - simd::load_part(values + i, count - i);
  return simd::reduce_add(sum) == 0;
}

}  // namespace

bool holds_norms_less_one(const std::string& model_type) { return model_type.starts_with("gemma"); }

void load_parameters(const std::string& path, const std::vector<Parameter>& table,
                     const std::function<float*(size_t index)>& destination) {
  if (const std::string gguf = gguf_of_model(path); !gguf.empty()) return GgufModel(gguf).load(table, destination);
  const ShardedSafetensors weights(path);
  const Found found = find_parts(weights, table);
  const bool adds_one = has_norms_less_one(path);
  for (size_t i = 0; i < table.size(); ++i) {
    float* parameter = destination(i);
    for (const FoundPart& f : found[i]) read_part(*f.entry, table[i], f.part, parameter);
    const int64_t elements = table[i].shape.elements();
    if (adds_one && table[i].init == Parameter::Init::ones)
      for (int64_t e = 0; e < elements; ++e) parameter[e] += 1;
    if (all_finite(parameter, elements)) continue;
    const auto bad = std::count_if(parameter, parameter + elements, [](float w) { return !std::isfinite(w); });
    fail(weights.path(), ": ", bad, " of the ", elements, " weights of ", table[i].name,
         " are not finite, so no logits would be: the file is damaged, or its training diverged");
  }
}

namespace {

// The tensors of a file that holds the parameters of a table, and which part of which parameter each is.
struct ParameterFile {
  struct Part {
    size_t parameter;
    int64_t offset;
  };
  std::vector<FloatTensor> tensors;
  std::vector<Part> parts;

  explicit ParameterFile(const std::vector<Parameter>& table) {
    for (size_t i = 0; i < table.size(); ++i)
      for (const FilePart& part : table[i].file_parts) {
        tensors.push_back({part.name, dims(part.shape), part.transposed});
        parts.push_back({i, offset_of(table[i], part)});
      }
  }
  bool begins_parameter(size_t i) const { return i == 0 || parts[i].parameter != parts[i - 1].parameter; }
};

}  // namespace

void save_parameters(const std::string& path, const std::vector<Parameter>& table,
                     const std::function<const float*(size_t index)>& source) {
  const ParameterFile file(table);
  const float* data = nullptr;
  write_safetensors(path, file.tensors, [&](size_t i) {
    if (file.begins_parameter(i)) data = source(file.parts[i].parameter);
    return data + file.parts[i].offset;
  });
}

void save_parameters_together(const std::string& path, const std::vector<Parameter>& table, bool begins,
                              const std::function<std::vector<TensorPiece>(size_t index)>& pieces) {
  const ParameterFile file(table);
  std::vector<TensorPiece> of_parameter;
  write_safetensors_together(path, file.tensors, begins, [&](size_t i) {
    if (file.begins_parameter(i)) of_parameter = pieces(file.parts[i].parameter);
    std::vector<TensorPiece> of_tensor;
    int64_t elements = 1;
    for (const int64_t length : file.tensors[i].shape) elements *= length;
    for (const TensorPiece& p : of_parameter) {
      const int64_t offset = file.parts[i].offset, begin = std::max(p.first, offset),
                    end = std::min(p.first + p.count, offset + elements);
      if (begin < end) of_tensor.push_back({begin - offset, p.values + (begin - p.first), end - begin});
    }
    return of_tensor;
  });
}

bool has_transposed_parts(const Parameter& p) {
  return std::any_of(p.file_parts.begin(), p.file_parts.end(), [](const FilePart& part) { return part.transposed; });
}

}  // namespace llm
