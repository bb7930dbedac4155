#include "llm/text/decompress.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <memory>
#include <vector>

#include "llm/base/error.h"

namespace llm {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 20;

bool begins_with(std::span<const std::byte> file, std::initializer_list<unsigned> bytes) {
  return file.size() >= bytes.size() &&
         std::equal(bytes.begin(), bytes.end(), file.begin(),
                    [](unsigned a, std::byte b) { return a == std::to_integer<unsigned>(b); });
}

using Take = std::function<void(std::string_view)>;

void unpack_gzip(std::span<const std::byte> file, const std::string& path, const Take& take) {
  z_stream stream{};
  if (inflateInit2(&stream, 15 + 16) != Z_OK)
    fail(path, ": zlib cannot begin");  // 15: the largest window; 16: gzip's header
  struct End {
    z_stream& stream;
    ~End() { inflateEnd(&stream); }
  } end{stream};
  std::vector<char> piece(kPieceBytes);
  for (size_t at = 0;;) {
    const auto given = static_cast<uInt>(std::min<size_t>(file.size() - at, std::numeric_limits<uInt>::max()));
    stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(file.data() + at));
    stream.avail_in = given;
    stream.next_out = reinterpret_cast<Bytef*>(piece.data());
    stream.avail_out = static_cast<uInt>(piece.size());
    const int status = inflate(&stream, Z_NO_FLUSH);
    at += given - stream.avail_in;
    if (status == Z_BUF_ERROR) fail(path, ": this gzip file is cut off after ", file.size(), " bytes");
    if (status != Z_OK && status != Z_STREAM_END)
      fail(path, ": damaged gzip file, near byte ", at, stream.msg ? ": " : "", stream.msg ? stream.msg : "");
    take({piece.data(), piece.size() - stream.avail_out});
    if (status == Z_OK) continue;
    // What follows the last part and is none itself is padding, which gzip leaves out as well.
    if (packing_of(file.subspan(at)) != Packing::gzip) return;
    inflateReset(&stream);
  }
}

void unpack_zstd(std::span<const std::byte> file, const std::string& path, const Take& take) {
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  const std::unique_ptr<ZSTD_DCtx, Free> context(ZSTD_createDCtx());
  if (!context) fail(path, ": zstd cannot begin");
  std::vector<char> piece(kPieceBytes);
  ZSTD_inBuffer in{file.data(), file.size(), 0};
  size_t left = 0;  // 0: a part is at its end
  bool is_full = false;
  while (in.pos < in.size || is_full) {
    ZSTD_outBuffer out{piece.data(), piece.size(), 0};
    left = ZSTD_decompressStream(context.get(), &out, &in);
    if (ZSTD_isError(left)) fail(path, ": damaged zstd file, near byte ", in.pos, ": ", ZSTD_getErrorName(left));
    take({piece.data(), out.pos});
    is_full = out.pos == out.size && left > 0;
  }
  if (left > 0) fail(path, ": this zstd file is cut off after ", file.size(), " bytes");
}

}  // namespace

Packing packing_of(std::span<const std::byte> file) {
  if (begins_with(file, {0x1f, 0x8b, 0x08})) return Packing::gzip;
  if (begins_with(file, {0x28, 0xb5, 0x2f, 0xfd})) return Packing::zstd;
  return Packing::none;
}

void unpack(std::span<const std::byte> file, const std::string& path, const Take& take) {
  packing_of(file) == Packing::gzip ? unpack_gzip(file, path, take) : unpack_zstd(file, path, take);
}

}  // namespace llm
