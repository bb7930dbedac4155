// Running graphs: in double precision through the reference, and in fp32 through the kernels inside guarded memory.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "llm/base/random.h"
#include "test/reference.h"

namespace llm::reference {
namespace {

constexpr uint32_t kUnwritten = 0x7fc0dead, kGuard = 0x7fc0beef;  // both quiet NaNs
constexpr size_t kGuardWords = 64;                                // keeps the 256-byte alignment of a program's arena

}  // namespace

Array zeros(const Shape& shape) { return {shape, std::vector<double>(static_cast<size_t>(shape.elements()))}; }

const References& references() {
  static const References table = [] {
    References t;
    add_row_references(t);
    add_product_references(t);
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
    for (size_t i = 0; i < node.outputs.size(); ++i)
      if (node.outputs[i] != kNone) values[static_cast<size_t>(node.outputs[i])] = std::move(outputs.at(i));
  }
}

std::vector<double> random_values(const std::string& name, int64_t count, DType dtype, double low, double high) {
  const Random random(1, stream_of(name));
  std::vector<double> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    const double v = low + (high - low) * random.uniform(i);
    values[i] = dtype == DType::int32 ? std::floor(v) : static_cast<double>(static_cast<float>(v));
  }
  return values;
}

double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
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
  size_t words = kGuardWords;
  for (size_t i = 0; i < places.size(); ++i) {
    if (index(owner(static_cast<TensorId>(i))) != i) continue;
    places[i] = words;
    words += graph.tensors[i].bytes() / 4;
    words = (words + kGuardWords - 1) / kGuardWords * kGuardWords + kGuardWords;
  }
  memory_.assign(words + kGuardWords, kGuard);
  // The vector's own memory may start anywhere.
  const size_t start = (256 - reinterpret_cast<uintptr_t>(memory_.data()) % 256) % 256 / 4;
  for (size_t i = 0; i < places.size(); ++i) {
    offsets_.push_back(start + places[index(owner(static_cast<TensorId>(i)))]);
    addresses_.push_back(memory_.data() + offsets_[i]);
    std::fill_n(memory_.begin() + static_cast<std::ptrdiff_t>(offsets_[i]), graph.tensors[i].bytes() / 4, kUnwritten);
  }
}

void Sandbox::fill(TensorId id, const std::vector<double>& values) {
  std::vector<uint32_t> words(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const auto whole = static_cast<int32_t>(values[i]);
    const auto real = static_cast<float>(values[i]);
    if (graph_.tensor(id).dtype == DType::int32)
      std::memcpy(&words[i], &whole, 4);
    else
      std::memcpy(&words[i], &real, 4);
  }
  std::copy(words.begin(), words.end(), memory_.begin() + static_cast<std::ptrdiff_t>(offsets_[index(id)]));
  filled_[id] = std::move(words);
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

std::vector<double> Sandbox::values(TensorId id) const {
  const auto* data = static_cast<const float*>(addresses_[index(id)]);
  return {data, data + graph_.shape(id).elements()};
}

bool Sandbox::same_bits(TensorId id, const Sandbox& other) const {
  return std::memcmp(addresses_[index(id)], other.addresses_[index(id)], graph_.tensor(id).bytes()) == 0;
}

std::string Sandbox::damage() const {
  std::map<size_t, TensorId> by_offset;
  for (size_t i = 0; i < offsets_.size(); ++i) by_offset[offsets_[i]] = static_cast<TensorId>(i);
  size_t from = 0;
  for (auto& [offset, id] : by_offset) {
    for (; from < offset; ++from)
      if (memory_[from] != kGuard) return "memory in front of " + graph_.tensor(id).name;
    from = offset + graph_.tensor(id).bytes() / 4;
  }
  for (; from < memory_.size(); ++from)
    if (memory_[from] != kGuard) return "memory behind " + graph_.tensor(by_offset.rbegin()->second).name;

  std::set<size_t> written;
  for (const Node& node : graph_.nodes)
    for (TensorId id : node.outputs)
      if (id != kNone) written.insert(offsets_[index(id)]);
  for (auto& [id, words] : filled_)
    if (!written.contains(offsets_[index(id)]) &&
        std::memcmp(addresses_[index(id)], words.data(), words.size() * 4) != 0)
      return graph_.tensor(id).name;
  return "";
}

}  // namespace llm::reference
