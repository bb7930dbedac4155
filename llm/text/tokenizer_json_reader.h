// How tokenizer.json is read, for the files that read its parts: values with the errors that name them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/text/tokenizer_parts.h"

namespace llm {

// Vocabularies in use have up to 262,144 tokens; the limit is there so that a wrong id does not fill the memory.
inline constexpr int64_t kLargestVocabulary = int64_t{1} << 22;
inline constexpr char kSentencePieceBlank[] = "\u2581";  // ▁

struct JsonReader {
  std::string path;

  template <class... Parts>
  [[noreturn]] void wrong(const Parts&... parts) const {
    fail(path, ": ", parts...);
  }
  const Json& list(const Json& object, const char* key) const;
  bool flag(const Json& object, const char* key, bool otherwise) const;
  std::string text(const Json& object, const char* key) const;  // "" where it is missing
  size_t count(const Json& object, const char* key, size_t otherwise) const;
  std::string type(const Json& object) const;  // "" of null, "?" where there is none
  int32_t id(const Json& value, const std::string& of) const;
  // A string from the file on one line.
  static std::string shown(const std::string& text);
  // The steps of a Sequence, whose member `key` lists them, and of Sequences in it, in order; of another object itself.
  std::vector<const Json*> steps(const Json& object, const char* key) const;
  // A pattern {"String": ...} or {"Regex": ...}.
  SplitPattern pattern(const Json& object) const;
};

// Each adds what its part of the file asks for to `parts`; throws Error for what is malformed or not supported.
void read_normalizer(const JsonReader& r, const Json& normalizer, TokenizerParts& parts);
// `byte_level`: whether the last step may be left to the model, where it makes bytes of the text; says whether it was.
bool read_pre_tokenizer(const JsonReader& r, const Json& pre_tokenizer, bool byte_level, TokenizerParts& parts);
// `byte_level`: the names of the tokens are bytes already.
void read_decoder(const JsonReader& r, const Json& decoder, bool byte_level, TokenizerParts& parts);
// `vocabulary`: the number of ids.
void read_post_processor(const JsonReader& r, const Json& processor, int64_t vocabulary, TokenizerParts& parts);

// The normalizer of SentencePiece's own rules, which a file holds as "precompiled_charsmap" (in base64).
Normalizer precompiled_normalizer(const JsonReader& r, const std::string& base64);

}  // namespace llm
