#include "llm/model/split_context.h"

#include <map>

#include "llm/graph/op.h"
#include "llm/ops/chunks.h"
#include "llm/ops/copy_parts.h"
#include "llm/ops/row_exchange.h"

namespace llm {
namespace {

class ContextSplitter {
 public:
  ContextSplitter(const Graph& whole, const RankGroup& context, int64_t channels)
      : whole_(whole), group_(context), ids_(whole.tensors.size(), kNone) {
    g_.channels = channels;
  }

  Graph run() {
    for (size_t i = 0; i < whole_.tensors.size(); ++i)
      if (const Tensor& t = whole_.tensors[i]; t.role == Role::parameter || t.role == Role::input) {
        ids_[i] = static_cast<TensorId>(g_.tensors.size());
        g_.tensors.push_back(t);
      }
    // First of all, as a pass may move what reads them to the front.
    for (const TensorId id : std::vector<TensorId>(ids_))
      if (id != kNone && g_.tensor(id).role == Role::input) own_[id] = own_tokens(id);
    for (const Node& node : whole_.nodes) {
      g_.phase = node.phase, g_.layer = node.layer;
      const std::vector<TensorId> outputs = add(node);
      for (size_t i = 0; i < node.outputs.size(); ++i) {
        if (node.outputs[i] == kNone) continue;
        ids_[static_cast<size_t>(node.outputs[i])] = outputs[i];
        g_.tensor(outputs[i]).name = whole_.tensor(node.outputs[i]).name;
      }
    }
    g_.layer = -1;
    return std::move(g_);
  }

 private:
  std::vector<TensorId> add(const Node& node) {
    const std::string_view op = node.op->name;
    const bool of_sequences = op == "document_starts";  // whole ones: where a document begins, another rank may know
    std::vector<TensorId> inputs;
    for (const TensorId id : node.inputs) {
      const TensorId here = id == kNone ? kNone : ids_[static_cast<size_t>(id)];
      inputs.push_back(here != kNone && g_.tensor(here).role == Role::input && !of_sequences ? own_.at(here) : here);
    }
    const std::string name = whole_.tensor(node.outputs[0]).name;
    Attributes attributes = node.attributes;
    if (op == "attention") {
      const int64_t T = whole_.shape(node.inputs[0])[1];
      const std::vector<TensorId> heads = g_.add("split_heads", attributes, {inputs[0]}, name);
      const TensorId keys = gather_chunks(g_, heads[1], group_, name + ".keys_values.all");
      attributes.set("firsts", firsts(T));
      inputs = {heads[0], inputs.size() > 1 ? inputs[1] : kNone, keys};
    } else if (op == "rope_angles") {
      const int64_t T = attributes.integer("tokens");
      attributes.set("tokens", T / group_.ranks);
      attributes.set("firsts", firsts(T));
    } else if (op == "embedding" && inputs.size() > 2) {
      attributes.set("firsts", firsts(whole_.shape(node.inputs[0])[1]));
    } else if (op == "dropout") {
      const int64_t T = whole_.shape(node.inputs[0])[1];
      attributes.set("firsts", firsts(T));
      attributes.set("chunk", chunks(T).length);
    }
    return g_.add(op, attributes, inputs, name);
  }

  Chunks chunks(int64_t tokens) const { return zigzag_chunks(tokens, group_.rank, group_.ranks); }
  std::vector<int64_t> firsts(int64_t tokens) const {
    const Chunks c = chunks(tokens);
    return {c.firsts[0], c.firsts[1]};
  }

  // Of an input (B, T), this rank's tokens (B, T / ranks).
  TensorId own_tokens(TensorId input) {
    const Tensor all = g_.tensor(input);
    const int64_t B = all.shape[0], T = all.shape[1];
    const Chunks c = chunks(T);
    std::vector<int64_t> parts;
    for (int64_t i = 0; i < 2; ++i) add_part(parts, {0, c.firsts[i], T, i * c.length, 2 * c.length, B, c.length});
    const std::vector<int64_t> shape = {B, 2 * c.length};
    return g_.add("copy_parts", {{"shape", shape}, {"parts", parts}}, {input}, all.name + ".own")[0];
  }

  const Graph& whole_;
  RankGroup group_;
  Graph g_;
  std::vector<TensorId> ids_;         // by tensor of the whole graph
  std::map<TensorId, TensorId> own_;  // by input
};

}  // namespace

Graph split_context(const Graph& whole, const RankGroup& context, int64_t channels) {
  return ContextSplitter(whole, context, channels).run();
}

}  // namespace llm
