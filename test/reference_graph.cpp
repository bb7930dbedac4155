// Runs graphs: in double precision through the reference, and in fp32 through the kernels inside guarded memory.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <type_traits>

#include "llm/base/fp8.h"
#include "llm/base/random.h"
#include "llm/device/arena.h"
#include "llm/device/cuda.h"
#include "test/reference.h"

namespace llm::reference {
namespace {

// Patterns of two bytes: one is a NaN in bf16, and two in a row are a NaN in fp32.
constexpr uint16_t kUnwritten = 0xffff, kGuard = 0xfffb;
constexpr size_t kAlign = 256;  // as in a program's arena; a guard has this size, too

void fill_pairs(std::byte* from, size_t bytes, uint16_t pair) {
  for (size_t i = 0; i < bytes; ++i) from[i] = static_cast<std::byte>(pair >> (i % 2 ? 8 : 0));
}

}  // namespace

Array zeros(const Shape& shape) { return {shape, std::vector<double>(static_cast<size_t>(shape.elements()))}; }

const References& references() {
  static const References table = [] {
    References t;
    add_row_references(t);
    add_product_references(t);
    add_expert_references(t);
    add_muon_references(t);
    add_rank_references(t);
    add_backward_references(t);
    return t;
  }();
  return table;
}

void evaluate(const Graph& graph, std::vector<Array>& values, const StepState& step) {
  values.resize(graph.tensors.size());
  for (const Node& node : graph.nodes) {
    const auto found = references().find(node.op->name);
    if (found == references().end()) fail("the op ", node.op->name, " has no reference");
    std::vector<Array> inputs;
    for (TensorId id : node.inputs) inputs.push_back(id == kNone ? Array{} : values[static_cast<size_t>(id)]);
    std::vector<Array> outputs = found->second(node.attributes, inputs, step);
    for (size_t i = 0; i < node.outputs.size(); ++i) {
      const TensorId id = node.outputs[i];
      if (id == kNone) continue;
      Array& to = values[static_cast<size_t>(id)] = std::move(outputs.at(i));
      if (graph.storage(id) == id) continue;
      Array& owner = values[static_cast<size_t>(graph.storage(id))];
      if (graph.tensor(id).role == Role::accumulator)  // a second node that writes it adds
        for (size_t j = 0; j < to.values.size(); ++j) to.values[j] += owner.values[j];
      owner = to;
    }
  }
}

std::vector<double> random_values(const std::string& name, int64_t count, DType dtype, double low, double high) {
  const Random random(1, stream_of(name));
  std::vector<double> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    const double v = low + (high - low) * random.uniform(i);
    const auto real = static_cast<float>(v);
    switch (dtype) {
      case DType::fp32: values[i] = real; break;
      case DType::bf16: values[i] = to_float(nearest_bf16(real)); break;
      case DType::e4m3: values[i] = to_float(nearest_fp8<e4m3>(real)); break;
      case DType::e5m2: values[i] = to_float(nearest_fp8<e5m2>(real)); break;
      default: values[i] = std::floor(v); break;
    }
  }
  return values;
}

double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isinf(b[i]) && a[i] == b[i]) continue;  // both are the same infinity
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, std::abs(a[i] - b[i]));
    size = std::max(size, std::abs(b[i]));
  }
  return size > 0 ? difference / size : difference;
}

Sandbox::Sandbox(const Graph& graph, TensorId output, TensorId input) : graph_(graph) {
  const auto owner = [&](TensorId id) {
    const TensorId storage = graph.storage(id);
    return storage == output ? graph.storage(input) : storage;
  };
  std::vector<size_t> places(graph.tensors.size());
  size_t bytes = kAlign;
  for (size_t i = 0; i < places.size(); ++i) {
    if (index(owner(static_cast<TensorId>(i))) != i) continue;
    places[i] = bytes;
    bytes += (graph.tensors[i].bytes() + kAlign - 1) / kAlign * kAlign + kAlign;
  }
  memory_.resize(bytes + kAlign);
  // The vector's memory may start anywhere, so the places begin at a multiple of kAlign in it.
  const size_t start = (kAlign - reinterpret_cast<uintptr_t>(memory_.data()) % kAlign) % kAlign;
  fill_pairs(memory_.data(), memory_.size(), kGuard);
  for (size_t i = 0; i < places.size(); ++i) {
    offsets_.push_back(start + places[index(owner(static_cast<TensorId>(i)))]);
    addresses_.push_back(memory_.data() + offsets_[i]);
    fill_pairs(memory_.data() + offsets_[i], graph.tensors[i].bytes(), kUnwritten);
  }
}

void Sandbox::fill(TensorId id, const std::vector<double>& values) {
  std::vector<std::byte> bytes(graph_.tensor(id).bytes());
  for (size_t i = 0; i < values.size(); ++i) {
    const auto put = [&](auto value) { std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value); };
    switch (graph_.dtype(id)) {
      case DType::fp32: put(static_cast<float>(values[i])); break;
      case DType::bf16: put(nearest_bf16(static_cast<float>(values[i]))); break;
      case DType::e4m3: put(nearest_fp8<e4m3>(static_cast<float>(values[i]))); break;
      case DType::e5m2: put(nearest_fp8<e5m2>(static_cast<float>(values[i]))); break;
      default: put(static_cast<int32_t>(values[i])); break;
    }
  }
  std::memcpy(addresses_[index(id)], bytes.data(), bytes.size());
  filled_[id] = std::move(bytes);
}

