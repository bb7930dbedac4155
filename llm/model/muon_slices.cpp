#include "llm/model/muon_slices.h"

#include <algorithm>

#include "llm/ops/exchange.h"
#include "llm/ops/pieces.h"

namespace llm {
namespace {

using List = std::vector<int64_t>;

// Bounds of pieces.h for a tensor that one rank owns.
void add_owned(List& bounds, int owner, int ranks, int64_t elements) {
  for (int r = 0; r <= ranks; ++r) bounds.push_back(r <= owner ? 0 : elements);
}

std::vector<int64_t> parts_of(const Parameter& p) { return p.joined.empty() ? List{p.shape[0]} : p.joined; }

}  // namespace

std::vector<int> muon_owners(const std::vector<Parameter>& sliced, OptimizerKind kind, int tensor_ranks) {
  std::vector<double> load(static_cast<size_t>(tensor_ranks), 0);
  std::vector<int> owners;
  for (const Parameter& p : sliced) {
    owners.push_back(-1);
    if (p.slices == 1 || p.experts || !takes_muon(p, kind)) continue;
    const auto least = std::min_element(load.begin(), load.end());
    *least += muon_flops(whole_of(p));
    owners.back() = static_cast<int>(least - load.begin());
  }
  return owners;
}

std::vector<TensorId> gather_gradients(Graph& g, const std::vector<SlicedMatrix>& matrices, const RankGroup& tensor,
                                       int64_t channel, const std::string& name) {
  std::vector<TensorId> sent;
  List bounds;
  for (const SlicedMatrix& m : matrices) {
    sent.push_back(m.gradient);
    add_owned(bounds, m.owner, tensor.ranks, m.slice->shape.elements());
  }
  Attributes a = group_attributes(tensor);
  a.set("bounds", bounds), a.set("channel", channel);
  a.set("sums", List(static_cast<size_t>(tensor.ranks), 1));
  const Pieces pieces(a);
  const std::vector<TensorId> started = g.add("reduce_scatter_start", a, sent, name + ".slices");
  const TensorId received = wait_for_exchange(g, channel, started, sent, name + ".slices")[0];
  std::vector<TensorId> wholes;
  for (size_t k = 0; k < matrices.size(); ++k) {
    wholes.push_back(kNone);
    if (matrices[k].owner != tensor.rank) continue;
    const Parameter whole = whole_of(*matrices[k].slice);
    List parts;
    for (int s = 0; s < tensor.ranks; ++s)
      for (const CopiedPart& part : parts_of_slice(whole, tensor.ranks, s, true)) {
        CopiedPart p = turned(part);
        p.input = s == tensor.rank ? 1 : 0;
        if (s != tensor.rank) p.from += (s - (s > tensor.rank ? 1 : 0)) * g.shape(received)[1] + pieces.place(k);
        add_part(parts, p);
      }
    wholes.back() = g.add("copy_parts", {{"shape", List{whole.shape[0], whole.shape[1]}}, {"parts", parts}},
                          {received, matrices[k].gradient}, whole.name + ".grad.joined")[0];
  }
  return wholes;
}

std::vector<TensorId> share_updates(Graph& g, const std::vector<SlicedMatrix>& matrices,
                                    const std::vector<std::vector<TensorId>>& updates, bool bf16,
                                    const RankGroup& tensor, int64_t channel, const std::string& name) {
  List bounds, shapes;
  std::vector<TensorId> sent;
  for (size_t k = 0; k < matrices.size(); ++k) {
    const Parameter whole = whole_of(*matrices[k].slice);
    const List rows = parts_of(whole);
    for (size_t j = 0; j < rows.size(); ++j) {
      add_owned(bounds, matrices[k].owner, tensor.ranks, rows[j] * whole.shape[1]);
      shapes.insert(shapes.end(), {2, rows[j], whole.shape[1]});
      sent.push_back(updates[k].empty() ? kNone : updates[k][j]);
    }
  }
  Attributes a = group_attributes(tensor);
  a.set("bounds", bounds), a.set("shapes", shapes), a.set("bf16", bf16);
  a.set("channel", channel);
  const std::vector<TensorId> started = g.add("piece_gather_start", a, sent, name + ".updates");
  const std::vector<TensorId> wholes = wait_for_exchange(g, channel, started, sent, name + ".updates");

  std::vector<TensorId> slices;
  auto next = wholes.begin();
  for (const SlicedMatrix& m : matrices) {
    const int axis = m.slice->shard_axis;
    const List own_parts = parts_of(*m.slice);
    for (size_t k = 0; k < own_parts.size(); ++k) {
      const int64_t own_rows = own_parts[k], columns = m.slice->shape[1], stride = g.shape(*next)[1];
      const int64_t which = tensor.rank * m.slice->different_slices(k, tensor.ranks) / tensor.ranks;
      const int64_t first = axis == 0 ? which * own_rows * stride : tensor.rank * columns;
      List part;
      add_part(part, {0, first, stride, 0, columns, own_rows, columns});
      slices.push_back(g.add("copy_parts", {{"shape", List{own_rows, columns}}, {"parts", part}}, {*next++},
                             m.slice->name + ".update")[0]);
    }
  }
  return slices;
}

}  // namespace llm
