#include "llm/infer/score_choices.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

#include "llm/base/error.h"
#include "llm/model/gpt.h"
#include "llm/text/normalizer.h"

namespace llm {
namespace {

constexpr int64_t kShortest = 32;  // tokens of the shortest program

// The program for `batch` texts of up to `length` predictions.
struct Scoring {
  int64_t batch, length;
  TensorId tokens, targets, losses;
  Program program;
  std::vector<int32_t> batch_tokens, batch_targets;  // (B, T)
  std::vector<float> batch_losses;                   // (B, T)

  Scoring(EvaluationGraph graph, const PersistentLayout& layout, const Target& target)
      : batch(graph.graph.shape(graph.tokens)[0]),
        length(graph.graph.shape(graph.tokens)[1]),
        tokens(graph.tokens),
        targets(graph.targets),
        losses(graph.losses),
        program(compile(graph.graph, graph.results(), target), layout),
        batch_tokens(static_cast<size_t>(batch * length)),
        batch_targets(batch_tokens.size()),
        batch_losses(batch_tokens.size()) {}

  void clear() {
    std::fill(batch_tokens.begin(), batch_tokens.end(), 0);
    std::fill(batch_targets.begin(), batch_targets.end(), -1);  // not counted
  }
  void put(int64_t row, const TokenizedChoice::Ending& ending) {
    const auto at = static_cast<std::ptrdiff_t>(row * length);
    std::copy(ending.tokens.begin(), ending.tokens.end() - 1, batch_tokens.begin() + at);
    for (size_t i = ending.first; i < ending.tokens.size(); ++i)
      batch_targets[static_cast<size_t>(at) + i - 1] = ending.tokens[i];
  }
  void run() {
    program.write(tokens, batch_tokens.data());
    program.write(targets, batch_targets.data());
    program.run(Phase::forward);
    program.read(losses, batch_losses.data());
  }
  double log_likelihood(int64_t row, const TokenizedChoice::Ending& ending) const {
    double sum = 0;
    for (size_t i = ending.first; i < ending.tokens.size(); ++i)
      sum -= static_cast<double>(batch_losses[static_cast<size_t>(row * length) + i - 1]);
    return sum;
  }
};

int64_t longest(const TokenizedChoice& task) {
  size_t tokens = 0;
  for (const auto& ending : task.endings) tokens = std::max(tokens, ending.tokens.size());
  return static_cast<int64_t>(tokens) - 1;  // the last one is only predicted
}

}  // namespace

TokenizedChoice tokenize_choice(const Choice& choice, const Tokenizer& tokenizer, int64_t context,
                                const std::string& where, const std::string& delimiter) {
  TokenizedChoice task;
  task.label = static_cast<size_t>(choice.label);
  std::string stripped = choice.context;
  strip_normalizer(false, true).apply(stripped, false);
  std::vector<int32_t> alone = tokenizer.text_prefix();
  if (alone.empty() && stripped.empty()) {
    if (tokenizer.end_of_text() < 0)
      fail(where, ": \"ctx\" is empty, and the tokenizer has no end-of-text token for a text to begin with");
    alone = {tokenizer.end_of_text()};
  }
  const std::vector<int32_t> start = alone;
  if (!stripped.empty()) tokenizer.encode(stripped, true, alone);
  for (const std::string& ending : choice.endings) {
    std::vector<int32_t> tokens = start;
    tokenizer.encode(choice.context + delimiter + ending, true, tokens);
    if (tokens.size() < 2) fail(where, ": context and ending are one token together, there is nothing to predict");
    // Where an ending merges with the context's last token, no token would be left to predict; and nothing comes before
    // the very first token to predict it from: that one is given.
    size_t first = std::clamp<size_t>(alone.size(), 1, tokens.size() - 1);
    if (first == alone.size()) std::copy(alone.begin(), alone.end(), tokens.begin());
    const size_t room = static_cast<size_t>(context) + 1;
    if (tokens.size() - first > room - 1)
      fail(where, ": an ending has ", tokens.size() - first, " tokens, more than the model's context of ", context);
    if (tokens.size() > room) {
      first -= tokens.size() - room;
      tokens.erase(tokens.begin(), tokens.end() - static_cast<std::ptrdiff_t>(room));
    }
    const auto characters = std::count_if(ending.begin(), ending.end(), [](char c) { return (c & 0xC0) != 0x80; });
    task.endings.push_back({std::move(tokens), first, ending.size(), static_cast<size_t>(characters)});
  }
  return task;
}

struct ChoiceScorer::Group {
  std::vector<size_t> tasks;  // their numbers
  std::unique_ptr<Scoring> scoring;
};

ChoiceScorer::ChoiceScorer(const ModelConfig& config, std::vector<TokenizedChoice> tasks, int64_t batch,
                           const PersistentLayout& layout, const Target& target)
    : tasks_(std::move(tasks)), scores_(tasks_.size()) {
  std::map<int64_t, std::vector<size_t>> by_length;
  for (size_t task = 0; task < tasks_.size(); ++task) {
    const int64_t needed = longest(tasks_[task]);
    auto length = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(kShortest, needed))));
    if (!config.is_far(needed) && config.is_far(length)) length = config.rope_original;
    by_length[std::min(config.context, length)].push_back(task);
  }
  for (auto& [length, numbers] : by_length) {
    int64_t rows = 0;
    for (const size_t task : numbers) rows += static_cast<int64_t>(tasks_[task].endings.size());
    const int64_t most = batch ? batch : std::clamp<int64_t>(4096 / length, 1, 64);
    auto graph =
        build_evaluation_graph(config, std::min(most, rows), length, dtype_of(target.precision), -1, target.weights);
    groups_.push_back(
        std::make_unique<Group>(Group{numbers, std::make_unique<Scoring>(std::move(graph), layout, target)}));
  }
}

