// How the ranks of a run share a model and its batches: a mesh of data x stage x context x tensor x expert ranks. Ranks that
// differ in `data` alone have the same part of the model and other samples; `stage`: other layers; `context`: other tokens
// of each sequence; `tensor`: other slices of each matrix; `expert`: other experts, and other sequences of a micro-step.
// Ranks that talk most have neighbouring numbers: tensor varies fastest, then context, expert, data and stage.
#pragma once
#include <string>

#include "llm/base/error.h"
#include "llm/base/names.h"
#include "llm/base/rank_group.h"

namespace llm {

// How ranks that share sequences get each other's keys and values (llm/model/split_context.h).
enum class ContextExchange { gather, ring };
template <>
inline constexpr std::array kNames<ContextExchange> = {"gather", "ring"};

struct Mesh {
  int data = 1, stage = 1, context = 1, tensor = 1, expert = 1;

  struct Place {
    int data = 0, stage = 0, context = 0, tensor = 0, expert = 0;
  };
  int ranks() const { return data * stage * context * tensor * expert; }
  bool is_data_alone() const { return ranks() == data; }
  Place place_of(int rank) const {
    const int tokens = rank % sharing();
    return {rank / sharing() % data, rank / (sharing() * data), tokens / tensor % context, tokens % tensor,
            tokens / (tensor * context)};
  }
  int rank_of(const Place& p) const {
    return (((p.stage * data + p.data) * expert + p.expert) * context + p.context) * tensor + p.tensor;
  }

  // The ranks that differ from this one in one coordinate alone.
  RankGroup data_group(int rank) const {
    const Place p = place_of(rank);
    return {p.data, data, rank_of({0, p.stage, p.context, p.tensor, p.expert}), sharing()};
  }
  RankGroup stage_group(int rank) const {
    const Place p = place_of(rank);
    return {p.stage, stage, rank_of({p.data, 0, p.context, p.tensor, p.expert}), data * sharing()};
  }
  RankGroup context_group(int rank) const {
    const Place p = place_of(rank);
    return {p.context, context, rank_of({p.data, p.stage, 0, p.tensor, p.expert}), tensor};
  }
  RankGroup tensor_group(int rank) const {
    const Place p = place_of(rank);
    return {p.tensor, tensor, rank_of({p.data, p.stage, p.context, 0, p.expert}), 1};
  }
  RankGroup expert_group(int rank) const {
    const Place p = place_of(rank);
    return {p.expert, expert, rank_of({p.data, p.stage, p.context, p.tensor, 0}), context * tensor};
  }
  // Those that share the tokens of a micro-step: they differ in `expert`, `context` and `tensor`.
  RankGroup token_group(int rank) const { return {rank % sharing(), sharing(), rank / sharing() * sharing(), 1}; }
  // Of those, the ranks with this one's slices of the matrices; and those with this one's experts.
  RankGroup same_matrices(int rank) const {
    const Place p = place_of(rank);
    return {p.expert * context + p.context, expert * context, rank_of({p.data, p.stage, 0, p.tensor, 0}), tensor};
  }
  RankGroup same_experts(int rank) const {
    const Place p = place_of(rank);
    return {p.context * tensor + p.tensor, context * tensor, rank_of({p.data, p.stage, 0, 0, p.expert}), 1};
  }
  RankGroup all(int rank) const { return {rank, ranks(), 0, 1}; }

  std::string text() const {
    return concat("data ", data, " x stage ", stage, " x context ", context, " x tensor ", tensor,
                  expert > 1 ? concat(" x expert ", expert) : "");
  }
  int sharing() const { return expert * context * tensor; }  // ranks that share the tokens of a micro-step
  friend bool operator==(const Mesh&, const Mesh&) = default;
};

}  // namespace llm
