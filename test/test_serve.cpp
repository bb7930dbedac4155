// The server's parts that need no network: text from tokens as they come, requests of OpenAI's API.
#include <doctest/doctest.h>

#include "llm/base/error.h"
#include "llm/base/random.h"
#include "llm/serve/api_error.h"
#include "llm/serve/openai_request.h"
#include "llm/serve/text_stream.h"
#include "llm/text/utf8.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;

namespace {

// What a stream hands on for each of the tokens, and at the end.
std::vector<std::string> pieces_of(const std::vector<std::string>& tokens, std::vector<std::string> stops = {}) {
  TextStream stream(std::move(stops));
  std::vector<std::string> pieces;
  for (const std::string& token : tokens) {
    stream.push(token);
    pieces.push_back(stream.take());
  }
  stream.finish();
  pieces.push_back(stream.take());
  return pieces;
}

using Pieces = std::vector<std::string>;

const std::string kBad = "\xEF\xBF\xBD";

// The error of a body, as "status param code: message".
template <class Parse>
std::string refused(Parse&& parse) {
  try {
    parse();
  } catch (const ApiError& e) {
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    const Json json = e.json()["error"];
    for (const char* key : {"message", "type", "param", "code"}) CHECK(json.contains(key));
    return concat(e.status, " ", e.param, " ", e.code, ": ", e.what());
  }
  return "accepted";
}

std::string completion_error(const std::string& body) {
  return refused([&] { parse_completion_request(body, 100); });
}

std::string chat_error(const std::string& body) {
  return refused([&] { parse_chat_request(body, 100); });
}

}  // namespace

TEST_CASE("text stream: characters come whole") {
  CHECK(pieces_of({"a", "\xC3", "\xA9", "b"}) == Pieces{"a", "", "\u00e9", "b", ""});
  CHECK(pieces_of({"\xF0\x9F", "\x99", "\x82!"}) == Pieces{"", "", "\U0001F642!", ""});
  // What is no UTF-8 becomes what Python's errors="replace" makes of it.
  CHECK(pieces_of({"\xFF", "a\x80"}) == Pieces{kBad, "a" + kBad, ""});
  CHECK(pieces_of({"\xE2\x82", "a"}) == Pieces{"", kBad + "a", ""});
  CHECK(pieces_of({"\xF0\x9F\x99"}) == Pieces{"", kBad});
  CHECK(pieces_of({"\xE0", "\x80"}) == Pieces{"", kBad + kBad, ""});
  CHECK(pieces_of({"\xED\xA0\x80"}) == Pieces{kBad + kBad + kBad, ""});
  CHECK(pieces_of({"\xF4\x90"}) == Pieces{kBad + kBad, ""});
}

TEST_CASE("text stream: a stop string is found across tokens, and no part of it is handed on") {
  CHECK(pieces_of({"one ", "ST", "OP two"}, {"STOP"}) == Pieces{"one ", "", "", ""});
  CHECK(pieces_of({"one S", "T", "x"}, {"STOP"}) == Pieces{"one ", "", "STx", ""});
  CHECK(pieces_of({"one S"}, {"STOP"}) == Pieces{"one ", "S"});
  CHECK(pieces_of({"aab"}, {"ab", "b"}) == Pieces{"a", ""});
  CHECK(pieces_of({"aa", "aab"}, {"aaab"}) == Pieces{"", "a", ""});
  CHECK(pieces_of({"x\xC3", "\xA9y"}, {"\u00e9"}) == Pieces{"x", "", ""});
  CHECK(pieces_of({"\xFF"}, {kBad}) == Pieces{"", ""});
  // A prompt that is echoed holds no stop, nor does a stop begin in it.
  TextStream stream({"ab"});
  stream.push("ab a", true);
  CHECK(stream.take() == "ab a");
  stream.push("b");
  CHECK(stream.take() == "b");
  stream.push("ab");
  CHECK(stream.take() == "");
  CHECK(stream.stopped());
}

TEST_CASE("text stream: however the bytes are cut, the text and the tokens before the stop are the same") {
  const std::string text = "h\u00e9llo \U0001F642 w\xFFrld \xE2\x82 END more";
  const Random random(7, 1);
  uint64_t draw = 0;
  for (int round = 0; round < 300; ++round) {
    TextStream stream({"END", "zz", "ENDLESS"});
    std::string got;
    size_t told = 0;
    std::vector<size_t> begins;
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random.bits(draw++) % 5;
      if (!stream.stopped()) begins.push_back(at);
      stream.push(std::string_view(text).substr(at, length));
      got += stream.take();
      CHECK(utf8_prefix(got) == got.size());
      CHECK(!has(got, "E"));
      const size_t tokens = stream.tokens();
      CHECK(tokens >= told);
      told = tokens;
      at += length;
    }
    stream.finish();
    got += stream.take();
    CHECK(got == "h\u00e9llo \U0001F642 w" + kBad + "rld " + kBad + " ");
    CHECK(stream.stopped());
    // Those that begin in front of the stop, in bytes here.
    size_t before = 0;
    while (before < begins.size() && begins[before] < text.find("END")) ++before;
    CHECK(stream.tokens() == before);
    CHECK(stream.offset(0) == 0);
  }
}