void Sandbox::copy(TensorId id, const Sandbox& other) {
  std::memcpy(addresses_[index(id)], other.addresses_[index(id)], graph_.tensor(id).bytes());
}

void Sandbox::run(ThreadTeam& threads, const StepState& step) {
  for (size_t i = 0; i < graph_.nodes.size(); ++i) run_node(i, threads, step);
}

void Sandbox::run_node(size_t node, ThreadTeam& threads, const StepState& step) {
  graph_.nodes[node].op->cpu({graph_, graph_.nodes[node], threads, step, addresses_.data()});
}

void Sandbox::run(CudaDevice& device, const StepState& step, Place place) {
  run_nodes(0, graph_.nodes.size(), device, step, place);
}

void Sandbox::run_node(size_t node, CudaDevice& device, const StepState& step) {
  run_nodes(node, node + 1, device, step, Place::together);
}

void Sandbox::run_nodes(size_t first, size_t end, CudaDevice& device, const StepState& step, Place place) {
  struct Piece {
    std::unique_ptr<Arena> memory;
    std::byte* host;
  };
  std::vector<Piece> pieces;
  std::vector<void*> addresses(addresses_.size());
  if (place == Place::together) {
    // Copies from the first multiple of 256 bytes on.
    const size_t start = offsets_.empty() ? 0 : *std::min_element(offsets_.begin(), offsets_.end()) - kAlign;
    pieces.push_back({std::make_unique<Arena>(memory_.size() - start, device), memory_.data() + start});
    for (size_t i = 0; i < addresses.size(); ++i) addresses[i] = pieces[0].memory->data() + (offsets_[i] - start);
  } else {
    std::map<size_t, void*> by_offset;
    for (size_t i = 0; i < addresses.size(); ++i) {
      void*& address = by_offset[offsets_[i]];
      if (!address) {
        pieces.push_back({std::make_unique<Arena>(graph_.tensors[i].bytes(), device), memory_.data() + offsets_[i]});
        address = pieces.back().memory->data();
      }
      addresses[i] = address;
    }
  }
  for (const Piece& piece : pieces) piece.memory->write(0, piece.host, piece.memory->bytes());
  const Arena on_device(sizeof step, device);
  on_device.write(0, &step, sizeof step);
  for (size_t i = first; i < end; ++i)
    graph_.nodes[i].op->cuda({graph_, graph_.nodes[i], device.threads(), step, addresses.data(), &device,
                              reinterpret_cast<StepState*>(on_device.data())});
  device.wait();
  for (const Piece& piece : pieces) piece.memory->read(0, piece.host, piece.memory->bytes());
}

std::vector<double> Sandbox::values(TensorId id) const {
  std::vector<double> values;
  const auto add = [&](const auto* data) {
    for (int64_t i = 0; i < graph_.shape(id).elements(); ++i) {
      if constexpr (std::is_same_v<decltype(*data), const int32_t&>)
        values.push_back(data[i]);
      else
        values.push_back(to_float(data[i]));
    }
  };
  const void* address = addresses_[index(id)];
  switch (graph_.dtype(id)) {
    case DType::fp32: add(static_cast<const float*>(address)); break;
    case DType::bf16: add(static_cast<const bf16*>(address)); break;
    case DType::e4m3: add(static_cast<const e4m3*>(address)); break;
    case DType::e5m2: add(static_cast<const e5m2*>(address)); break;
    default: add(static_cast<const int32_t*>(address)); break;
  }
  return values;
}

bool Sandbox::same_bits(TensorId id, const Sandbox& other) const {
  return std::memcmp(addresses_[index(id)], other.addresses_[index(id)], graph_.tensor(id).bytes()) == 0;
}

std::string Sandbox::damage() const {
  std::map<size_t, TensorId> by_offset;
  for (size_t i = 0; i < offsets_.size(); ++i) by_offset[offsets_[i]] = static_cast<TensorId>(i);
  const auto is_guard = [&](size_t i) { return memory_[i] == static_cast<std::byte>(kGuard >> (i % 2 ? 8 : 0)); };
  size_t from = 0;
  for (auto& [offset, id] : by_offset) {
    for (; from < offset; ++from)
      if (!is_guard(from)) return "memory in front of " + graph_.tensor(id).name;
    from = offset + graph_.tensor(id).bytes();
  }
  for (; from < memory_.size(); ++from)
    if (!is_guard(from)) return "memory behind " + graph_.tensor(by_offset.rbegin()->second).name;

  std::set<size_t> written;
  for (const Node& node : graph_.nodes)
    for (TensorId id : node.outputs)
      if (id != kNone) written.insert(offsets_[index(id)]);
  for (auto& [id, bytes] : filled_)
    if (!written.contains(offsets_[index(id)]) && std::memcmp(addresses_[index(id)], bytes.data(), bytes.size()) != 0)
      return graph_.tensor(id).name;
  return "";
}

}  // namespace llm::reference
