// safetensors files: what is written can be read back, and what breaks the format is named.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/model/safetensors.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

SafetensorsContent parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file.data(), file.size())), "f.safetensors");
}

}  // namespace

TEST_CASE("safetensors: what is written reads back, bit for bit") {
  const Folder folder;
  const std::string path = folder / "a.safetensors";
  std::vector<float> matrix(7 * 5), scalar = {std::bit_cast<float>(0x7fc12345u)}, none;
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<float>(i);
  const std::vector<FloatTensor> tensors = {
      {"m", {7, 5}}, {"s", {}}, {"none", {3, 0}}, {"t \"\\\n\u00e9", {5, 7}, true}};
  write_safetensors(path, tensors, [&](size_t i) {
    return std::array<const float*, 4>{matrix.data(), scalar.data(), none.data(), matrix.data()}[i];
  });

  const std::string bytes = read_file(path);
  uint64_t length;
  std::memcpy(&length, bytes.data(), sizeof length);
  CHECK(length % 8 == 0);
  CHECK(bytes.size() == 8 + length + (35 + 1 + 35) * 4);

  const SafetensorsFile file(path);
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.tensors().size() == 4);
  CHECK(file.tensor("m").dtype == "F32");
  CHECK(file.tensor("m").shape == std::vector<int64_t>{7, 5});
  CHECK(file.tensor("none").elements() == 0);
  CHECK(std::memcmp(file.tensor("m").bytes.data(), matrix.data(), 35 * 4) == 0);
  CHECK(std::memcmp(file.tensor("s").bytes.data(), scalar.data(), 4) == 0);
  std::vector<float> row(7), expected(7);
  for (int64_t r = 0; r < 5; ++r) {
    read_floats(file.tensor(tensors[3].name), r * 7, row);
    for (size_t c = 0; c < 7; ++c) expected[c] = matrix[c * 5 + static_cast<size_t>(r)];
    CHECK(row == expected);
  }
  CHECK(file.find("absent") == nullptr);
  CHECK(has(error_of([&] { file.tensor("absent"); }), path + ": no tensor \"absent\""));
  CHECK_THROWS_AS(read_floats(file.tensor("m"), 30, row), Error);
}

TEST_CASE("safetensors: transposes larger than the buffer, in both directions") {
  const Folder folder;
  for (const auto& [rows, columns] : {std::pair<size_t, size_t>{700, 900}, {3, 300'001}, {300'001, 3}}) {
    std::vector<float> data(rows * columns), read(rows * columns);
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
    const FloatTensor tensor{"t", {static_cast<int64_t>(rows), static_cast<int64_t>(columns)}, true};
    write_safetensors(folder / "t", {&tensor, 1}, [&](size_t) { return data.data(); });
    read_floats(SafetensorsFile(folder / "t").tensor("t"), 0, read);
    size_t wrong = 0;
    for (size_t r = 0; r < rows; ++r)
      for (size_t c = 0; c < columns; ++c) wrong += read[r * columns + c] != data[c * rows + r];
    CHECK(wrong == 0);
  }
}

TEST_CASE("safetensors: every kind of float is converted") {
  const auto read = [](const std::string& dtype, const std::string& bytes, size_t count) {
    const json header = {{"x", {{"dtype", dtype}, {"shape", {count}}, {"data_offsets", {0, bytes.size()}}}}};
    const std::string file = safetensors(header.dump(), bytes);
    std::vector<float> result(count);
    read_floats(parse(file).tensors.at("x"), 0, result);
    return result;
  };
  const auto bytes_of = [](auto values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof values[0]);
  };
  const std::array<uint16_t, 9> halves = {0x0000, 0x8000, 0x3c00, 0xc000, 0x7bff, 0x0001, 0x83ff, 0x0400, 0x7c00};
  CHECK(read("F16", bytes_of(halves), 9) == std::vector<float>{0.f, -0.f, 1.f, -2.f, 65504.f, 0x1p-24f,
                                                               -1023 * 0x1p-24f, 0x1p-14f,
                                                               std::numeric_limits<float>::infinity()});
  CHECK(std::signbit(read("F16", bytes_of(halves), 9)[1]));
  CHECK(std::isnan(read("F16", bytes_of(std::array<uint16_t, 1>{0x7e00}), 1)[0]));
  CHECK(read("BF16", bytes_of(std::array<uint16_t, 3>{0x3f80, 0xc040, 0x0001}), 3) ==
        std::vector<float>{1.f, -3.f, std::bit_cast<float>(0x00010000u)});
  CHECK(read("F64", bytes_of(std::array<double, 2>{0.1, -2.5}), 2) == std::vector<float>{0.1f, -2.5f});
  CHECK(read("F32", bytes_of(std::array<float, 2>{0.1f, -2.5f}), 2) == std::vector<float>{0.1f, -2.5f});
  CHECK(has(error_of([&] { read("I32", "abcd", 1); }), "I32"));
}

