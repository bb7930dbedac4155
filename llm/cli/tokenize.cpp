// The subcommands tokenize (text to token shards, or standard input to ids) and detokenize (ids to bytes).
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "llm/base/error.h"
#include "llm/base/threads.h"
#include "llm/cli/commands.h"
#include "llm/cli/progress.h"
#include "llm/text/split_pattern.h"
#include "llm/text/tokenize.h"
#include "llm/text/tokenizer.h"
#include "llm/text/train_bpe.h"

namespace llm {
namespace {

struct TokenizeFlags {
  std::vector<std::string> inputs;
  std::string tokenizer, pattern, out, text_key;
  double val_fraction = 0.1;
  int64_t train_vocabulary = 0;
  int threads = 0;
  bool ids = false, special = false;
};

constexpr char kTokenizerHelp[] =
    "\"bytes\" (ids are the bytes, 256 is <|endoftext|>), or the path of a tokenizer.json, a tiktoken rank file, "
    "GPT-2's vocab.bpe with encoder.json beside it, llama2.c's tokenizer.bin";
constexpr char kPatternHelp[] =
    "how text is split for a tiktoken rank file or a vocabulary to train: gpt2, cl100k_base or o200k_base (as the "
    "file's name or size tells; gpt2)";

std::string read_standard_input() {
  std::string text(size_t{1} << 16, '\0');
  size_t size = 0;
  while (const size_t got = std::fread(text.data() + size, 1, text.size() - size, stdin)) {
    size += got;
    if (size == text.size()) text.resize(2 * size);
  }
  if (std::ferror(stdin)) fail("cannot read standard input: ", std::strerror(errno));
  text.resize(size);
  return text;
}

void write_standard_output(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    fail("cannot write standard output: ", std::strerror(errno));
}

void print_ids(const TokenizeFlags& flags) {
  const auto tokenizer = load_tokenizer(flags.tokenizer, flags.pattern);
  std::vector<int32_t> ids;
  if (flags.special) ids = tokenizer->text_prefix();
  tokenizer->encode(read_standard_input(), flags.special, ids);
  if (flags.special)
    for (const int32_t id : tokenizer->text_suffix()) ids.push_back(id);
  std::string line;
  for (const int32_t id : ids) {
    char digits[16];
    if (!line.empty()) line += ' ';
    line.append(digits, std::to_chars(digits, digits + sizeof digits, id).ptr);
  }
  write_standard_output(line + "\n");
}

// Trained on the part of the text that is not held out.
std::unique_ptr<Tokenizer> train_tokenizer(const TokenizeFlags& flags, const std::vector<TextInput>& inputs,
                                           ThreadTeam& threads) {
  const std::string pattern = split_pattern_named(flags.pattern.empty() ? "gpt2" : flags.pattern);
  size_t left = 0;
  for (const TextInput& input : inputs) left += input.text().size();
  left -= static_cast<size_t>(static_cast<double>(left) * flags.val_fraction);
  std::vector<std::string_view> texts;
  for (const TextInput& input : inputs) {
    texts.push_back(input.text().substr(0, left));
    left -= texts.back().size();
  }
  Progress progress("count pieces");
  auto tokenizer = train_bpe(texts, flags.train_vocabulary, pattern, threads,
                             [&](int64_t done, int64_t total) { progress.update(done, total); });
  std::fprintf(stderr, "trained a vocabulary of %lld tokens in %.2f s\n",
               static_cast<long long>(tokenizer->vocabulary()), progress.seconds());
  return tokenizer;
}

void write_shards(const TokenizeFlags& flags) {
  ThreadTeam threads(flags.threads);
  const std::vector<TextInput> inputs = open_texts(expand_texts(flags.inputs), flags.out, flags.text_key);
  const auto tokenizer =
      flags.train_vocabulary ? train_tokenizer(flags, inputs, threads) : load_tokenizer(flags.tokenizer, flags.pattern);
  Progress progress("tokenize");
  constexpr int64_t kShardTokens = 100'000'000;
  const TokenizeResult result = tokenize_texts(
      inputs, *tokenizer, flags.out, flags.val_fraction, threads,
      [&](int64_t done, int64_t total) { progress.update(done, total); }, kShardTokens, flags.text_key);
  const double seconds = progress.seconds();
  progress.finish();
  const int64_t tokens = result.train_tokens + result.val_tokens, bytes = result.train_bytes + result.val_bytes;
  char numbers[64];
  std::snprintf(numbers, sizeof numbers, "%.4f tokens/byte, ",
                static_cast<double>(tokens) / static_cast<double>(bytes));
  std::string line =
      concat(flags.out, ": ", tokens, " tokens (train ", result.train_tokens, ", val ", result.val_tokens, ") from ",
             bytes, " bytes, ", numbers, result.shards, result.shards == 1 ? " shard, " : " shards, ");
  std::snprintf(numbers, sizeof numbers, "%.2f seconds\n", seconds);
  write_standard_output(line + numbers);
}

void tokenize(const TokenizeFlags& flags) {
  const bool standard_input = flags.inputs.size() == 1 && flags.inputs[0] == "-";
  if (flags.train_vocabulary) {
    if (!flags.tokenizer.empty() && flags.tokenizer != "bytes")
      fail_usage("--train-vocab makes a tokenizer of its own: it does not go with --tokenizer ", flags.tokenizer);
    if (flags.ids) fail_usage("--train-vocab does not go with --ids");
    if (flags.train_vocabulary < 257) fail_usage("--train-vocab must be 257 or more, not ", flags.train_vocabulary);
    if (!(flags.val_fraction >= 0 && flags.val_fraction < 1))
      fail_usage("--val-fraction must be in [0, 1), not ", flags.val_fraction);
  } else if (flags.tokenizer.empty()) {
    fail_usage("--tokenizer is required: bytes, a path, or --train-vocab N instead");
  }
  if (flags.ids) {
    if (!standard_input) fail_usage("--ids reads standard input: tokenize - --ids < FILE");
    if (!flags.out.empty()) fail_usage("--ids prints to standard output: it does not go with --out");
    return print_ids(flags);
  }
  if (flags.special) fail_usage("--special goes with --ids (in files the names of special tokens always count)");
  if (std::count(flags.inputs.begin(), flags.inputs.end(), "-") > 1)
    fail_usage("standard input (-) can be read only once");
  if (flags.out.empty()) fail_usage("--out DIR is missing: where to write the shards (or - --ids, to print the ids)");
  write_shards(flags);
}

void detokenize(const std::string& spec, const std::string& pattern) {
  const auto tokenizer = load_tokenizer(spec, pattern);
  const std::string text = read_standard_input();
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  std::vector<int32_t> ids;
  const char *next = text.data(), *end = next + text.size();
  for (;;) {
    while (next != end && is_space(*next)) ++next;
    if (next == end) break;
    int32_t id = 0;
    const auto [after, error] = std::from_chars(next, end, id);
    if (error != std::errc() || (after != end && !is_space(*after)))
      fail("standard input, byte ", next - text.data(), ": not a token id; ids are whole numbers between blanks");
    ids.push_back(id);
    next = after;
  }
  write_standard_output(tokenizer->decode(ids));
}

}  // namespace

Command tokenize_command() {
  const auto flags = std::make_shared<TokenizeFlags>();
  TokenizeFlags& f = *flags;
  return {
      "tokenize",
      "Turn text files into token shards to train on",
      {Option(
           "INPUT", &f.inputs,
           "text files, plain or packed by gzip or zstd, joined in this order with an end-of-text token between them; "
           "*.jsonl: JSON lines, each a document; directories of these; - for standard input")
           .needed(),
       Option("--tokenizer", &f.tokenizer, kTokenizerHelp), Option("--pattern", &f.pattern, kPatternHelp),
       Option("--train-vocab", &f.train_vocabulary,
              "instead of --tokenizer: train a byte-level BPE of so many tokens on the text"),
       Option("--text-key", &f.text_key, "the key of the text in JSON lines (text)"),
       Option("--out", &f.out,
              "the directory to write train_*.bin, val_*.bin, tokenizer.json and dataset.json to; an earlier data set "
              "there is replaced"),
       Option("--val-fraction", &f.val_fraction, "the last part of the text, held out for validation: [0, 1)")
           .with_default(),
       Option("--threads", &f.threads, "how many threads; 0: all there are").between(0, 1024).with_default(),
       Option("--ids", &f.ids, "print the ids of standard input on one line instead"),
       Option("--special", &f.special,
              "with --ids: names of special tokens in the text are those tokens, and what the tokenizer puts around a "
              "text (a beginning-of-text token) is put there")},
      "In files the line <|endoftext|> between stories or books becomes the end-of-text token. The shards are those "
      "of\n"
      "llm.c (a header of 256 int32, then 16-bit tokens, 32-bit for vocabularies over 65,536).\n\n"
      "Examples:\n"
      "  train_gpt tokenize tinyshakespeare.txt --tokenizer bytes --out data/shakespeare\n"
      "  train_gpt train --data data/shakespeare --out runs/shakespeare\n"
      "  train_gpt tokenize books.txt --train-vocab 8192 --out data/books\n"
      "  echo -n 'Hello' | train_gpt tokenize - --tokenizer bytes --ids        prints 72 101 108 108 111",
      [flags](const Given&) { tokenize(*flags); }};
}

Command detokenize_command() {
  const auto flags = std::make_shared<TokenizeFlags>();
  return {
      "detokenize",
      "Turn token ids on standard input into the bytes they stand for",
      {Option("--tokenizer", &flags->tokenizer, kTokenizerHelp).needed(),
       Option("--pattern", &flags->pattern, kPatternHelp)},
      "The ids stand between blanks or on lines of their own. The bytes go to standard output as they are, without a\n"
      "newline at the end; they need not be whole UTF-8 characters.\n\n"
      "Example:\n"
      "  echo 72 101 108 108 111 | train_gpt detokenize --tokenizer bytes        prints Hello",
      [flags](const Given&) { detokenize(flags->tokenizer, flags->pattern); }};
}

}  // namespace llm
