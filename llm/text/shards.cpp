#include "llm/text/shards.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "llm/base/error.h"
#include "llm/base/random.h"

namespace llm {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are read in place, as little-endian numbers");

using Header = std::array<int32_t, 256>;
constexpr size_t kHeaderBytes = sizeof(Header);
constexpr size_t kBufferBytes = size_t{1} << 20;

struct Form {
  int32_t magic, version;
  int width;  // bytes a token
};
constexpr Form kForm16{20240520, 1, 2};
constexpr Form kForm32{20240801, 7, 4};

}  // namespace

TokenShard::TokenShard(const std::string& path) : file_(path) {
  const auto bytes = file_.bytes();
  if (bytes.size() < kHeaderBytes)
    fail(path, ": not a token shard, its ", bytes.size(), " bytes are less than the header's ", kHeaderBytes);
  Header header;
  std::memcpy(header.data(), bytes.data(), kHeaderBytes);
  if (header[0] != kForm16.magic && header[0] != kForm32.magic)
    fail(path, ": not a token shard, its magic number is ", header[0], ", expected ", kForm16.magic, " or ",
         kForm32.magic);
  const Form& form = header[0] == kForm16.magic ? kForm16 : kForm32;
  if (header[1] != form.version)
    fail(path, ": token shard of version ", header[1], ", expected ", form.version, " after magic number ", form.magic);
  if (header[2] < 0) fail(path, ": damaged token shard, its header says ", header[2], " tokens");
  const size_t expected = kHeaderBytes + static_cast<size_t>(header[2]) * static_cast<size_t>(form.width);
  if (bytes.size() != expected)
    fail(path, bytes.size() < expected ? ": truncated" : ": damaged", " token shard, ", bytes.size(),
         " bytes long where its ", header[2], " tokens make ", expected);
  size_ = header[2];
  width_ = form.width;
}

void TokenShard::read(int64_t begin, int64_t count, int32_t* tokens) const {
  if (begin < 0 || count < 0 || begin > size_ || count > size_ - begin)
    fail(path(), ": tokens ", begin, " to ", begin + count, " were asked for, there are ", size_);
  if (count == 0) return;
  const std::byte* data =
      file_.bytes().data() + kHeaderBytes + static_cast<size_t>(begin) * static_cast<size_t>(width_);
  if (width_ == 4) {
    std::memcpy(tokens, data, static_cast<size_t>(count) * 4);
    int32_t signs = 0;
    for (int64_t i = 0; i < count; ++i) signs |= tokens[i];
    if (signs < 0)
      fail(path(), ": damaged token shard, a token between ", begin, " and ", begin + count, " is over 2^31");
    return;
  }
  // The mapping begins on a page and the header is 1024 bytes: 16-bit tokens are aligned.
  const uint16_t* narrow = reinterpret_cast<const uint16_t*>(data);
  for (int64_t i = 0; i < count; ++i) tokens[i] = narrow[i];
}

TokenStream::TokenStream(const std::vector<std::string>& paths, std::optional<int32_t> largest_token)
    : largest_token_(largest_token) {
  std::vector<std::string> sorted = paths;
  std::sort(sorted.begin(), sorted.end());
  shards_.reserve(sorted.size());
  for (const std::string& path : sorted) {
    shards_.emplace_back(path);
    first_.push_back(size_);
    size_ += shards_.back().size();
  }
}

TokenStream::TokenStream(std::vector<TokenStream> streams) : largest_token_(-1) {
  for (TokenStream& stream : streams) {
    for (TokenShard& shard : stream.shards_) {
      first_.push_back(size_);
      size_ += shard.size();
      shards_.push_back(std::move(shard));
    }
    if (!largest_token_ || !stream.largest_token_)
      largest_token_.reset();
    else
      largest_token_ = std::max(*largest_token_, *stream.largest_token_);
  }
}

void TokenStream::read(int64_t begin, int64_t count, int32_t* tokens) const {
  if (begin < 0 || count < 0 || begin > size_ || count > size_ - begin)
    fail("tokens ", begin, " to ", begin + count, " were asked for, the stream has ", size_);
  if (count == 0) return;
  // The last shard that begins at or before `begin`; of empty shards at one place it is the last, the one with tokens.
  size_t shard = static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), begin) - first_.begin()) - 1;
  for (; count > 0; ++shard) {
    const int64_t within = begin - first_[shard];
    const int64_t part = std::min(count, shards_[shard].size() - within);
    shards_[shard].read(within, part, tokens);
    begin += part;
    count -= part;
    tokens += part;
  }
}

