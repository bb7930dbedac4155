// JSON values: what is read is what was written, and what is wrong with a text is said.
#include "llm/base/json.h"

#include <doctest/doctest.h>

#include <cmath>

#include "llm/base/error.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;

TEST_CASE("json: values of every kind survive a text, members in their order") {
  const Json value = {{"z", nullptr},
                      {"a", {true, false}},
                      {"numbers", {0, -1, 1.5, 1e300, INT64_MIN, UINT64_MAX}},
                      {"text", "\"\\\n\u00e9"},
                      {"nested", {{"list", Json::array()}, {"object", Json::object()}}},
                      {"floats", std::vector<double>{0.1, 2}}};
  const std::string text = value.dump();
  CHECK(text == R"({"z":null,"a":[true,false],"numbers":[0,-1,1.5,1e+300,-9223372036854775808,18446744073709551615],)"
                R"("text":"\"\\\né","nested":{"list":[],"object":{}},"floats":[0.1,2.0]})");
  const Json back = parse_json(text, "here");
  CHECK(back == value);
  CHECK(back.dump() == text);
  CHECK(parse_json(json_text(value), "here") == value);
  CHECK(back["numbers"][5].get<uint64_t>() == UINT64_MAX);
  CHECK(back["numbers"][4].get<int64_t>() == INT64_MIN);
  CHECK(back["nested"]["none"]["at all"].is_null());
  CHECK(Json(std::nan("")).dump() == "null");
}

TEST_CASE("json: equality is of values") {
  CHECK(parse_json(R"({"a": 1, "b": [1.0]})", "") == parse_json(R"({"b": [1], "a": 1.0})", ""));
  CHECK(parse_json(R"({"a": 1})", "") != parse_json(R"({"a": 1, "b": 1})", ""));
  CHECK(parse_json(R"({"a": 1})", "") != parse_json(R"({"b": 1})", ""));
  CHECK(Json(-1) != Json(UINT64_MAX));
  CHECK(Json("1") != Json(1));
  CHECK(Json(false) != Json(0));
}

TEST_CASE("json: what is wrong is said") {
  const auto error = [](const std::string& text, const JsonLimits& limits = {}) {
    return error_of([&] { parse_json(text, "f.json", limits); });
  };
  CHECK(error("") == "f.json: not JSON, the file is empty");
  CHECK(error("{\"a\": }") == "f.json: not JSON in UTF-8, wrong at byte 7 of 7");
  CHECK(has(error("\"\xff\""), "not JSON in UTF-8, wrong at byte 2"));
  CHECK(has(error("1e999"), "out of range"));
  CHECK(has(error(std::string(100'000, '[')), "nested too deeply"));
  CHECK(has(error("[[[1]]]", {.depth = 2}), "nested too deeply"));
  CHECK(error("[[[1]]]", {.depth = 3}) == "no error");
  const std::string twice = R"({"a": 1, "b": 2, "a": 3})";
  CHECK(error(twice, {.keys_once = true}) == "f.json: the key \"a\" is there twice");
  CHECK(parse_json(twice, "")["a"] == 3);
  CHECK(json_or_null("{").is_null());

  const Json value = {{"text", "x"}, {"half", 0.5}, {"large", 300}, {"negative", -1}};
  CHECK(has(error_of([&] { value.at("none"); }), "\"none\" is missing"));
  CHECK(has(error_of([&] { value["text"].get<int>(); }), "a string is not a whole number"));
  CHECK(has(error_of([&] { value["half"].get<int>(); }), "0.5 is not a whole number"));
  CHECK(has(error_of([&] { value["large"].get<uint8_t>(); }), "300 is out of range"));
  CHECK(has(error_of([&] { value["negative"].get<uint64_t>(); }), "-1 is out of range"));
  CHECK(has(error_of([&] { value["large"].string(); }), "a number is not a string"));
  CHECK(value["negative"].get<double>() == -1);
  CHECK(has(error_of([] { Json("\xff").dump(); }), "not UTF-8"));
  CHECK(json_text("\xff") == "\"\ufffd\"\n");
  CHECK(shown("\u00e9\n") == "\"\\u00e9\\n\"");
}
