// Texts and token shards as the tests of llm/text write and read them.
#pragma once
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "llm/text/shards.h"
#include "llm/text/tokenizer.h"
#include "test/helpers.h"

namespace test {

inline std::set<std::string> names_in(const Folder& directory) {
  std::set<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path))
    found.insert(entry.path().filename().string());
  return found;
}

inline void write_text(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

inline std::string read_text(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

inline void replace(std::string& text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  REQUIRE(at != text.npos);
  text.replace(at, from.size(), to);
}

inline bool contains(const std::string& text, std::string_view part) {
  const bool found = text.find(part) != text.npos && text.find('\n') == text.npos;
  if (!found) MESSAGE("\"" << part << "\" is not in: " << text);
  return found;
}

inline std::vector<int32_t> encode(const llm::Tokenizer& tokenizer, std::string_view text, bool special) {
  std::vector<int32_t> ids;
  tokenizer.encode(text, special, ids);
  return ids;
}

inline void write_shard(const std::string& path, const std::vector<int32_t>& tokens, int64_t vocabulary = 65536) {
  llm::ShardWriter writer(path, vocabulary);
  writer.write(tokens.data(), static_cast<int64_t>(tokens.size()));
  writer.finish();
}

inline std::vector<int32_t> all_tokens(const llm::TokenStream& stream) {
  std::vector<int32_t> tokens(static_cast<size_t>(stream.size()));
  stream.read(0, stream.size(), tokens.data());
  return tokens;
}
inline std::vector<int32_t> all_tokens(const std::vector<std::string>& paths) {
  return all_tokens(llm::TokenStream(paths));
}

inline std::vector<int32_t> count_up(int64_t n, int32_t first = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

}  // namespace test
