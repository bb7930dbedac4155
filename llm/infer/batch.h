// Who runs: the sequences that wait and those that run, their blocks, and what the next step takes in.
#pragma once
#include <deque>
#include <memory>
#include <vector>

#include "llm/infer/block_pool.h"
#include "llm/infer/engine.h"
#include "llm/infer/paged_model.h"

namespace llm {

struct Sequence {
  Engine::Id id;
  Request request;
  RequestCallbacks callbacks;
  std::vector<int32_t> tokens;  // the prompt, then what was generated
  int64_t prompt = 0;           // tokens of the prompt
  TokenCounts counts;           // where there are penalties
  int64_t echoed = 0;           // tokens of the prompt that were handed on
  bool begun = false, ended = false;
  bool is_far = false;  // longer than the original context of longrope

  // While it is running:
  int64_t slot = -1;
  std::vector<BlockPool::Block> blocks;
  int64_t taken_in = 0;  // tokens whose keys and values are in the blocks
  BlockPool::Link link = BlockPool::kStart;
  int64_t published = 0;  // blocks

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t left() const { return size() - taken_in; }
  bool scores_prompt() const { return request.echo && request.logprobs >= 0; }
  // Whether a token's logits follow from the tokens before it alone, whatever was drawn since the step began.
  bool may_draft() const { return !request.sampling.penalizes() && !callbacks.on_logits; }
  // How many tokens may follow the last one: up to max_tokens, and one behind the context.
  int64_t may_follow(int64_t context) const { return std::min(prompt + request.max_tokens, context + 1) - size(); }
};

// A row of the step whose logits are wanted.
struct Wanted {
  Sequence* sequence;
  int32_t row;       // in the step
  int64_t position;  // in the sequence

  bool draws() const { return position + 1 >= sequence->prompt; }  // a new token; else one of the prompt is scored
  int64_t index() const { return sequence->request.first_index + position + 1 - sequence->prompt; }  // for the sampler
};

class Batch {
 public:
  // `nearest`: the longest text whose keys are those of shorter ones (ModelConfig::is_far()).
  Batch(const EngineOptions& options, int64_t context, int64_t nearest);

  bool empty() const { return waiting_.empty() && running_.empty(); }
  void add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }
  // Marks a sequence, which remove_ended() takes out.
  void end(Engine::Id id);
  void remove_ended();

  // Fills the next step: each sequence past its prompt gets one row, and with `drafts` some rows for tokens that are
  // likely to follow; the rest of the budget goes to prompts.
  void plan(PagedModel& model);
  const std::vector<TokenRow>& rows() const { return rows_; }
  const std::vector<Wanted>& wanted() const { return wanted_; }
  // Whether the logits of a row follow from the tokens of its sequence: not those behind a draft that was not drawn.
  bool holds(const Wanted& wanted) const;
  const std::deque<std::unique_ptr<Sequence>>& running() const { return running_; }

  void count(EngineStatistics& statistics) const;

 private:
  void release(Sequence& s);
  void preempt_last();
  int64_t make_room(Sequence& s, int64_t count, PagedModel& model);
  void schedule(Sequence& s, int64_t count);
  int64_t schedule_draft(Sequence& s, int64_t most, PagedModel& model);
  void publish(Sequence& s);
  void share_prefix(Sequence& s, PagedModel& model);
  bool admit(PagedModel& model);
  void restart_far();

  EngineOptions options_;
  int64_t context_, nearest_;
  BlockPool pool_;
  std::deque<std::unique_ptr<Sequence>> waiting_, running_;  // each in the order of arrival
  std::vector<int64_t> free_slots_;
  std::vector<TokenRow> rows_;
  std::vector<Wanted> wanted_;
  EngineStatistics counted_;
};

// Tokens that are likely to follow, at most `most`: those that followed the last tokens where these came before (Saxena
// 2023, "Prompt lookup decoding"); none where they did not.
std::vector<int32_t> draft_by_lookup(const std::vector<int32_t>& tokens, int64_t most);

}  // namespace llm
