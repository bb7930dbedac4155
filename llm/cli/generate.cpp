// train_gpt generate: a trained model goes on with a prompt.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "llm/base/error.h"
#include "llm/checkpoint/loaded_model.h"
#include "llm/cli/commands.h"
#include "llm/cli/options.h"
#include "llm/infer/generator.h"
#include "llm/model/huggingface.h"

namespace llm {
namespace {

struct GenerateFlags {
  std::string model, prompt, prompt_ids;
  int64_t max_tokens = 256;
  SamplingOptions sampling{.temperature = 0.8};
  bool ids = false, no_stop = false, logits = false;
  DeviceOptions device;
  WeightOptions weights;
};

// Standard output, written at once. A reader that has gone away (as `head` does) is no error: nobody wants more.
class Output {
 public:
  Output() { std::signal(SIGPIPE, SIG_IGN); }

  bool write(std::string_view text) {
    if (text.empty()) return open_;
    if (open_ && (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)) {
      if (errno != EPIPE) fail("cannot write standard output: ", std::strerror(errno));
      open_ = false;
    }
    return open_;
  }

 private:
  bool open_ = true;
};

// How many bytes at the end of `text` begin a UTF-8 character that is not whole yet. Bytes that can be no part of one
// are never held back.
size_t incomplete_tail(std::string_view text) {
  for (size_t length = 1; length <= std::min<size_t>(3, text.size()); ++length) {
    const auto byte = static_cast<unsigned char>(text[text.size() - length]);
    if ((byte & 0xC0) == 0x80) continue;
    const size_t whole = byte >= 0xF5 ? 1 : byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC2 ? 2 : 1;
    return length < whole ? length : 0;
  }
  return 0;
}

// Ids between blanks or commas.
std::vector<int32_t> parse_ids(const std::string& text) {
  const auto is_blank = [](char c) { return c == ' ' || c == ',' || (c >= '\t' && c <= '\r'); };
  std::vector<int32_t> ids;
  const char *next = text.data(), *end = next + text.size();
  for (;;) {
    while (next != end && is_blank(*next)) ++next;
    if (next == end) return ids;
    const auto [after, error] = std::from_chars(next, end, ids.emplace_back());
    if (error != std::errc() || (after != end && !is_blank(*after)))
      fail_usage("--prompt-ids: \"", std::string(next, std::find_if(next, end, is_blank)), "\" is not a token id");
    next = after;
  }
}

// A vocabulary may be larger than its tokenizer (rounded up for speed): such ids stand for nothing.
std::string_view text_of(const Tokenizer& tokenizer, int32_t id) {
  return id < tokenizer.vocabulary() ? tokenizer.bytes_of(id) : std::string_view();
}

std::vector<int32_t> prompt_of(const GenerateFlags& flags, const LoadedModel& model) {
  std::vector<int32_t> prompt = parse_ids(flags.prompt_ids);
  const bool text = !flags.prompt.empty();
  if (!model.tokenizer() && (text || !(flags.ids || flags.logits)))
    fail("the model has no tokenizer for text (", model.no_tokenizer(), "); use --prompt-ids with --ids");
  if (text) {
    prompt = model.tokenizer()->text_prefix();
    model.tokenizer()->encode(flags.prompt, true, prompt);
  }
  if (prompt.empty()) {
    if (model.tokenizer()) prompt = model.tokenizer()->text_prefix();
    if (!prompt.empty()) return prompt;
    const int32_t end_of_text = model.tokenizer() ? model.tokenizer()->end_of_text() : -1;
    if (end_of_text < 0)
      fail_usage("an empty prompt needs an end-of-text token to start from, which this model has not; give --prompt");
    prompt = {end_of_text};
  }
  const int64_t vocabulary = model.config().vocabulary;
  for (const int32_t id : prompt)
    if (id < 0 || id >= vocabulary)
      fail_usage(text ? "--prompt" : "--prompt-ids", ": token ", id, " is outside the model's vocabulary of ",
                 vocabulary);
  return prompt;
}

void generate(const GenerateFlags& flags) {
  using Clock = std::chrono::steady_clock;
  flags.device.check();
  OpenedMachine opened(flags.device);  // before the model, whose arena is the device's
  const Target target = flags.weights.target(opened.target(), flags.device);
  LoadedModel model(flags.model, dtype_of(opened.precision()), target.weights);
  check(flags.sampling, model.config().vocabulary);  // before the weights are read
  const std::vector<int32_t> prompt = prompt_of(flags, model);
  const int32_t stop = model.tokenizer() && !flags.no_stop ? model.tokenizer()->end_of_text() : -1;
  std::vector<int> stops;  // what the model's files name
  if (!flags.no_stop) stops = read_end_tokens(model.checkpoint().path).eos;
  Generator generator(model.config(), model.layout(), target, model.tokenizer() ? model.tokenizer()->vocabulary() : 0);
  generator.bind(model.load(generator.arena_bytes(), opened.device()));

  Output output;
  if (flags.logits) {
    std::string line;
    for (const float logit : generator.logits(prompt)) {
      char digits[32];
      line += line.empty() ? "" : " ";
      line.append(digits, std::to_chars(digits, digits + sizeof digits, logit).ptr);
    }
    output.write(line + "\n");
    return;
  }
  std::string pending;
  bool strip = false;  // the blank that the tokenizer's words begin with, of the first one
  if (!flags.ids) {
    // Ids that were given are shown as the text they stand for, unlike the end of text that an empty prompt becomes.
    if (!flags.prompt.empty()) pending = flags.prompt;
    if (!flags.prompt_ids.empty())
      for (const int32_t id : prompt) pending += text_of(*model.tokenizer(), id);
    if (pending.empty()) strip = model.tokenizer()->strips_leading_blank();
    const size_t held = incomplete_tail(pending);
    output.write(std::string_view(pending).substr(0, pending.size() - held));
    pending.erase(0, pending.size() - held);
  }
  const auto begin = Clock::now();
  auto first = begin;
  int64_t made = 0;
  generator.generate(prompt, flags.max_tokens, flags.sampling, stop, [&](int32_t id) {
    if (std::find(stops.begin(), stops.end(), id) != stops.end()) return false;
    if (made++ == 0) first = Clock::now();
    if (flags.ids) return output.write((made > 1 ? " " : "") + std::to_string(id));
    std::string_view piece = text_of(*model.tokenizer(), id);
    if (strip && made == 1 && piece.starts_with(' ')) piece.remove_prefix(1);
    pending += piece;
    const size_t whole = pending.size() - incomplete_tail(pending);
    const bool go_on = output.write(std::string_view(pending).substr(0, whole));
    pending.erase(0, whole);
    return go_on;
  });
  const auto end = Clock::now();
  // A newline would be no part of the text; on a terminal the shell's prompt needs it.
  if (!output.write(pending) || !output.write(flags.ids || ::isatty(STDOUT_FILENO) == 1 ? "\n" : "")) return;

  const auto seconds = [](auto from, auto to) { return std::chrono::duration<double>(to - from).count(); };
  const double total = seconds(begin, end), on_prompt = made ? seconds(begin, first) : total;
  std::string note;
  if (static_cast<int64_t>(prompt.size()) > model.config().context)
    note = concat(", of which the last ", model.config().context, " fit the context");
  std::fprintf(stderr, "model: %s\n", model.description().c_str());
  std::fprintf(stderr, "generate: prompt of %zu tokens%s in %.3f s (%.0f%% of the time), %lld new tokens",
               prompt.size(), note.c_str(), on_prompt, total > 0 ? 100 * on_prompt / total : 0,
               static_cast<long long>(made));
  if (made > 1) {
    const double per_second = static_cast<double>(made - 1) / (total - on_prompt);
    const auto context = static_cast<double>(model.config().context);
    // A step may draw several tokens at once, where it has guessed them.
    const EngineStatistics s = generator.statistics();
    const double share = static_cast<double>(s.new_tokens - s.accepted_tokens) / static_cast<double>(s.new_tokens);
    const double bytes = share * generator.bytes_per_token(std::min(
                                     context, static_cast<double>(prompt.size()) + static_cast<double>(made) / 2));
    std::fprintf(stderr, " at %.1f tokens/s (%.0f%%), %.1f MB read a token: %.1f GB/s", per_second,
                 100 * (1 - on_prompt / total), bytes * 1e-6, bytes * per_second * 1e-9);
  }
  std::fprintf(stderr, "\n");
}

}  // namespace

Command generate_command() {
  const auto flags = std::make_shared<GenerateFlags>();
  GenerateFlags& f = *flags;
  SamplingOptions& s = f.sampling;
  Options options = {
      trained_model(f.model),
      Option("--prompt", &f.prompt,
             "the text to go on with; names of special tokens in it are those tokens (the start of a new text)"),
      Option("--prompt-ids", &f.prompt_ids, "the same as token ids: \"1 2 3\"").not_with("--prompt"),
      Option("--max-tokens", &f.max_tokens, "how many tokens at most").at_least(0).with_default(),
      Option("--temperature", &s.temperature, "0: always the likeliest token; 1: as the model says").with_default(),
      Option("--top-k", &s.top_k, "only the k likeliest tokens; 0: all").with_default(),
      Option("--top-p", &s.top_p, "only the likeliest tokens that make up this probability; 1: all").with_default(),
      Option("--min-p", &s.min_p, "only tokens at least this many times as likely as the likeliest; 0: all")
          .with_default(),
      Option("--repetition-penalty", &s.repetition, "divides the logits of tokens that the text has; 1: none")
          .with_default(),
      Option("--presence-penalty", &s.presence, "subtracted from the logits of tokens that were generated")
          .with_default(),
      Option("--frequency-penalty", &s.frequency, "subtracted once for each time that a token was generated")
          .with_default(),
      Option("--seed", &s.seed, "the same seed gives the same text").with_default(),
      Option("--ids", &f.ids, "print the new tokens' ids on one line instead of text"),
      Option("--logits", &f.logits, "print the logits of the token after the prompt on one line instead of text"),
      Option("--no-stop", &f.no_stop, "go on after the end-of-text token, up to --max-tokens")};
  append(options, f.device.options());
  append(options, f.weights.options(), "Machine");
  append(options, f.weights.cache_options(), "Machine");
  return {"generate", "Let a trained model go on with a prompt", options,
          "The text is streamed to standard output, the prompt first; how fast, and with which checkpoint, goes to "
          "standard\n"
          "error. When the context is full, generation goes on with the last half of it.\n\n"
          "Examples:\n"
          "  train_gpt generate runs/shakespeare --prompt \"ROMEO:\" --max-tokens 500\n"
          "  train_gpt generate runs/shakespeare --prompt-ids \"82 79 77\" --temperature 0 --ids",
          [flags](const Given&) { generate(*flags); }};
}

}  // namespace llm