uint64_t TokenStream::checksum() const {
  constexpr int64_t kBlock = 4096, kMostBlocks = 4096;
  const int64_t all = (size_ + kBlock - 1) / kBlock, blocks = std::min(all, kMostBlocks);
  uint64_t hash = kHashStart;
  std::vector<int32_t> tokens(static_cast<size_t>(kBlock));
  for (int64_t b = 0; b < blocks; ++b) {
    // The first block and the last are among them.
    const int64_t begin = blocks > 1 ? (all - 1) * b / (blocks - 1) * kBlock : 0;
    const int64_t count = std::min(kBlock, size_ - begin);
    read(begin, count, tokens.data());
    for (int64_t i = 0; i < count; ++i) hash = hash_step(hash, static_cast<uint32_t>(tokens[static_cast<size_t>(i)]));
  }
  return hash;
}

int32_t TokenStream::largest_token() const {
  if (largest_token_) return *largest_token_;
  int32_t largest = -1;
  std::vector<int32_t> block(1 << 16);
  for (const TokenShard& shard : shards_)
    for (int64_t begin = 0; begin < shard.size(); begin += static_cast<int64_t>(block.size())) {
      const int64_t count = std::min(shard.size() - begin, static_cast<int64_t>(block.size()));
      shard.read(begin, count, block.data());
      for (int64_t i = 0; i < count; ++i) largest = std::max(largest, block[static_cast<size_t>(i)]);
    }
  largest_token_ = largest;
  return largest;
}

ShardWriter::ShardWriter(std::string path, int64_t vocabulary)
    : path_(std::move(path)),
      temporary_(path_ + ".tmp"),
      width_(vocabulary <= 65536 ? kForm16.width : kForm32.width),
      flushed_(kHeaderBytes) {  // the header is written last, when the number of tokens is known
  file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file_ < 0) fail("cannot write ", path_, ": ", std::strerror(errno));
  buffer_.reserve(kBufferBytes);
}

ShardWriter::~ShardWriter() { discard(); }

void ShardWriter::discard() {
  if (file_ < 0) return;
  ::close(std::exchange(file_, -1));
  ::unlink(temporary_.c_str());
}

void ShardWriter::give_up(int reason) {
  discard();
  fail("cannot write ", path_, ": ", std::strerror(reason));
}

void ShardWriter::write(const int32_t* tokens, int64_t count) {
  if (file_ < 0) fail("cannot write ", path_, ": it is closed");
  if (count > std::numeric_limits<int32_t>::max() - size_)
    fail("cannot write ", path_, ": a token shard holds at most ", std::numeric_limits<int32_t>::max(), " tokens");
  const uint32_t limit = width_ == 2 ? 0xFFFF : 0x7FFFFFFF;
  while (count > 0) {
    const size_t used = buffer_.size();
    const int64_t part = std::min(count, static_cast<int64_t>(kBufferBytes - used) / width_);
    buffer_.resize(used + static_cast<size_t>(part * width_));
    uint32_t all_bits = 0;
    for (int64_t i = 0; i < part; ++i) all_bits |= static_cast<uint32_t>(tokens[i]);
    if (all_bits > limit) {  // both limits are of the form 2^n - 1
      const int32_t* wrong =
          std::find_if(tokens, tokens + part, [&](int32_t t) { return static_cast<uint32_t>(t) > limit; });
      fail("cannot write ", path_, ": token ", *wrong, " (number ", size_ + (wrong - tokens), ") is outside 0 to ",
           limit);
    }
    if (width_ == 2) {
      uint16_t* out = reinterpret_cast<uint16_t*>(buffer_.data() + used);
      for (int64_t i = 0; i < part; ++i) out[i] = static_cast<uint16_t>(tokens[i]);
    } else {
      std::memcpy(buffer_.data() + used, tokens, static_cast<size_t>(part) * 4);
    }
    tokens += part;
    count -= part;
    size_ += part;
    if (buffer_.size() == kBufferBytes) flush();
  }
}

void ShardWriter::flush() {
  write_at(flushed_, buffer_.data(), buffer_.size());
  flushed_ += static_cast<int64_t>(buffer_.size());
  buffer_.clear();
}

void ShardWriter::write_at(int64_t offset, const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::pwrite(file_, next, bytes, offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) give_up(written < 0 ? errno : ENOSPC);
    next += written;
    offset += written;
    bytes -= static_cast<size_t>(written);
  }
}

void ShardWriter::finish() {
  if (file_ < 0) fail("cannot write ", path_, ": it is closed");
  flush();
  const Form& form = width_ == 2 ? kForm16 : kForm32;
  Header header{};
  header[0] = form.magic;
  header[1] = form.version;
  header[2] = static_cast<int32_t>(size_);
  write_at(0, header.data(), kHeaderBytes);
  // Some file systems tell of a full disk only when they sync.
  if (::fsync(file_) != 0) give_up(errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) give_up(errno);
  if (::close(std::exchange(file_, -1)) != 0 && errno != EINTR)
    fail("cannot write ", path_, ": ", std::strerror(errno));
}

}  // namespace llm
