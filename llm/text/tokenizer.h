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
  // The same for the part of a text that begins at a safe_cut(): nothing is put before it.
  virtual void encode_rest(std::string_view text, bool special, std::vector<int32_t>& ids) const {
    encode(text, special, ids);
  }
  // The bytes one id stands for; joined bytes are the text (a token may end inside a UTF-8 character). Special tokens
  // stand for their names. Throws Error for an id outside the vocabulary.
  virtual std::string_view bytes_of(int32_t id) const = 0;
  // Where text may be cut so that encode()'s ids of the first part and encode_rest()'s of the others are the whole's ids,
  // special tokens recognised or not: the first such place at or after `from`, text.size() when there is none. This is
  // what makes encoding multi-threaded.
  virtual size_t safe_cut(std::string_view text, size_t from) const = 0;
  // What a whole text is put between where special tokens count, as Llama's beginning-of-text token. encode() leaves it out.
  virtual std::vector<int32_t> text_prefix() const { return {}; }
  virtual std::vector<int32_t> text_suffix() const { return {}; }
  // Whether the first blank of a text is one that encode() put there.
  virtual bool strips_leading_blank() const { return false; }
  // The Hugging Face tokenizer.json that stands for it.
  virtual std::string json() const = 0;

  // The text of the ids, without the blank that encode() put first. Throws Error for an id outside the vocabulary.
  std::string decode(const std::vector<int32_t>& ids) const;
};

// `spec` is "bytes" or a path:
// - tokenizer.json, Hugging Face's, or the directory that holds it;
// - GPT-2's vocab.bpe (merges.txt) or encoder.json (vocab.json), each with the other beside it, or their directory;
// - a tiktoken rank file, with `pattern` gpt2, cl100k_base or o200k_base (empty: as its name or its size tells);
// - llama2.c's tokenizer.bin (tok512.bin);
// - a GGUF file.
// Throws Error naming what is wrong with it.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& spec, const std::string& pattern = "");

// What to hand to load_tokenizer() for the model in `directory`: its tokenizer.json, or, of a GPT-2, which older versions of
// transformers wrote without one, the directory with vocab.json and merges.txt. Empty: there is none.
std::string tokenizer_of_model(const std::string& directory);

}  // namespace llm
