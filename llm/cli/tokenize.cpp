// The subcommands tokenize (text to token shards, or standard input to ids) and detokenize (ids to bytes).
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
#include "llm/text/tokenize.h"
#include "llm/text/tokenizer.h"

namespace llm {
namespace {

struct TokenizeFlags {
  std::vector<std::string> inputs;
  std::string tokenizer = "bytes";
  std::string out;
  double val_fraction = 0.1;
  int threads = 0;
  bool ids = false, special = false;
};

constexpr char kTokenizerHelp[] = "\"bytes\" (ids are the bytes, 256 is <|endoftext|>) or the path of a tokenizer.json";

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
  std::vector<int32_t> ids;
  load_tokenizer(flags.tokenizer)->encode(read_standard_input(), flags.special, ids);
  std::string line;
  for (const int32_t id : ids) {
    char digits[16];
    if (!line.empty()) line += ' ';
    line.append(digits, std::to_chars(digits, digits + sizeof digits, id).ptr);
  }
  write_standard_output(line + "\n");
}

void write_shards(const TokenizeFlags& flags) {
  const auto tokenizer = load_tokenizer(flags.tokenizer);
  ThreadTeam threads(flags.threads);
  Progress progress("tokenize");
  const TokenizeResult result = tokenize_files(flags.inputs, *tokenizer, flags.out, flags.val_fraction, threads,
                                               [&](int64_t done, int64_t total) { progress.update(done, total); });
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
  if (flags.ids) {
    if (!standard_input) fail_usage("--ids reads standard input: tokenize - --ids < FILE");
    if (!flags.out.empty()) fail_usage("--ids prints to standard output: it does not go with --out");
    return print_ids(flags);
  }
  if (flags.special) fail_usage("--special goes with --ids (in files the names of special tokens always count)");
  for (const std::string& input : flags.inputs)
    if (input == "-") fail_usage("standard input (-) goes with --ids; to write shards name the text files");
  if (flags.out.empty()) fail_usage("--out DIR is missing: where to write the shards (or - --ids, to print the ids)");
  write_shards(flags);
}

void detokenize(const std::string& spec) {
  const auto tokenizer = load_tokenizer(spec);
  const std::string text = read_standard_input();
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  std::string bytes;
  const char *next = text.data(), *end = next + text.size();
  for (;;) {
    while (next != end && is_space(*next)) ++next;
    if (next == end) break;
    int32_t id = 0;
    const auto [after, error] = std::from_chars(next, end, id);
    if (error != std::errc() || (after != end && !is_space(*after)))
      fail("standard input, byte ", next - text.data(), ": not a token id; ids are whole numbers between blanks");
    bytes += tokenizer->bytes_of(id);
    next = after;
  }
  write_standard_output(bytes);
}

}  // namespace

void add_tokenize(CLI::App& app) {
  const auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* command = app.add_subcommand("tokenize", "Turn text files into token shards to train on");
  command
      ->add_option("INPUT", flags->inputs,
                   "text files, joined in this order with an end-of-text token between them; "
                   "or - for standard input, with --ids")
      ->required();
  command->add_option("--tokenizer", flags->tokenizer, kTokenizerHelp)->required();
  command->add_option("--out", flags->out,
                      "the directory to write train_*.bin, val_*.bin, tokenizer.json and dataset.json "
                      "to; an earlier data set there is replaced");
  command
      ->add_option("--val-fraction", flags->val_fraction, "the last part of the text, held out for validation: [0, 1)")
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "how many threads; 0: all there are")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--ids", flags->ids, "print the ids of standard input on one line instead");
  command->add_flag("--special", flags->special,
                    "with --ids: <|endoftext|> in the text is the special token, not text");
  command->footer(
      "In files the line <|endoftext|> between stories or books becomes the end-of-text token. The shards are those "
      "of\n"
      "llm.c (a header of 256 int32, then 16-bit tokens, 32-bit for vocabularies over 65,536).\n\n"
      "Examples:\n"
      "  train_gpt tokenize tinyshakespeare.txt --tokenizer bytes --out data/shakespeare\n"
      "  train_gpt train --data data/shakespeare --out runs/shakespeare\n"
      "  echo -n 'Hello' | train_gpt tokenize - --tokenizer bytes --ids        prints 72 101 108 108 111");
  command->callback([flags] { tokenize(*flags); });
}

void add_detokenize(CLI::App& app) {
  const auto spec = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("detokenize", "Turn token ids on standard input into the bytes they stand for");
  command->add_option("--tokenizer", *spec, kTokenizerHelp)->required();
  command->footer(
      "The ids stand between blanks or on lines of their own. The bytes go to standard output as they are, without a\n"
      "newline at the end; they need not be whole UTF-8 characters.\n\n"
      "Example:\n"
      "  echo 72 101 108 108 111 | train_gpt detokenize --tokenizer bytes        prints Hello");
  command->callback([spec] { detokenize(*spec); });
}

}  // namespace llm
