// Scores of multiple-choice tasks: which ending does the model find likeliest after the context?
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llm/graph/program.h"
#include "llm/model/config.h"
#include "llm/text/multiple_choice.h"
#include "llm/text/tokenizer.h"

namespace llm {

struct TokenizedChoice {
  struct Ending {
    std::vector<int32_t> tokens;       // context and ending
    size_t first = 0;                  // tokens[first] is the ending's first one; 1 or more
    size_t bytes = 0, characters = 0;  // of the ending's text
  };
  std::vector<Ending> endings;
  size_t label = 0;
};

// Context and ending are joined by `delimiter` and tokenized together, with special tokens that the text names, as
// lm-evaluation-harness does (its target_delimiter): the ending's tokens are those behind as many as the context alone has,
// without the white space at its end, which belongs to the ending; before them stand the context's own tokens, also where
// the last of these would merge with the ending. What the tokenizer puts before a text comes first; where
// that is nothing and the context is empty or white space, the end-of-text token does. Of a text longer than the model's
// `context` (in tokens) the beginning is left out. Throws Error with `where` for an ending that is longer by itself.
TokenizedChoice tokenize_choice(const Choice& choice, const Tokenizer& tokenizer, int64_t context,
                                const std::string& where, const std::string& delimiter = " ");

class ChoiceScorer {
 public:
  // Texts of similar length share a batch of `batch` texts (0: of about 4096 tokens), so that short ones do not cost as
  // much as the longest.
  ChoiceScorer(const ModelConfig& config, std::vector<TokenizedChoice> tasks, int64_t batch,
               const PersistentLayout& layout, const Target& target);
  ~ChoiceScorer();

  size_t arena_bytes() const;
  void bind(const Arena& arena);

  // How many tasks had the right ending first: by the log-likelihood of all its tokens together, by its mean over the
  // tokens (as llm.c counts), and by the sum divided by the ending's bytes or characters (lm-evaluation-harness's acc_bytes
  // and acc_norm). Of equally likely endings the first is taken.
  struct Result {
    int64_t tasks = 0, right = 0, right_per_token = 0, right_per_byte = 0, right_per_character = 0;
  };
  // Calls `progress(so_far, total)` after each batch. Throws Error for a log-likelihood that is not finite.
  Result run(const std::function<void(const Result&, int64_t)>& progress = {});
  // The log-likelihood of each ending of a task, in nats; after run().
  const std::vector<double>& log_likelihoods(size_t task) const { return scores_[task]; }

 private:
  struct Group;  // tasks of similar length
  void count(size_t task, Result& result) const;

  std::vector<TokenizedChoice> tasks_;
  std::vector<std::vector<double>> scores_;
  std::vector<std::unique_ptr<Group>> groups_;
};

}  // namespace llm
