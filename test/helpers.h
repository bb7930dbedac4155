// Helpers of several test files: a folder for a test, the message of an error, a small model.
#pragma once
#include <doctest/doctest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <system_error>

#include "llm/base/error.h"
#include "llm/model/config.h"

namespace test {

// A new folder in the system's place for temporary files, which is removed with its content at the end.
struct Folder {
  std::string path = (std::filesystem::temp_directory_path() / "train_gpt-XXXXXX").string();
  Folder() { REQUIRE(::mkdtemp(path.data()) != nullptr); }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return path + "/" + name; }
};

// The message of the Error that `work` throws, which must be one line; "no error" when it throws none.
inline std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const llm::Error& e) {
    const std::string message = e.what();
    CHECK(message.find('\n') == message.npos);
    return message;
  }
  return "no error";
}

// Text from which a small model learns something in a few steps.
inline std::string pattern_text(int lines) {
  std::string text;
  for (int i = 0; i < lines; ++i) text += "line " + std::to_string(i * i % 97) + " of the text\n";
  return text;
}

// A model that trains in milliseconds.
inline llm::ModelConfig small_model() {
  llm::ModelConfig c = llm::config_of(llm::preset_named("nano"));
  c.context = 16, c.channels = 32, c.heads = c.kv_heads = 2, c.head_size = 16, c.hidden = 64;
  return c;
}

// Whether this is the build with AddressSanitizer: the test bed is ten times as slow there, so tests of it run less.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// The bytes of a safetensors file.
inline std::string safetensors(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + data;
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

}  // namespace test