TEST_CASE("safetensors: a file that breaks the format is an error that names file, tensor and fault") {
  const auto check = [](const std::string& file, const std::string& expected) {
    const std::string message = error_of([&] { parse(file); });
    CAPTURE(message);
    CAPTURE(expected);
    CHECK(has(message, "f.safetensors: "));
    CHECK(has(message, expected));
  };
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  CHECK(parse(safetensors("{}   ", "")).tensors.empty());
  CHECK(parse(safetensors(one(R"("F32")", "[]", "[0,4]"), "abcd")).tensors.size() == 1);
  CHECK(parse(safetensors(one(R"("U8")", "[0,5]", "[0,0]"), "")).tensors.size() == 1);

  check("", "0 bytes");
  check("1234567", "7 bytes");
  check(safetensors("{}", "").substr(0, 9), "truncated");
  check(std::string(8, '\xff'), "limit");
  check(safetensors("", ""), "'{'");
  check(safetensors(" {}", ""), "'{'");
  check(safetensors("[]", ""), "'{'");
  check(safetensors("{", ""), "not JSON");
  check(safetensors("{} x", ""), "not JSON");
  check(safetensors(std::string("{}\0", 3), ""), "zero byte");
  check(safetensors("{\"\xff\":1}", ""), "not JSON");
  check(safetensors(R"({"a":[[[[[1]]]]]})", ""), "nested");
  check(safetensors(R"({"__metadata__":1})", ""), "__metadata__ is not an object");
  check(safetensors(R"({"__metadata__":{"k":1}})", ""), "__metadata__'s \"k\"");
  check(safetensors(R"({"a":1})", ""), "tensor \"a\": its header entry is not an object");
  check(safetensors(R"({"a\n":1})", ""), R"(tensor "a\n")");
  check(safetensors(R"({"a":{"dtype":"F32","shape":[]}})", ""), "no \"data_offsets\"");
  check(safetensors(R"({"a":{"shape":[],"data_offsets":[0,4]}})", "abcd"), "no \"dtype\"");
  check(safetensors(one("5", "[]", "[0,4]"), "abcd"), "dtype is not a string");
  // A type that is not known yet, whose size nobody can check.
  CHECK(parse(safetensors(one(R"("F33")", "[3]", "[0,4]"), "abcd")).tensors.at("a").bytes.size() == 4);
  CHECK(parse(safetensors(R"({"__metadata__":null})", "")).metadata.empty());
  for (const char* shape :
       {"[-1]", "[1.0]", "[\"1\"]", "{}", "[9223372036854775808]", "[18446744073709551616]", "[true]"})
    check(safetensors(one(R"("F32")", shape, "[0,4]"), "abcd"), "its shape is not");
  for (const char* offsets : {"[0]", "[0,4,8]", "[-4,0]", "0", "[0,1e9]", "[null,4]"})
    check(safetensors(one(R"("F32")", "[1]", offsets), "abcd"), "its data_offsets are not");
  check(safetensors(one(R"("F32")", "[1]", "[4,0]"), "abcd"), "before it begins");
  check(safetensors(one(R"("F32")", "[1]", "[0,4]"), "abc"), "truncated");
  check(safetensors(one(R"("F32")", "[1]", "[4,8]"), "abcd"), "truncated");
  check(safetensors(one(R"("F32")", "[2]", "[0,4]"), "abcd"), "8 bytes, but its offsets hold 4");
  check(safetensors(one(R"("F32")", "[0]", "[0,4]"), "abcd"), "0 bytes, but its offsets hold 4");
  check(safetensors(one(R"("F32")", "[4611686018427387904,4]", "[0,0]"), ""), "overflows");
  check(safetensors(one(R"("F32")", "[4294967296,4294967296,0]", "[0,0]"), ""), "overflows");
  check(safetensors(one(R"("F32")", "[1]", "[0,4]"), "abcdef"), "2 bytes at the end");
  check(safetensors(one(R"("F32")", "[1]", "[2,6]"), "abcdef"), "hole");

  const auto two = [](const std::string& first, const std::string& second, const std::string& name) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first + R"(},")" + name +
           R"(":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  CHECK(parse(safetensors(two("[4,8]", "[0,4]", "b"), "abcdefgh")).tensors.size() == 2);
  check(safetensors(two("[0,4]", "[0,4]", "b"), "abcd"), "overlaps");
  check(safetensors(two("[0,4]", "[2,6]", "b"), "abcdef"), "tensor \"b\": its data overlaps");
  check(safetensors(two("[0,4]", "[6,10]", "b"), "abcdefghij"), "tensor \"b\": bytes 4 to 6");
  check(safetensors(two("[0,4]", "[4,8]", "a"), "abcdefgh"), "the key \"a\" is there twice");
  check(safetensors(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", ""), "twice");

  CHECK(has(error_of([] { SafetensorsFile("/nonexistent/f"); }), "/nonexistent/f: No such file"));
}

TEST_CASE("safetensors: no prefix of a file, and no file with a byte changed in its header, is a crash") {
  const Folder folder;
  const std::vector<FloatTensor> tensors = {{"m", {2, 3}}, {"v", {3}}};
  const std::vector<float> data(6, 1.f);
  write_safetensors(folder / "f", tensors, [&](size_t) { return data.data(); });
  const std::string file = read_file(folder / "f");
  for (size_t size = 0; size < file.size(); ++size) CHECK_THROWS_AS(parse(file.substr(0, size)), Error);
  for (size_t at = 0; at < file.size() - 36; ++at) {
    for (const char c : {'\0', '"', '}', '9', '\xff'}) {
      std::string changed = file;
      changed[at] = c;
      try {
        parse(changed);
      } catch (const Error&) {
      }
    }
  }
}
