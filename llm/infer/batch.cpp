#include "llm/infer/batch.h"

#include <algorithm>
#include <span>

#include "llm/base/rounding.h"

namespace llm {
namespace {

// Up to so many rows of a step cost little more than one: reading the weights takes all the time.
constexpr int64_t kCheapRows = 8;

}  // namespace

Batch::Batch(const EngineOptions& options, int64_t context, int64_t nearest)
    : options_(options), context_(context), nearest_(nearest), pool_(options.blocks) {
  for (int64_t slot = options.most_running; slot-- > 0;) free_slots_.push_back(slot);
}

void Batch::end(Engine::Id id) {
  for (auto* list : {&waiting_, &running_})
    for (const auto& s : *list)
      if (s->id == id) s->ended = true;
}

void Batch::release(Sequence& s) {
  // The last block becomes free first, so that of a chain the end is lost before the beginning.
  for (size_t i = s.blocks.size(); i-- > 0;) pool_.release(s.blocks[i]);
  s.blocks.clear();
  if (s.slot >= 0) free_slots_.push_back(s.slot);
  s.slot = -1;
  s.taken_in = s.published = 0;
}

void Batch::remove_ended() {
  for (auto* list : {&waiting_, &running_})
    std::erase_if(*list, [&](const std::unique_ptr<Sequence>& s) {
      if (s->ended) release(*s);
      return s->ended;
    });
}

// The sequence that came last of those that run goes back to the queue, in front of all that came later.
void Batch::preempt_last() {
  release(*running_.back());
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  ++counted_.preemptions;
}

// Gives a sequence blocks for the `count` tokens that it takes in next, or for as many as there are blocks for; takes
// blocks from sequences that came later where not even one would fit. Returns how many tokens fit.
int64_t Batch::make_room(Sequence& s, int64_t count, PagedModel& model) {
  const auto room = [&] { return static_cast<int64_t>(s.blocks.size()) * kBlockTokens - s.taken_in; };
  const auto before = static_cast<int64_t>(s.blocks.size());
  while (room() < count) {
    if (pool_.free() == 0) {
      if (room() > 0 || running_.back().get() == &s) break;
      preempt_last();
      continue;
    }
    s.blocks.push_back(pool_.take());
  }
  if (static_cast<int64_t>(s.blocks.size()) > before)
    model.set_blocks(s.slot, before, std::span(s.blocks).subspan(static_cast<size_t>(before)));
  return std::min(count, room());
}

// Makes the full blocks known. From now on others may share what the step makes of them: in each layer all keys and
// values are written before any are read.
void Batch::publish(Sequence& s) {
  if (!options_.prefix_cache) return;
  for (; (s.published + 1) * kBlockTokens <= s.taken_in; ++s.published)
    s.link =
        pool_.publish(s.blocks[static_cast<size_t>(s.published)], s.link, s.tokens.data() + s.published * kBlockTokens);
}

// Puts the next `count` tokens of a sequence into the step.
void Batch::schedule(Sequence& s, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = s.taken_in + i;
    const bool draws = position + 1 == s.size() && s.may_follow(context_) > 0;
    const bool scores = s.scores_prompt() && position + 1 < s.prompt && position + 1 >= s.echoed;
    if (draws || scores) wanted_.push_back({&s, static_cast<int32_t>(rows_.size()), position});
    rows_.push_back({s.tokens[static_cast<size_t>(position)], static_cast<int32_t>(position),
                     static_cast<int32_t>(s.slot), s.is_far});
  }
  s.taken_in += count;
  publish(s);
}

// Puts tokens that are likely to follow the last one into the step, as many as there are blocks for, and returns how
// many. What they leave in the blocks is written over where they do not follow, so they are not taken in yet.
int64_t Batch::schedule_draft(Sequence& s, int64_t most, PagedModel& model) {
  if (!s.is_far) most = std::min(most, nearest_ - s.size());
  std::vector<int32_t> draft = draft_by_lookup(s.tokens, most);
  const int64_t room = (static_cast<int64_t>(s.blocks.size()) + pool_.free()) * kBlockTokens - s.taken_in;
  const int64_t count = make_room(s, std::min(static_cast<int64_t>(draft.size()), room), model);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = s.taken_in + i;
    wanted_.push_back({&s, static_cast<int32_t>(rows_.size()), position});
    rows_.push_back(
        {draft[static_cast<size_t>(i)], static_cast<int32_t>(position), static_cast<int32_t>(s.slot), s.is_far});
  }
  counted_.drafted_tokens += count;
  return count;
}

