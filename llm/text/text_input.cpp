#include "llm/text/text_input.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/text/decompress.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// A file without a name, but for as long as it is written.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& directory) : path_(directory + "/.tmp-text-XXXXXX") {
    make_directories(directory);
    file_ = ::mkstemp(path_.data());
    if (file_ < 0) fail("cannot write ", path_, ": ", std::strerror(errno));
  }
  ~ScratchFile() {
    ::close(file_);
    ::unlink(path_.c_str());
  }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  void write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t written = ::write(file_, text.data(), text.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("cannot write ", path_, ": ", std::strerror(written < 0 ? errno : ENOSPC));
      text.remove_prefix(static_cast<size_t>(written));
    }
  }
  MappedFile map() const { return MappedFile(path_); }

 private:
  std::string path_;
  int file_;
};

// A format that is no text, by its first bytes, and what makes text of it.
struct Format {
  std::string_view begin, name, help;
};
constexpr std::string_view kUtf16Help = "convert it: iconv -f UTF-16 -t UTF-8 FILE > TEXT";
const std::array<Format, 15> kFormats = {{
    {std::string_view("\xFF\xFE\0\0", 4), "is UTF-32 (it begins with FF FE 00 00), not UTF-8",
     "convert it: iconv -f UTF-32 -t UTF-8 FILE > TEXT"},
    {"\xFF\xFE", "is UTF-16 (it begins with FF FE), not UTF-8", kUtf16Help},
    {"\xFE\xFF", "is UTF-16 (it begins with FE FF), not UTF-8", kUtf16Help},
    {"PAR1", "is a Parquet table, not text", "convert it: scripts/parquet_to_jsonl.py FILE > TEXT.jsonl"},
    {"ARROW1", "is an Arrow table, not text", "save its text as JSON lines"},
    {"%PDF-", "is a PDF, not text", "convert it: pdftotext FILE TEXT"},
    {"PK\x03\x04", "is a zip archive (or a docx, an epub), not text", "unpack it, and convert what is in it to text"},
    {"\xFD"
     "7zXZ",
     "is packed by xz", "unpack it: xz -d FILE"},
    {"BZh", "is packed by bzip2", "unpack it: bzip2 -d FILE"},
    {"7z\xBC\xAF", "is a 7z archive, not text", "unpack it"},
    {"\x7F"
     "ELF",
     "is a program, not text", "name a text"},
    {"\x89PNG", "is a picture, not text", "name a text"},
    {"\xFF\xD8\xFF", "is a picture, not text", "name a text"},
    {"\x89HDF", "is an HDF5 file, not text", "save its text as JSON lines"},
    {"\x93NUMPY", "is a NumPy array, not text", "write token ids as shards (docs/run.md), or their text"},
}};

void check_is_text(std::string_view text, const std::string& name) {
  for (const Format& format : kFormats)
    if (text.starts_with(format.begin)) fail(name, " ", format.name, "; ", format.help);
  if (text.size() > 262 && text.substr(257, 5) == "ustar") fail(name, " is a tar archive, not text; unpack it");
  // UTF-16 without its mark, and most that is binary.
  const std::string_view begin = text.substr(0, size_t{1} << 16);
  const auto zeros = static_cast<size_t>(std::count(begin.begin(), begin.end(), '\0'));
  if (zeros > begin.size() / 16)
    fail(name, " is not UTF-8 text: ", zeros, " of its first ", begin.size(), " bytes are 0; if it is UTF-16, ",
         kUtf16Help);
  size_t strange = 0;  // bytes of no character
  for (size_t at = 0; at < begin.size();) {
    const size_t length = utf8_length(begin.substr(at));
    strange += length == 0;
    at += std::max<size_t>(1, length);
  }
  if (begin.size() >= 64 && strange > begin.size() / 8)
    fail(name, " is not UTF-8 text: ", strange, " of its first ", begin.size(),
         " bytes are part of no character; if it is text in another encoding, convert it: iconv -f ENCODING -t UTF-8 "
         "FILE "
         "> TEXT");
}

bool ends_with_one_of(std::string_view name, std::initializer_list<std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return name.ends_with(end); });
}

std::string_view without_packing(std::string_view name) {
  for (const std::string_view end : {".gz", ".zst", ".zstd"})
    if (name.ends_with(end)) return name.substr(0, name.size() - end.size());
  return name;
}

bool is_called_json_lines(std::string_view name) {
  return ends_with_one_of(without_packing(name), {".jsonl", ".ndjson"});
}

bool is_called_text(std::string_view name) {
  return ends_with_one_of(without_packing(name), {".txt", ".text", ".md", ".jsonl", ".ndjson"});
}