TEST_CASE("requests: a completion with every field") {
  const CompletionRequest r = parse_completion_request(
      R"({"model": "m", "prompt": ["a", [1, 2.0]], "max_tokens": 5.0, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
          "presence_penalty": -1, "frequency_penalty": 2, "repetition_penalty": 1.5, "logit_bias": {"3": -100, "5": 1.5},
          "seed": -3, "n": 2, "best_of": 2, "stop": ["x", ""], "stop_token_ids": [9], "ignore_eos": true, "echo": true,
          "logprobs": 3, "stream": true, "stream_options": {"include_usage": true}, "user": "u", "unknown": [{}],
          "return_token_ids": true, "add_special_tokens": false, "suffix": null})",
      100);
  CHECK(r.model == "m");
  REQUIRE(r.prompts.size() == 2);
  CHECK((r.prompts[0].is_text && r.prompts[0].text == "a"));
  CHECK((!r.prompts[1].is_text && r.prompts[1].ids == std::vector<int32_t>{1, 2}));
  CHECK(r.max_tokens == 5);
  const SamplingOptions& s = r.sampling;
  CHECK((s.temperature == 0.5 && s.top_p == 0.9 && s.top_k == 7 && s.min_p == 0.1));
  CHECK((s.presence == -1 && s.frequency == 2 && s.repetition == 1.5));
  CHECK(s.bias == std::vector<std::pair<int32_t, float>>{{3, -100.f}, {5, 1.5f}});
  CHECK((r.has_seed && s.seed == static_cast<uint64_t>(-3)));
  CHECK((r.choices == 2 && r.stops == Pieces{"x"} && r.stop_tokens == std::vector<int32_t>{9}));
  CHECK((r.ignore_end && r.echo && r.logprobs == 3 && r.stream && r.stream_usage && r.token_ids && !r.special_tokens));

  const CompletionRequest plain =
      parse_completion_request(R"({"prompt": "", "logprobs": null, "max_tokens": null})", 100);
  CHECK((!plain.max_tokens && plain.choices == 1 && plain.logprobs == -1 && !plain.has_seed && !plain.stream));
  CHECK((plain.sampling.temperature == 1 && plain.sampling.top_p == 1 && plain.sampling.top_k == 0));
  CHECK(parse_completion_request(R"({"prompt": [1, 2]})", 100).prompts.size() == 1);
  CHECK(parse_completion_request(R"({"prompt": [[1], [2]]})", 100).prompts.size() == 2);
}

TEST_CASE("requests: a chat with every field") {
  const ChatRequest r = parse_chat_request(
      R"({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
          {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}],
          "max_completion_tokens": 9, "max_tokens": 3, "logprobs": true, "top_logprobs": 2, "tools": [{"type": "function"}], "tool_choice": "auto",
          "response_format": {"type": "text"}, "chat_template_kwargs": {"enable_thinking": false}, "add_generation_prompt": false})",
      100);
  const Json& messages = r.conversation.messages;
  REQUIRE(messages.size() == 3);
  CHECK(messages[0]["role"] == "system");
  CHECK(messages[1]["content"] == "a\nb");
  CHECK(messages[2]["content"] == "");
  CHECK(messages[2]["tool_calls"][0]["function"]["arguments"] == Json{{"x", 1}});
  CHECK((r.max_tokens == 9 && r.logprobs == 2 && !r.conversation.add_generation_prompt));
  CHECK(r.conversation.tools.size() == 1);
  CHECK(r.conversation.variables["enable_thinking"] == false);
  CHECK(
      parse_chat_request(R"({"messages": [{"role": "user", "content": "x"}], "tools": [{}], "tool_choice": "none"})", 9)
          .conversation.tools.is_null());
}

