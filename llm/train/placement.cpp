#include "llm/train/placement.h"

#include <algorithm>
#include <utility>

#include "llm/model/muon_slices.h"
#include "llm/model/pipeline_graphs.h"

namespace llm {
namespace {

void copy(const CopiedPart& p, const float* from, float* to) {
  for (int64_t row = 0; row < p.rows; ++row)
    std::copy_n(from + p.from + row * p.from_stride, p.columns, to + p.to + row * p.to_stride);
}

}  // namespace

Placement::Placement(const std::vector<Parameter>& whole, const DataParallel& parallel, OptimizerKind kind,
                     bool tied_head)
    : parallel_(parallel),
      whole_(whole),
      sliced_(sliced_table(whole, parallel.mesh)),
      place_(parallel.mesh.place_of(parallel.run_rank)) {
  const int stages = parallel.mesh.stage;
  std::map<std::string, size_t> number;
  for (size_t p = 0; p < whole_.size(); ++p) number[whole_[p].name] = p;
  if (tied_head && stages > 1 && place_.stage + 1 == stages) tied_copy_ = "token_embedding.weight";
  for (int stage = 0; stage < stages; ++stage) {
    DataParallel there = parallel;
    there.run_rank = parallel.mesh.rank_of({parallel.rank, stage, 0, 0});
    const std::vector<Parameter> table = table_of_stage(sliced_, there);
    partitions_.push_back(partition_of(table, kind, parallel.ranks));
    const std::vector<int> owners = muon_owners(table, kind, parallel.mesh.tensor);
    const bool is_divided = parallel.ranks > 1 && parallel.zero > 0;
    for (size_t i = 0; i < table.size(); ++i) {
      const std::string& name = table[i].name;
      const size_t p = number.at(name);
      const int slices = table[i].slices;
      tensors_[name] = {p, i, stage, slices, parallel.divides_parameters()};
      for (const char* state : {".first_moment", ".second_moment", ".momentum", ".master"})
        tensors_[name + state] = {p, i, stage, slices, is_divided};
      if (owners[i] >= 0) tensors_[name + ".momentum"] = {p, i, stage, 1, is_divided, owners[i]};
    }
  }
}

int64_t Placement::elements_of(const Tensor& t) const {
  return (t.slices > 1 ? sliced_ : whole_)[t.parameter].shape.elements();
}

std::vector<CopiedPart> Placement::parts_of(const Tensor& t, int slice, bool once) const {
  return parts_of_slice(whole_[t.parameter], t.slices, slice, once);
}

void Placement::take_slice(const Tensor& t, const float* whole, float* slice) const {
  for (const CopiedPart& part : parts_of(t, slice_at(whole_[t.parameter], place_))) copy(part, whole, slice);
}

bool Placement::is_here(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return true;
  const Tensor& t = found->second;
  if (name == tied_copy_) return true;
  return t.stage == place_.stage && (t.owner < 0 || t.owner == place_.tensor);
}

Piece Placement::piece_on(const Tensor& t, int data) const {
  const Partition& partition = partitions_[static_cast<size_t>(t.stage)];
  const int64_t count = partition.count(t.in_stage, data);
  // A momentum that one tensor-parallel rank has for all is whole, and so is what it belongs to.
  return t.owner >= 0 ? Piece{0, count ? elements_of(t) : 0} : Piece{partition.first(t.in_stage, data), count};
}

Piece Placement::piece_of(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() || !found->second.is_divided ? Piece{} : piece_on(found->second, parallel_.rank);
}

std::vector<Placement::Source> Placement::sources_of(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return {};
  const Tensor& t = found->second;
  std::vector<Source> sources;
  for (int slice = 0; slice < t.slices; ++slice)
    for (int d = 0; d < (t.is_divided ? parallel_.ranks : 1); ++d) {
      const Piece piece = t.is_divided ? piece_on(t, d) : Piece{0, elements_of(t)};
      Mesh::Place place{.data = d, .stage = t.stage};
      (whole_[t.parameter].experts ? place.expert : place.tensor) = t.owner >= 0 ? t.owner : slice;
      if (piece.count > 0) sources.push_back({parallel_.mesh.rank_of(place), slice, piece.first, piece.count});
    }
  return sources;
}

float* WholeTensors::room(const std::string& name, int64_t elements) {
  flush();
  const auto found = placement_.tensors_.find(name);
  if (placement_.is_here(name) && (found == placement_.tensors_.end() || found->second.slices == 1))
    return staging_.room(name, elements);
  pending_ = name;
  whole_.resize(static_cast<size_t>(elements));
  return whole_.data();
}

void WholeTensors::flush() {
  staging_.flush();
  if (pending_.empty()) return;
  const std::string name = std::exchange(pending_, "");
  if (!placement_.is_here(name)) return;
  const Placement::Tensor& t = placement_.tensors_.at(name);
  float* const slice = staging_.room(name, placement_.elements_of(t));
  placement_.take_slice(t, whole_.data(), slice);
  staging_.flush();
}

const float* WholeTensors::slice_of(const std::string& name, const float* whole) {
  const Placement::Tensor& t = placement_.tensors_.at(name);
  if (t.slices == 1) return whole;
  slice_.resize(static_cast<size_t>(placement_.elements_of(t)));
  placement_.take_slice(t, whole, slice_.data());
  return slice_.data();
}

int64_t WholeTensors::slice_elements(const std::string& name) const {
  return placement_.elements_of(placement_.tensors_.at(name));
}

std::vector<TensorPiece> WholeTensors::own_pieces(const std::string& name, int64_t elements) {
  flush();
  std::vector<TensorPiece> pieces;
  const auto found = placement_.tensors_.find(name);
  const int rank = ranks_ ? ranks_->rank() : 0;
  if (found == placement_.tensors_.end()) {  // one that all ranks have
    if (rank == 0) pieces.push_back({0, staging_.values(name, elements), elements});
    return pieces;
  }
  const auto add = [&](int64_t first, const float* values, int64_t count) {
    const bool goes_on = !pieces.empty() && pieces.back().first + pieces.back().count == first &&
                         pieces.back().values + pieces.back().count == values;
    if (goes_on)
      pieces.back().count += count;
    else
      pieces.push_back({first, values, count});
  };
  const Placement::Tensor& t = found->second;
  const float* own = nullptr;
  for (const Placement::Source& s : placement_.sources_of(name)) {
    if (s.rank != rank) continue;
    if (!own) own = staging_.values(name, placement_.elements_of(t));
    for (const CopiedPart& part : placement_.parts_of(t, s.slice, true))
      for (int64_t row = 0; row < part.rows; ++row) {
        const int64_t first = part.to + row * part.to_stride, begin = std::max(first, s.first),
                      end = std::min(first + part.columns, s.first + s.count);
        if (begin < end) add(part.from + row * part.from_stride + (begin - first), own + begin, end - begin);
      }
  }
  return pieces;
}

const float* WholeTensors::values(const std::string& name, int64_t elements) {
  flush();
  const std::vector<Placement::Source> sources = placement_.sources_of(name);
  const int rank = ranks_ ? ranks_->rank() : 0;
  if (sources.size() <= 1 && (sources.empty() || sources[0].rank == 0))
    return rank == 0 || sources.empty() ? staging_.values(name, elements) : nullptr;
  const Placement::Tensor& t = placement_.tensors_.at(name);
  const int64_t each = placement_.elements_of(t);
  float* const own = placement_.is_here(name) ? staging_.values(name, each) : nullptr;
  if (rank == 0) slice_.resize(static_cast<size_t>(each * t.slices));
  Exchange& exchange = ranks_->prepare(kHostChannel);
  for (const Placement::Source& s : sources) {
    const size_t bytes = static_cast<size_t>(s.count) * sizeof(float);
    float* const place = slice_.data() + s.slice * each + s.first;
    if (s.rank == 0 && rank == 0)
      std::copy_n(own + s.first, s.count, place);
    else if (rank == 0)
      exchange.receives.push_back({s.rank, place, bytes});
    else if (s.rank == rank)
      exchange.sends.push_back({0, own + s.first, bytes});
  }
  ranks_->start(kHostChannel);
  ranks_->wait(kHostChannel);
  if (rank != 0 || t.slices == 1) return slice_.data();
  whole_.resize(static_cast<size_t>(elements));
  for (int slice = 0; slice < t.slices; ++slice)
    for (const CopiedPart& part : placement_.parts_of(t, slice, true))
      copy(turned(part), slice_.data() + slice * each, whole_.data());
  return whole_.data();
}

}  // namespace llm
