// Token shards, memory-mapped. The file format is llm.c's .bin: 256 little-endian int32 of header, then the tokens.
//   magic 20240520, version 1: uint16 tokens (vocabularies up to 65,536)
//   magic 20240801, version 7: uint32 tokens
//   header[2]: the number of tokens; the rest is zero.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "llm/base/mapped_file.h"

namespace llm {

class TokenShard {
 public:
  explicit TokenShard(const std::string& path);  // throws Error: wrong magic, version, length
  int64_t size() const { return size_; }
  const std::string& path() const { return file_.path(); }
  void read(int64_t begin, int64_t count, int32_t* tokens) const;  // a range inside [0, size())

 private:
  MappedFile file_;
  int64_t size_ = 0;
  int width_ = 2;  // bytes a token
};

// Several shards read as one stream, in the order of their names, whatever the order of `paths`. No shards: size 0.
class TokenStream {
 public:
  TokenStream() = default;
  // `largest_token`, where it is known.
  explicit TokenStream(const std::vector<std::string>& paths, std::optional<int32_t> largest_token = {});
  // One behind the other, in the order given.
  explicit TokenStream(std::vector<TokenStream> streams);
  int64_t size() const { return size_; }
  void read(int64_t begin, int64_t count, int32_t* tokens) const;
  // Of the whole stream, to check against a model's vocabulary; -1 when it is empty. Where it is not known all is read.
  int32_t largest_token() const;
  const std::vector<TokenShard>& shards() const { return shards_; }
  // Of the tokens, whatever files they lie in: FNV-1a over up to 2^24 of them, in 4096 blocks that lie evenly in a longer
  // stream. It tells data that moved from other data; it is no protection against somebody who wants to deceive.
  uint64_t checksum() const;

 private:
  std::vector<TokenShard> shards_;
  std::vector<int64_t> first_;  // of each shard
  int64_t size_ = 0;
  mutable std::optional<int32_t> largest_token_;  // once it was asked for
};

// A part of a stream that is mixed with the others.
struct MixedPart {
  std::string name;
  int64_t tokens = 0;  // in the stream, behind those of the parts before
  double weight = 0;   // above 0; what a part's samples are of all is its share of the weights' sum
};

// Writes a shard as PATH.tmp, syncs, renames. Tokens are handed over piece by piece. The 16-bit form is chosen
// for vocabularies up to 65,536. Throws Error when the disk is full (the temporary file is removed) or a token does not
// fit the form.
class ShardWriter {
 public:
  ShardWriter(std::string path, int64_t vocabulary);
  ~ShardWriter();  // without finish(): the temporary file is removed
  void write(const int32_t* tokens, int64_t count);
  void finish();
  int64_t size() const { return size_; }

 private:
  void flush();
  void write_at(int64_t offset, const void* data, size_t bytes);
  void discard();
  [[noreturn]] void give_up(int reason);

  std::string path_, temporary_;
  int file_ = -1;
  int width_ = 2;
  int64_t size_ = 0;
  int64_t flushed_ = 0;            // bytes of the file that are written
  std::vector<std::byte> buffer_;  // those that come next
};

}  // namespace llm