TEST_CASE("requests: what is wrong is one error that names the field") {
  CHECK(completion_error("") == "400  : the request has no body; it must be a JSON object");
  CHECK(completion_error("{\"prompt\": \"x\"") ==
        "400  invalid_json: the request's body: not JSON in UTF-8, wrong at byte 15 of 14");
  CHECK(completion_error("[]") == "400  invalid_json: the request's body is no JSON object");
  CHECK(has(completion_error("{\"prompt\": \"\xFF\"}"), "invalid_json: the request's body: not JSON in UTF-8"));
  CHECK(has(completion_error("{\"a\": " + std::string(100'000, '[')), "nested too deeply"));
  CHECK(completion_error("{}") == "400 prompt missing_required_parameter: the field \"prompt\" is missing");
  CHECK(completion_error(R"({"prompt": 3})") ==
        "400 prompt invalid_value: prompt must be a string, a list of strings, a list of token ids, or a list of such "
        "lists, not 3");
  CHECK(has(completion_error(R"({"prompt": []})"), "400 prompt"));
  CHECK(has(completion_error(R"({"prompt": [100]})"), "made of token ids from 0 to 99, not 100"));
  CHECK(has(completion_error(R"({"prompt": [-1]})"), "made of token ids"));
  CHECK(has(completion_error(R"({"prompt": [1.5]})"), "made of token ids"));
  const auto wrong = [](const std::string& field, const std::string& value) {
    const std::string error = completion_error("{\"prompt\": \"x\", \"" + field + "\": " + value + "}");
    CAPTURE(field);
    CAPTURE(value);
    CHECK(error.starts_with("400 " + field.substr(0, field.find('.')) + " "));
    return error;
  };
  CHECK(wrong("max_tokens", "1.5") ==
        "400 max_tokens invalid_value: max_tokens must be a whole number, 0 or more, not 1.5");
  wrong("max_tokens", "-1");
  wrong("max_tokens", "1e30");
  wrong("max_tokens", "\"5\"");
  CHECK(has(wrong("temperature", "2.1"), "a number from 0 to 2, not 2.1"));
  wrong("temperature", "\"hot\"");
  wrong("top_p", "1.1");
  wrong("top_k", "-2");
  wrong("min_p", "2");
  wrong("presence_penalty", "3");
  wrong("frequency_penalty", "[]");
  wrong("repetition_penalty", "0");
  wrong("n", "0");
  wrong("n", "129");
  wrong("seed", "\"x\"");
  wrong("seed", "18446744073709551615");
  wrong("stop", "3");
  wrong("stop", "[3]");
  wrong("stop", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]");
  CHECK(has(wrong("stop", "\"" + std::string(2000, 'x') + "\""), "strings of up to 1024 bytes, not \"xxx"));
  wrong("stop_token_ids", "[-1]");
  wrong("logit_bias", "{\"x\": 1}");
  wrong("logit_bias", "{\"100\": 1}");
  wrong("logit_bias", "{\"1\": 101}");
  wrong("logprobs", "21");
  wrong("logprobs", "true");
  wrong("echo", "1");
  wrong("stream", "\"yes\"");
  wrong("stream_options", "3");
  CHECK(has(wrong("best_of", "2"), "unsupported_parameter: best_of other than n is not supported"));
  CHECK(has(wrong("suffix", "\"x\""), "unsupported_parameter"));
  CHECK(has(wrong("response_format", "{\"type\": \"json_object\"}"), "unsupported_parameter"));
  CHECK(has(wrong("model", "5"), "model must be a string"));
  CHECK(has(completion_error(R"({"prompt": ["a", 3]})"), "400 prompt"));
  CHECK(has(completion_error("{\"n\": 128, \"prompt\": [" +
                             [] {
                               std::string all = "\"a\"";
                               for (int i = 0; i < 20; ++i) all += ",\"a\"";
                               return all;
                             }() +
                             "]}"),
            "400 n : n and the prompts make 2688 texts, more than 2048"));

  CHECK(chat_error("{}") == "400 messages missing_required_parameter: the field \"messages\" is missing");
  CHECK(has(chat_error(R"({"messages": []})"),
            "400 messages invalid_value: messages must be a list of at least one message"));
  CHECK(has(chat_error(R"({"messages": ["x"]})"), "400 messages[0] "));
  CHECK(has(chat_error(R"({"messages": [{"role": "king", "content": "x"}]})"), "400 messages[0].role "));
  CHECK(has(chat_error(R"({"messages": [{"role": "user"}]})"), "400 messages[0].content "));
  CHECK(has(chat_error(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"),
            "400 messages[0].content "));
  const auto chat_wrong = [](const std::string& more) {
    return chat_error("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], " + more + "}");
  };
  CHECK(has(chat_wrong("\"top_logprobs\": 2"), "400 top_logprobs "));
  CHECK(has(chat_wrong("\"logprobs\": true, \"top_logprobs\": 21"), "400 top_logprobs "));
  CHECK(has(chat_wrong("\"max_tokens\": 0"), "400 max_tokens "));
  CHECK(has(chat_wrong("\"tool_choice\": \"required\""), "400 tool_choice unsupported_parameter"));
  CHECK(has(chat_wrong("\"tools\": {}"), "400 tools "));
  CHECK(has(chat_wrong("\"chat_template\": \"x\""), "400 chat_template unsupported_parameter"));
  CHECK(has(refused([] { parse_tokenize_request("{}"); }), "400 prompt missing"));
  CHECK(has(refused([] { parse_detokenize_request("{\"tokens\": [9]}", 9); }), "400 tokens "));
}
