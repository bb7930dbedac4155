// Where a run's tensors are: which rank has which part of a parameter, its master and its optimizer state. Between files,
// which hold whole tensors, and the memories of ranks. The ranks' parts are one layout for any mesh, so what one mesh has
// written any other can read.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "llm/device/communicator.h"
#include "llm/graph/staging.h"
#include "llm/model/distribute.h"
#include "llm/model/safetensors.h"
#include "llm/model/shard.h"

namespace llm {

class Placement {
 public:
  // `tied_head`: the last stage of a pipeline has the matrix of the head, which the first stage steps.
  Placement(const std::vector<Parameter>& whole, const DataParallel& parallel, OptimizerKind kind, bool tied_head);

  // The parameters of all stages, sliced as ranks have them; and how the data-parallel ranks of this one's stage share
  // the steps of those that it has.
  const std::vector<Parameter>& sliced() const { return sliced_; }
  const Partition& partition() const { return partitions_[static_cast<size_t>(place_.stage)]; }
  bool is_here(const std::string& name) const;  // whether this rank has anything of a tensor
  // What this rank has of a tensor's slice.
  Piece piece_of(const std::string& name) const;

 private:
  friend class WholeTensors;
  struct Tensor {
    size_t parameter;  // its number in the table of the whole model
    size_t in_stage;   // and in that of its stage
    int stage = 0;
    int slices = 1;           // that ranks have of it
    bool is_divided = false;  // each data-parallel rank has a piece of its slice
    int owner = -1;           // the tensor-parallel rank that alone has it; -1: all
  };
  // A part of a tensor, and the rank that hands it to rank 0.
  struct Source {
    int rank, slice;
    int64_t first, count;  // elements of the slice
  };
  std::vector<Source> sources_of(const std::string& name) const;
  int64_t elements_of(const Tensor& tensor) const;       // of a slice
  Piece piece_on(const Tensor& tensor, int data) const;  // of one that is divided, on a data-parallel rank
  void take_slice(const Tensor& tensor, const float* whole, float* slice) const;  // this rank's
  std::vector<CopiedPart> parts_of(const Tensor& tensor, int slice, bool once = false) const;

  DataParallel parallel_;
  std::vector<Parameter> whole_, sliced_;
  Mesh::Place place_;                  // of this rank
  std::vector<Partition> partitions_;  // by stage
  std::string tied_copy_;  // of the first stage's parameters, the one that this stage has as well; empty: none
  std::map<std::string, Tensor> tensors_;
};

// Whole tensors in the host's memory on their way into the ranks' parts of them, and out of them.
class WholeTensors {
 public:
  // `ranks`: null where there is one.
  WholeTensors(const Arena& arena, const PersistentLayout& layout, const Placement& placement, Communicator* ranks)
      : placement_(placement),
        ranks_(ranks),
        staging_(arena, layout, [this](const std::string& name) { return placement_.piece_of(name); }) {}

  // Memory for a tensor's values; this rank's part is taken with the next call, or with flush().
  float* room(const std::string& name, int64_t elements);
  void flush();
  // All ranks' parts of a tensor, which all ranks ask for; complete on rank 0 alone, and valid until the next call.
  const float* values(const std::string& name, int64_t elements);
  // Of a tensor, what this rank alone writes: all ranks' pieces together are the tensor. Valid until the next call.
  std::vector<TensorPiece> own_pieces(const std::string& name, int64_t elements);
  // Of whole values, this rank's slice; valid until the next call, but not longer than `whole`.
  const float* slice_of(const std::string& name, const float* whole);
  int64_t slice_elements(const std::string& name) const;

 private:
  const Placement& placement_;
  Communicator* ranks_;
  Staging staging_;
  std::string pending_;  // the tensor whose values are in `whole_`; empty: none
  std::vector<float> whole_, slice_;
};

}  // namespace llm
