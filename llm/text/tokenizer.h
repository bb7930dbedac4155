// From text to token ids and back. Bytes need no asset at all; other kinds come from a tokenizer.json or a rank file.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace llm {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual int64_t vocabulary() const = 0;   // ids are 0 .. vocabulary - 1
  virtual int32_t end_of_text() const = 0;  // stands between documents; -1 when the vocabulary has none
  // Appends the ids of `text`. `special`: names of special tokens in the text become their ids, else they are text.
  virtual void encode(std::string_view text, bool special, std::vector<int32_t>& ids) const = 0;
  // The bytes one id stands for; joined bytes are the text (a token may end inside a UTF-8 character). Special tokens
  // stand for their names. Throws Error for an id outside the vocabulary.
  virtual std::string_view bytes_of(int32_t id) const = 0;
  // Where text may be cut so that the parts' ids joined are the whole's ids, special tokens recognised or not: the first
  // such place at or after `from`, text.size() when there is none. This is what makes encoding multi-threaded.
  virtual size_t safe_cut(std::string_view text, size_t from) const = 0;
  // The Hugging Face tokenizer.json that stands for it.
  virtual std::string json() const = 0;

  std::string decode(const std::vector<int32_t>& ids) const;  // throws Error for an id outside the vocabulary
};

// `spec` is "bytes" or a path to a tokenizer.json that json() wrote (or to the directory that holds it). Throws Error naming what is wrong with it.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& spec);

}  // namespace llm
