// The programs of the engine: a model that takes rows, each the next token of some sequence, and gives the logits of those
// that are asked for. A program has a fixed number of rows, so there are several, which are made when they are first used.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "llm/graph/program.h"
#include "llm/infer/engine.h"
#include "llm/model/gpt.h"

namespace llm {

// A token at its position of the sequence in a slot.
struct TokenRow {
  int32_t token, position, slot;
  bool is_far = false;  // the text has more tokens than the original context of longrope
};

class PagedModel {
 public:
  // Logits of so many rows are made at once.
  static constexpr int64_t kMostHeadRows = 64;

  PagedModel(const ModelConfig& config, PersistentLayout layout, const Target& target, int64_t most_rows,
             const PagedMemory& memory, int64_t known_tokens, std::function<void(Graph&)> divide = {});

  size_t arena_bytes() const { return head_base_ + head_bytes_; }
  void bind(const Arena& arena, Communicator* ranks = nullptr);

  // Entries [first, first + count) of a slot's row of the table: the blocks of its sequence.
  void set_blocks(int64_t slot, int64_t first, std::span<const int32_t> blocks);
  // Takes the rows in: their keys and values are in their blocks from then on.
  void run(std::span<const TokenRow> rows);
  // Computes the logits of those of the rows that were taken in last, at most kMostHeadRows; on a GPU also draws by the
  // options, one for each of them.
  void run_head(std::span<const int32_t> numbers, std::span<const SampleRow> options);
  // Of the last run_head(): the draws; null where the host is to draw. Valid until the next call.
  const Draw* draws();
  // The logits (numbers, V) in the host's memory, to be used and changed until the next run_head().
  float* logits();

 private:
  struct Body {
    TensorId rows, hidden;
    Program program;
  };
  struct Head {
    TensorId hidden, logits, sampling, draws;
    Program program;
  };
  PagedGraph body_graph(int64_t rows) const;
  HeadGraph head_graph(int64_t rows) const;
  Body& body(int64_t rows);
  Head& head(int64_t rows);
  // The number of rows of the program that takes so many.
  int64_t rounded(int64_t rows) const;

  const ModelConfig config_;
  PersistentLayout layout_;
  Target target_;
  DType dtype_;
  int64_t most_rows_;
  PagedMemory memory_;
  int64_t known_tokens_;
  std::function<void(Graph&)> divide_;
  int64_t table_columns_;
  size_t table_ = 0;  // where the block tables lie in the arena
  size_t body_base_ = 0, head_base_ = 0, body_bytes_ = 0, head_bytes_ = 0;
  std::map<int64_t, std::unique_ptr<Body>> bodies_;
  std::map<int64_t, std::unique_ptr<Head>> heads_;
  Body* last_ = nullptr;
  Head* last_head_ = nullptr;
  const Arena* arena_ = nullptr;
  Communicator* ranks_ = nullptr;
  std::vector<int32_t> staged_;
  std::vector<float> logits_;  // where the host cannot use the device's, or which are no floats there
  std::vector<std::byte> fetched_;
  std::vector<Draw> draws_;
};

}  // namespace llm
