#include "llm/model/split_context.h"

#include <map>

#include "llm/graph/op.h"
#include "llm/model/forward_rewriter.h"
#include "llm/ops/chunks.h"
#include "llm/ops/copy_parts.h"
#include "llm/ops/ring_attention.h"
#include "llm/ops/row_exchange.h"

namespace llm {
namespace {

class ContextSplitter : public ForwardRewriter {
 public:
  ContextSplitter(const Graph& whole, const RankGroup& context, ContextExchange exchange, int64_t channels)
      : ForwardRewriter(whole, channels), group_(context), exchange_(exchange) {}

 private:
  // First of all, as a pass may move what reads inputs to the front.
  void begin() override {
    for (const TensorId id : std::vector<TensorId>(ids_))
      if (id != kNone && g_.tensor(id).role == Role::input) own_[id] = own_tokens(id);
  }

  std::vector<TensorId> add(const Node& node) override {
    const std::string_view op = node.op->name;
    const bool of_sequences = op == "document_starts";  // whole ones: where a document begins, another rank may know
    std::vector<TensorId> inputs;
    for (const TensorId id : node.inputs) {
      const TensorId here = id_of(id);
      inputs.push_back(here != kNone && g_.tensor(here).role == Role::input && !of_sequences ? own_.at(here) : here);
    }
    const std::string name = name_of(node);
    Attributes attributes = node.attributes;
    if (op == "document_starts") {
      const std::vector<TensorId> whole = g_.add(op, attributes, inputs, name);
      starts_ = exchange_ == ContextExchange::ring ? add_ring_starts(g_, whole[0], group_)
                                                   : std::vector{own_starts(whole[0])};
      return whole;
    }
    if (op == "attention") {
      const std::vector<TensorId> heads = g_.add("split_heads", attributes, {inputs[0]}, name);
      if (exchange_ == ContextExchange::ring)
        return add_ring_attention(g_, attributes, heads[0], heads[1], starts_, group_, name);
      const TensorId keys = gather_chunks(g_, heads[1], group_, name + ".keys_values.all");
      attributes.set("firsts", firsts(from_.shape(node.inputs[0])[1]));
      inputs = {heads[0], starts_.empty() ? kNone : starts_[0], keys};
    } else if (op == "rope_angles") {
      const int64_t T = attributes.integer("tokens");
      attributes.set("tokens", T / group_.ranks);
      attributes.set("firsts", firsts(T));
    } else if (op == "embedding" && inputs.size() > 2) {
      attributes.set("firsts", firsts(from_.shape(node.inputs[0])[1]));
    } else if (op == "dropout") {
      const int64_t T = from_.shape(node.inputs[0])[1];
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

  // Of document starts of whole sequences, those of this rank's queries among all keys.
  TensorId own_starts(TensorId whole) {
    const int64_t T = g_.shape(whole)[1];
    const Attributes a = {
        {"tokens", T / group_.ranks}, {"firsts", firsts(T)}, {"key_chunk", T}, {"key_firsts", std::vector<int64_t>{0}}};
    return g_.add("query_starts", a, {whole}, g_.tensor(whole).name + ".own")[0];
  }

  RankGroup group_;
  ContextExchange exchange_;
  std::map<TensorId, TensorId> own_;  // by input
  std::vector<TensorId> starts_;  // of documents, for this rank's queries: one tensor, or one for each step of a ring
};

}  // namespace

Graph split_context(const Graph& whole, const RankGroup& context, ContextExchange exchange, int64_t channels) {
  return ContextSplitter(whole, context, exchange, channels).run();
}

}  // namespace llm
