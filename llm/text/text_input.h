// The texts that people have: files, directories of them, JSON lines, packed by gzip or zstd, standard input.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "llm/base/mapped_file.h"

namespace llm {

// A text that was opened: a file mapped into memory, or a scratch file with what was unpacked or read.
class TextInput {
 public:
  // `name`: "-" for standard input, else a file. Its lines are JSON where it is called so (*.jsonl, *.ndjson, packed or
  // not), or where a `text_key` is named and they begin with {: each is a document, the text under `text_key` ("text"). Scratch files are made
  // in the directory `scratch`, which is made if need be; none is left. Throws Error for a file that is missing, empty or
  // no text: UTF-16, Parquet, PDF and their like, by name; a line without the key, with its number.
  TextInput(const std::string& name, const std::string& scratch, const std::string& text_key = "");

  const std::string& name() const { return name_; }
  std::string_view text() const;
  // Where its documents end, in order; the last one is the text's end. Empty: the file is one document.
  std::span<const size_t> document_ends() const { return document_ends_; }
  // The end of the document that the byte at `at` is in.
  size_t document_end(size_t at) const;
  // The beginning of that document.
  size_t document_begin(size_t at) const;

 private:
  std::string name_;
  std::vector<size_t> document_ends_;
  MappedFile file_;
};

std::vector<TextInput> open_texts(const std::vector<std::string>& names, const std::string& scratch,
                                  const std::string& text_key = "");

// The text files that are meant: of a directory those in it and below it that are called like texts (*.txt, *.text, *.md,
// *.jsonl, *.ndjson, also packed, *.gz, *.zst), in the order of their paths; of anything else itself. Throws Error for a
// directory without one.
std::vector<std::string> expand_texts(const std::vector<std::string>& names);
bool holds_texts(const std::string& directory);

}  // namespace llm
