// The inference engine: many requests at once through one model, in steps of a few hundred tokens.
//
// Keys and values lie in blocks of kBlockTokens positions, which sequences hold by reference counts (Kwon et al. 2023,
// "PagedAttention"). A full block is known by the hash of its tokens and of all before them, and is shared by the
// sequences that begin with the same tokens. A shared block is always full and so never written: where other systems
// copy on writing, at most one block of tokens is computed again. Each step takes one token of every sequence that is
// past its prompt, and fills up its budget of tokens with pieces of prompts in the order of arrival (Yu et al. 2022,
// "Orca"; Agrawal et al. 2023, "Sarathi"). When blocks run out, the sequence that came last gives its blocks back and is
// computed again later.
//
// The contract: what a request gets, ids and log-probabilities bit by bit, does not depend on the other requests, on
// the order of arrival, on the pieces its prompt is cut into, on preemption, on whether a prefix was cached, or on the
// number of threads. Each product and each attention keeps one order of sums whatever the number of rows, and a token is
// drawn by a pure function of (logits, options, seed, index).
//
// Text is the business of the layer above: it turns text into ids and back, looks for stop strings, and calls cancel()
// when it has found one. All functions are called by one thread.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "llm/graph/program.h"
#include "llm/model/config.h"
#include "llm/ops/sampling.h"

namespace llm {

inline constexpr int64_t kBlockTokens = 16;

struct Request {
  std::vector<int32_t> prompt = {};  // at least one token, at most the model's context
  int64_t max_tokens = 16;           // the context ends a text, too; 0: the prompt is only read (with `echo`, scored)
  SamplingOptions sampling = {};
  std::vector<int32_t> stop_tokens = {};  // end the text, and are not handed on
  // Whether log-probabilities are computed (of the model's own logits, before temperature, penalties and bias), and for
  // how many of the likeliest tokens beside the chosen one; -1: none at all.
  int logprobs = -1;
  bool echo = false;        // hand on the prompt's tokens, too, with their log-probabilities; the prompt is not cached
  int64_t first_index = 0;  // number of the first new token for the sampler, where a text goes on in a new request
};

struct TokenOutput {
  int32_t id = 0;
  int64_t position = 0;  // in the sequence; below the prompt's size: a token of the prompt (with `echo`)
  float logprob = 0;     // natural logarithm; NaN where none was computed, as for the first token of a prompt
  std::vector<std::pair<int32_t, float>> alternatives = {};  // the likeliest tokens, the likeliest first
};

enum class Finish { stop, length, error };  // a stop token; max_tokens or the context; logits that are not finite

struct RequestCallbacks {
  std::function<void(const TokenOutput&)> on_token = {};
  // The last call for a request, which cancel() does not cause. `error`: for people; empty but for Finish::error.
  std::function<void(Finish, const std::string& error)> on_finish = {};
  // Before a token is drawn: the logits (V) of the token that comes next, which may be changed. (On a GPU they are
  // fetched, and the token is drawn on the host.)
  std::function<void(std::span<float> logits)> on_logits = {};
};

struct EngineOptions {
  int64_t most_running = 64;     // sequences at once
  int64_t tokens_of_step = 256;  // the budget of a step, at least most_running
  int64_t blocks = 0;            // for keys and values; 0: as many as one sequence of the whole context needs
  bool prefix_cache = true;
  // While few sequences run, a step also tries up to so many tokens that are likely to follow each of them, found where
  // its last tokens came before in it. Those that would have been drawn are drawn at once; the text is the same.
  int64_t drafts = 0;
  // The vocabulary of the tokenizer, which may be smaller than the model's (rounded up for speed): no token beyond it is
  // drawn, or is an alternative. 0: all tokens are.
  int64_t known_tokens = 0;
  // Where a rank has only pieces of the parameters: adds to a graph what gathers them (llm/model/distribute.h). All ranks
  // then make the same requests and steps.
  std::function<void(Graph&)> divide = {};
};

struct EngineStatistics {
  int64_t running = 0, waiting = 0;           // requests
  int64_t blocks_used = 0, blocks_total = 0;  // used: held by running sequences
  int64_t blocks_cached = 0;                  // held by none, and kept for prompts that begin with their tokens
  // Since the start.
  int64_t steps = 0, preemptions = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, new_tokens = 0;  // cached: of the prompts, those that were not computed
  int64_t drafted_tokens = 0, accepted_tokens = 0;               // tried ahead, and drawn
  double seconds = 0, own_seconds = 0;  // in step(), and of these outside the model and the callbacks
};

class Engine {
 public:
  using Id = uint64_t;

  // `layout` holds the parameters (and whatever else is persistent); the blocks and the programs' transient tensors lie
  // behind it.
  Engine(const ModelConfig& config, const PersistentLayout& layout, const Target& target,
         const EngineOptions& options = {});
  ~Engine();

  // How many blocks an arena of `bytes` has room for; 0 where there is not even room for one.
  static int64_t blocks_within(size_t bytes, const ModelConfig& config, const PersistentLayout& layout,
                               const Target& target, const EngineOptions& options = {});
  static size_t block_bytes(const ModelConfig& config, const Target& target);

  size_t arena_bytes() const;
  void bind(const Arena& arena, Communicator* ranks = nullptr);  // `ranks`: for graphs that gather

  // Puts a request at the end of the queue. Throws UsageError for sampling options out of range; Error for an empty
  // prompt, for one with an id outside the vocabulary or longer than the context, and for a request whose prompt and
  // max_tokens need more blocks than there are.
  Id submit(Request request, RequestCallbacks callbacks);
  // Ends a request without further calls; allowed within callbacks, and for requests that have ended.
  void cancel(Id id);
  // One step of the batch, with the callbacks for its tokens; false where there was nothing to do.
  bool step();

  EngineStatistics statistics() const;

  // Bytes that the token at that position reads, alone in a step: all weights (of tables that are looked up in, one
  // row), and the keys and values of the positions before.
  double bytes_per_token(double position) const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace llm