// Appends the texts of JSON lines to `out`, and where each ends to `ends`. Documents without text are left out.
void read_json_lines(std::string_view lines, const std::string& name, const std::string& key, ScratchFile& out,
                     std::vector<size_t>& ends) {
  size_t written = 0;
  for (int64_t number = 1; !lines.empty(); ++number) {
    const size_t end = std::min(lines.find('\n'), lines.size());
    const std::string_view line = lines.substr(0, end);
    lines.remove_prefix(std::min(lines.size(), end + 1));
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const std::string where = concat(name, ": line ", number);
    const Json document = parse_json(line, where, {.python_numbers = true});
    if (!document.is_object()) fail(where, ": not a JSON object");
    const Json& text = document[key.c_str()];
    if (!text.is_string()) {
      std::string keys;
      for (const auto& [other, value] : document.items())
        if (value.is_string()) keys += (keys.empty() ? "" : ", ") + shown(other);
      fail(where, ": no text under \"", key, "\"; name the key of the text by --text-key",
           keys.empty() ? "" : ", one of " + keys);
    }
    if (text.string().empty()) continue;
    out.write(text.string());
    ends.push_back(written += text.string().size());
  }
}

// Of what can be read only once: a pipe, a terminal.
MappedFile copy_of_stream(const std::string& path, const std::string& called, const std::string& scratch) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(path.c_str(), "rbe"), std::fclose);
  if (!stream) fail("cannot open ", called, ": ", std::strerror(errno));
  ScratchFile copy(scratch);
  std::vector<char> piece(size_t{1} << 20);
  while (const size_t got = std::fread(piece.data(), 1, piece.size(), stream.get())) copy.write({piece.data(), got});
  if (std::ferror(stream.get())) fail("cannot read ", called, ": ", std::strerror(errno));
  return copy.map();
}

// The file that holds the text: the one that was named where that is text as it is.
MappedFile text_file(const std::string& name, const std::string& scratch, const std::string& text_key,
                     std::vector<size_t>& document_ends) {
  const std::string called = name == "-" ? "standard input" : name;
  MappedFile file = [&] {
    std::error_code none;
    if (fs::is_directory(name, none)) fail("cannot read ", name, ": it is a directory; name the text files in it");
    const bool is_stream = name == "-" || fs::is_fifo(name, none) || fs::is_character_file(name, none);
    return is_stream ? copy_of_stream(name == "-" ? "/dev/stdin" : name, called, scratch) : MappedFile(name);
  }();
  if (file.bytes().empty()) fail("cannot tokenize ", called, ": it is empty");
  const bool is_packed = packing_of(file.bytes()) != Packing::none;
  MappedFile plain = [&] {
    if (!is_packed) return std::move(file);
    ScratchFile unpacked(scratch);
    unpack(file.bytes(), called, [&](std::string_view piece) { unpacked.write(piece); });
    return unpacked.map();
  }();
  check_is_text(text_of(plain), called);
  const std::string_view text = text_of(plain);
  const bool begins_as_json = text.substr(std::min(text.find_first_not_of(" \t\r\n"), text.size())).starts_with('{');
  if (!is_called_json_lines(name) && (text_key.empty() || !begins_as_json)) return plain;
  ScratchFile texts(scratch);
  read_json_lines(text_of(plain), called, text_key.empty() ? "text" : text_key, texts, document_ends);
  return texts.map();
}

}  // namespace

TextInput::TextInput(const std::string& name, const std::string& scratch, const std::string& text_key)
    : name_(name), file_(text_file(name, scratch, text_key, document_ends_)) {
  if (text().empty()) fail("cannot tokenize ", name == "-" ? "standard input" : name, ": there is no text in it");
}

std::string_view TextInput::text() const { return text_of(file_); }

size_t TextInput::document_end(size_t at) const {
  const auto end = std::upper_bound(document_ends_.begin(), document_ends_.end(), at);
  return end == document_ends_.end() ? text().size() : *end;
}

size_t TextInput::document_begin(size_t at) const {
  const auto end = std::upper_bound(document_ends_.begin(), document_ends_.end(), at);
  return end == document_ends_.begin() ? 0 : *(end - 1);
}

std::vector<TextInput> open_texts(const std::vector<std::string>& names, const std::string& scratch,
                                  const std::string& text_key) {
  if (names.empty()) fail_usage("no input: name the text files to tokenize");
  std::vector<TextInput> texts;
  texts.reserve(names.size());
  for (const std::string& name : names) texts.emplace_back(name, scratch, text_key);
  return texts;
}

bool holds_texts(const std::string& directory) {
  std::error_code error;
  for (fs::recursive_directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error))
    if (is_called_text(entry->path().filename().string()) && entry->is_regular_file(error)) return true;
  return false;
}

std::vector<std::string> expand_texts(const std::vector<std::string>& names) {
  std::vector<std::string> files;
  for (const std::string& name : names) {
    std::error_code error;
    if (!fs::is_directory(name, error)) {
      files.push_back(name);
      continue;
    }
    const size_t first = files.size();
    for (fs::recursive_directory_iterator entry(name, error), end; !error && entry != end; entry.increment(error))
      if (is_called_text(entry->path().filename().string()) && entry->is_regular_file(error))
        files.push_back(entry->path().string());
    if (error) fail("cannot read ", name, ": ", error.message());
    if (files.size() == first)
      fail("no text in ", name, ": no file in it is called *.txt, *.md, *.jsonl or the like; name the files");
    std::sort(files.begin() + static_cast<std::ptrdiff_t>(first), files.end());
  }
  return files;
}

}  // namespace llm