bool Batch::holds(const Wanted& w) const {
  const Sequence& s = *w.sequence;
  return !w.draws() || (w.position + 1 == s.size() && s.tokens.back() == rows_[static_cast<size_t>(w.row)].token);
}

// Lets a sequence begin with the blocks that are known already, but for its last token, whose logits are wanted.
void Batch::share_prefix(Sequence& s, PagedModel& model) {
  if (!options_.prefix_cache || s.scores_prompt()) return;
  while ((s.published + 1) * kBlockTokens < s.size()) {
    const BlockPool::Block block = pool_.find(s.link, s.tokens.data() + s.published * kBlockTokens);
    if (block == BlockPool::kNoBlock) break;
    pool_.hold(block);
    s.blocks.push_back(block);
    s.link = pool_.link(block);
    ++s.published;
  }
  s.taken_in = s.published * kBlockTokens;
  if (s.published > 0) model.set_blocks(s.slot, 0, s.blocks);
}

// Begins with the sequence that has waited longest; false where there is no room for it.
bool Batch::admit(PagedModel& model) {
  if (waiting_.empty() || free_slots_.empty()) return false;
  Sequence& s = *waiting_.front();
  s.is_far = s.size() > nearest_;
  s.link = s.is_far ? BlockPool::kFarStart : BlockPool::kStart;
  s.slot = free_slots_.back();
  free_slots_.pop_back();
  share_prefix(s, model);
  // It waits until its blocks are there for all its tokens: otherwise it would soon have to give them back.
  if (ceil_div(s.size(), kBlockTokens) - s.published > pool_.free()) {
    release(s);
    return false;
  }
  if (!s.begun) counted_.prompt_tokens += s.prompt, counted_.cached_tokens += s.taken_in;
  s.begun = true;
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  return true;
}

// Texts that have become far go back to the queue, to be taken in again from their first token on.
void Batch::restart_far() {
  for (size_t i = running_.size(); i-- > 0;) {
    Sequence& s = *running_[i];
    if (s.is_far || s.size() <= nearest_) continue;
    release(s);
    waiting_.push_front(std::move(running_[i]));
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

void Batch::plan(PagedModel& model) {
  rows_.clear();
  wanted_.clear();
  restart_far();
  int64_t budget = options_.tokens_of_step;
  for (const auto& s : running_) budget -= s->left() == 1;
  const bool drafts = std::ssize(running_) * (1 + options_.drafts) <= kCheapRows;
  for (size_t i = 0; i < running_.size(); ++i) {  // make_room() may shorten the list
    Sequence& s = *running_[i];
    const bool one = s.left() == 1;
    const int64_t count = one ? 1 : std::min(budget, s.left());
    if (count == 0) continue;
    const int64_t fits = make_room(s, count, model);
    if (fits == 0) {  // the last one of all, and no block is free
      preempt_last();
      break;
    }
    schedule(s, fits);
    if (!one) {
      budget -= fits;
    } else if (drafts && s.may_draft()) {
      budget -= schedule_draft(s, std::min({options_.drafts, budget, s.may_follow(context_) - 1}), model);
    }
  }
  while (budget > 0 && admit(model)) {
    Sequence& s = *running_.back();
    const int64_t fits = make_room(s, std::min(budget, s.left()), model);
    budget -= fits;
    schedule(s, fits);
  }
}

void Batch::count(EngineStatistics& s) const {
  s.running = static_cast<int64_t>(running_.size());
  s.waiting = static_cast<int64_t>(waiting_.size());
  s.blocks_total = pool_.total();
  s.blocks_used = pool_.total() - pool_.free();
  s.blocks_cached = pool_.cached();
  s.preemptions = counted_.preemptions;
  s.prompt_tokens = counted_.prompt_tokens, s.cached_tokens = counted_.cached_tokens;
  s.drafted_tokens = counted_.drafted_tokens;
}

std::vector<int32_t> draft_by_lookup(const std::vector<int32_t>& tokens, int64_t most) {
  // With fewer tokens to look for, what follows them is mostly another one; further back it is no likelier.
  constexpr std::ptrdiff_t kLongest = 4, kShortest = 2, kFurthest = 4096;
  for (std::ptrdiff_t length = kLongest; most > 0 && length >= kShortest; --length) {
    const auto size = std::ssize(tokens);
    if (size <= length) continue;
    const auto last = tokens.end() - length;
    for (auto at = last; at-- > tokens.begin() + std::max<std::ptrdiff_t>(0, size - length - kFurthest);)
      if (std::equal(last, tokens.end(), at))
        return {at + length, at + length + std::min<std::ptrdiff_t>(most, tokens.end() - at - length)};
  }
  return {};
}

}  // namespace llm