ChoiceScorer::~ChoiceScorer() = default;

size_t ChoiceScorer::arena_bytes() const {
  size_t bytes = 0;
  for (const auto& group : groups_) bytes = std::max(bytes, group->scoring->program.arena_bytes());
  return bytes;
}

void ChoiceScorer::bind(const Arena& arena) {
  for (const auto& group : groups_) group->scoring->program.bind(arena);
}

void ChoiceScorer::count(size_t task, Result& result) const {
  const TokenizedChoice& t = tasks_[task];
  const auto is_right = [&](auto length) {
    size_t best = 0;
    for (size_t i = 1; i < t.endings.size(); ++i)
      if (scores_[task][i] / length(i) > scores_[task][best] / length(best)) best = i;
    return best == t.label ? 1 : 0;
  };
  ++result.tasks;
  result.right += is_right([](size_t) { return 1.0; });
  result.right_per_token +=
      is_right([&](size_t i) { return static_cast<double>(t.endings[i].tokens.size() - t.endings[i].first); });
  result.right_per_byte += is_right([&](size_t i) { return static_cast<double>(t.endings[i].bytes); });
  result.right_per_character += is_right([&](size_t i) { return static_cast<double>(t.endings[i].characters); });
}

ChoiceScorer::Result ChoiceScorer::run(const std::function<void(const Result&, int64_t)>& progress) {
  Result result;
  for (const auto& group : groups_) {
    Scoring& scoring = *group->scoring;
    std::vector<std::pair<size_t, size_t>> rows;  // task, ending
    for (const size_t task : group->tasks) {
      scores_[task].clear();
      for (size_t ending = 0; ending < tasks_[task].endings.size(); ++ending) rows.emplace_back(task, ending);
    }
    for (size_t first = 0; first < rows.size(); first += static_cast<size_t>(scoring.batch)) {
      const auto n = static_cast<int64_t>(std::min(rows.size() - first, static_cast<size_t>(scoring.batch)));
      const auto ending_of = [&](int64_t row) -> const TokenizedChoice::Ending& {
        const auto [task, ending] = rows[first + static_cast<size_t>(row)];
        return tasks_[task].endings[ending];
      };
      scoring.clear();
      for (int64_t row = 0; row < n; ++row) scoring.put(row, ending_of(row));
      scoring.run();
      for (int64_t row = 0; row < n; ++row) {
        const size_t task = rows[first + static_cast<size_t>(row)].first;
        const double score = scoring.log_likelihood(row, ending_of(row));
        if (!std::isfinite(score))
          fail("a log-likelihood is ", score, ": the model's weights are damaged, or its training diverged");
        scores_[task].push_back(score);
        if (scores_[task].size() == tasks_[task].endings.size()) count(task, result);
      }
      if (progress) progress(result, static_cast<int64_t>(tasks_.size()));
    }
  }
  return result;
}

}  // namespace llm
