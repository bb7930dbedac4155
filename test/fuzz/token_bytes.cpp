// Bytes of tokens that become text for a client: cut anywhere, the text is the same, it is UTF-8, and no stop is in it. The
// first byte of the input says how long a token is; the next two are a stop string where they are ASCII.
#include "llm/serve/text_stream.h"
#include "llm/text/utf8.h"
#include "test/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  std::vector<std::string> stops;
  if (data[1] < 0x80 && data[2] < 0x80) stops = {std::string(reinterpret_cast<const char*>(data) + 1, 2)};
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 3, size - 3);
  const auto text_of = [&](size_t length) {
    llm::TextStream stream(stops);
    std::string text;
    for (size_t at = 0; at < bytes.size(); at += length) {
      stream.push(bytes.substr(at, length));
      text += stream.take();
    }
    stream.finish();
    return text + stream.take();
  };
  const std::string text = text_of(data[0] % 7 + 1);
  if (text != text_of(bytes.size() + 1) || llm::utf8_prefix(text) != text.size()) std::abort();
  for (const std::string& stop : stops)
    if (text.find(stop) != text.npos) std::abort();
  return 0;
}
