// The server as its clients see it: a process of its own with a small model, asked over sockets.
#include <doctest/doctest.h>

#include "llm/base/atomic_file.h"
#include "test/http_client.h"

using namespace test;
using nlohmann::json;

namespace {

const char* const kTemplate =
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif "
    "%}";

// One server for many tests: starting it takes longer than asking it. Its model has 256 tokens and a context of 32.
struct Shared {
  Folder folder;
  std::string chat_template = folder / "template";
  Server server;
  Shared()
      : server(trained().run_path, {"--name", "small", "--chat-template",
                                    (llm::write_file_atomically(chat_template, kTemplate), chat_template)}) {}
};
int shared_port() {
  static const Shared shared;
  return shared.server.port;
}

}  // namespace

TEST_CASE("serve: what answers at its addresses") {
  const int port = shared_port();
  if (!port) return;
  CHECK(get(port, "/health").status == 200);
  const json models = get(port, "/v1/models").json();
  CHECK(models["object"] == "list");
  REQUIRE(models["data"].size() == 1);
  CHECK(models["data"][0]["id"] == "small");
  CHECK(models["data"][0]["max_model_len"] == 32);
  CHECK(get(port, "/v1/models/small").json() == models["data"][0]);
  check_api_error(get(port, "/v1/models/large"), 404, "model", "no model \"large\"");
  check_api_error(get(port, "/v1/nothing"), 404, "", "there is no /v1/nothing here");
  check_api_error(get(port, "/v1/completions"), 405, "", "takes POST");
  check_api_error(request(port, "PUT", "/v1/completions"), 405, "", "takes POST");
  check_api_error(request(port, "DELETE", "/v1/models"), 405, "", "takes GET");
  const HttpAnswer page = get(port, "/");
  CHECK(page.status == 200);
  CHECK(has(page.head, "text/html"));
  CHECK(page.body.starts_with("<!doctype html>"));
  CHECK(page.body.ends_with("</html>\n"));
  const HttpAnswer preflight = request(port, "OPTIONS", "/v1/completions", "", "Origin: http://there\r\n");
  CHECK(preflight.status == 204);
  CHECK(has(preflight.head, "Access-Control-Allow-Origin: *\r\n"));
  CHECK(has(preflight.head, "Access-Control-Allow-Headers: Authorization, Content-Type\r\n"));

  const json tokens = post(port, "/tokenize", {{"prompt", "h\u00e9"}}).json();
  CHECK(tokens["tokens"] == json({104, 195, 169}));
  CHECK(tokens["count"] == 3);
  CHECK(post(port, "/detokenize", {{"tokens", {104, 195, 169}}}).json()["prompt"] == "h\u00e9");
  CHECK(post(port, "/detokenize", {{"tokens", {104, 195}}}).json()["prompt"] == "h\uFFFD");
  CHECK(post(port, "/tokenize", {{"messages", {{{"role", "user"}, {"content", "x"}}}}}).json()["count"] == 10);
  const std::string metrics = get(port, "/metrics").body;
  for (const char* name :
       {"sequences_running", "sequences_waiting", "blocks_used", "blocks_total", "prompt_tokens_total",
        "generated_tokens_total", "time_to_first_token_seconds_bucket{le=\"0.1\"}", "time_per_output_token_seconds_sum",
        "requests_total{how=\"length\"}"})
    CHECK(has(metrics, std::string("\ntrain_gpt_") + name + " "));
}

TEST_CASE("serve: completions, whole and streamed, are the same text") {
  const int port = shared_port();
  if (!port) return;
  const json ask = {{"model", "small"}, {"prompt", "the cat "}, {"max_tokens", 16},        {"seed", 5},
                    {"n", 3},           {"logprobs", 2},        {"return_token_ids", true}};
  const HttpAnswer answer = post(port, "/v1/completions", ask);
  REQUIRE(answer.status == 200);
  const json whole = answer.json();
  CHECK(whole["object"] == "text_completion");
  CHECK(whole["model"] == "small");
  CHECK(whole["usage"] == json{{"prompt_tokens", 8}, {"completion_tokens", 48}, {"total_tokens", 56}});
  REQUIRE(whole["choices"].size() == 3);
  CHECK(whole["choices"][0]["text"] != whole["choices"][1]["text"]);
  CHECK(post(port, "/v1/completions", ask).json()["choices"] == whole["choices"]);

  json streamed = ask;
  streamed["stream"] = true;
  streamed["stream_options"] = {{"include_usage", true}};
  const HttpAnswer stream = post(port, "/v1/completions", streamed);
  CHECK(has(stream.head, "Content-Type: text/event-stream"));
  const std::vector<json> events = stream.events();
  std::vector<std::string> texts(3), ends(3);
  std::vector<json> logprobs(3, json{{"tokens", json::array()},
                                     {"token_logprobs", json::array()},
                                     {"top_logprobs", json::array()},
                                     {"text_offset", json::array()}});
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    CHECK(events[i]["usage"].is_null());
    CHECK(events[i]["id"] == events[0]["id"]);
    const json& choice = events[i]["choices"].at(0);
    const size_t index = choice["index"];
    CHECK(ends[index].empty());
    texts[index] += choice["text"];
    if (!choice["logprobs"].is_null())
      for (auto& [key, list] : logprobs[index].items())
        list.insert(list.end(), choice["logprobs"][key].begin(), choice["logprobs"][key].end());
    if (!choice["finish_reason"].is_null()) ends[index] = choice["finish_reason"];
  }
  CHECK(events.back()["choices"].empty());
  CHECK(events.back()["usage"] == whole["usage"]);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(texts[i] == whole["choices"][i]["text"]);
    CHECK(ends[i] == whole["choices"][i]["finish_reason"]);
    CHECK(logprobs[i] == whole["choices"][i]["logprobs"]);
    CHECK(logprobs[i]["tokens"].size() == 16);
    CHECK(whole["choices"][i]["token_ids"].size() == 16);
  }
}

TEST_CASE("serve: stop strings, echo, scores of a prompt, several prompts") {
  const int port = shared_port();
  if (!port) return;
  const auto complete = [&](const json& ask) {
    const HttpAnswer answer = post(port, "/v1/completions", ask);
    CAPTURE(answer.body);
    REQUIRE(answer.status == 200);
    return answer.json()["choices"];
  };
  const json greedy = {{"prompt", "the cat "}, {"max_tokens", 20}, {"temperature", 0}};
  const std::string text = complete(greedy)[0]["text"];
  REQUIRE(text.size() > 8);
  // Two letters that are far from the beginning.
  std::string stop;
  for (size_t i = 0; i + 1 < text.size(); ++i)
    if (text[i] > 0 && text[i + 1] > 0 && (stop.empty() || text.find(text.substr(i, 2)) > text.find(stop)))
      stop = text.substr(i, 2);
  const std::string before = text.substr(0, text.find(stop));
  REQUIRE(before.size() > 1);
  json ask = greedy;
  ask["stop"] = stop;
  ask["logprobs"] = 0;
  const json stopped = complete(ask)[0];
  CHECK(stopped["text"] == before);
  CHECK(stopped["finish_reason"] == "stop");
  CHECK(stopped["logprobs"]["tokens"].size() == before.size());
  ask["stream"] = true;
  std::string streamed;
  for (const json& event : post(port, "/v1/completions", ask).events())
    streamed += event["choices"][0]["text"].get<std::string>();
  CHECK(streamed == before);

  ask = greedy;
  ask["echo"] = true;
  CHECK(complete(ask)[0]["text"] == "the cat " + text);
  ask["max_tokens"] = 0;
  ask["logprobs"] = 1;
  const json scored = complete(ask)[0];
  CHECK(scored["text"] == "the cat ");
  CHECK(scored["logprobs"]["tokens"].size() == 8);
  CHECK(scored["logprobs"]["token_logprobs"][0].is_null());
  CHECK(scored["logprobs"]["top_logprobs"][0].is_null());
  CHECK(scored["logprobs"]["token_logprobs"][1].get<double>() < 0);
  CHECK(scored["logprobs"]["text_offset"] == json({0, 1, 2, 3, 4, 5, 6, 7}));

  const json many = complete({{"prompt", json::array({"the cat ", "on a "})}, {"max_tokens", 20}, {"temperature", 0}});
  REQUIRE(many.size() == 2);
  CHECK(many[0]["text"] == text);
  CHECK(many[1]["text"] ==
        complete({{"prompt", {111, 110, 32, 97, 32}}, {"max_tokens", 20}, {"temperature", 0}})[0]["text"]);
  CHECK(
      complete({{"prompt", "the"}, {"max_tokens", 3}, {"temperature", 0}, {"logit_bias", {{"33", 100}}}})[0]["text"] ==
      "!!!");
}

TEST_CASE("serve: chat") {
  const int port = shared_port();
  if (!port) return;
  json ask = {{"model", "small"}, {"messages", {{{"role", "user"}, {"content", "the "}}}},
              {"seed", 3},        {"max_tokens", 12},
              {"logprobs", true}, {"top_logprobs", 2}};
  const json whole = post(port, "/v1/chat/completions", ask).json();
  CHECK(whole["object"] == "chat.completion");
  const json& choice = whole["choices"][0];
  CHECK(choice["message"]["role"] == "assistant");
  CHECK(choice["finish_reason"] == "length");
  CHECK(choice["logprobs"]["content"].size() == 12);
  CHECK(choice["logprobs"]["content"][0]["top_logprobs"].size() == 2);
  CHECK(whole["usage"]["prompt_tokens"] == 13);
  // It is the completion of the template's text.
  const json same =
      post(port, "/v1/completions", {{"prompt", "<user>the <a>"}, {"seed", 3}, {"max_tokens", 12}}).json();
  CHECK(same["choices"][0]["text"] == choice["message"]["content"]);

  ask["stream"] = true;
  const std::vector<json> events = post(port, "/v1/chat/completions", ask).events();
  CHECK(events[0]["object"] == "chat.completion.chunk");
  CHECK(events[0]["choices"][0]["delta"] == json{{"role", "assistant"}, {"content", ""}});
  std::string text;
  json logprobs = json::array();
  for (size_t i = 1; i < events.size(); ++i) {
    const json& part = events[i]["choices"][0];
    text += part["delta"].value("content", "");
    if (!part["logprobs"].is_null())
      logprobs.insert(logprobs.end(), part["logprobs"]["content"].begin(), part["logprobs"]["content"].end());
  }
  CHECK(text == choice["message"]["content"]);
  CHECK(logprobs == choice["logprobs"]["content"]);
  CHECK(events.back()["choices"][0]["delta"] == json::object());
  CHECK(events.back()["choices"][0]["finish_reason"] == "length");
  // Without max_tokens an answer goes on to the end of the context.
  ask = {{"messages", {{{"role", "user"}, {"content", ""}}}}, {"logit_bias", {{"33", 100}}}};
  CHECK(post(port, "/v1/chat/completions", ask).json()["choices"][0]["message"]["content"] == std::string(23, '!'));
}

TEST_CASE("serve: what cannot be done is an error in the API's form") {
  const int port = shared_port();
  if (!port) return;
  const std::string path = "/v1/completions";
  check_api_error(request(port, "POST", path, "{\"prompt\": "), 400, "", "not JSON");
  check_api_error(request(port, "POST", path, ""), 400, "", "no body");
  check_api_error(request(port, "POST", path, "{\"a\":" + std::string(1 << 20, '[')), 400, "", "nested too deeply");
  check_api_error(post(port, path, {{"prompt", "x"}, {"temperature", "hot"}}), 400, "temperature",
                  "temperature must be a number");
  check_api_error(post(port, path, {{"prompt", "x"}, {"model", "large"}}), 404, "model", "only \"small\"");
  check_api_error(post(port, path, {{"prompt", "x"}, {"max_tokens", 32}}), 400, "max_tokens",
                  "the prompt has 1 and max_tokens asks for 32");
  check_api_error(post(port, path, {{"prompt", std::string(33, 'x')}}), 400, "max_tokens", "leaves no place");
  CHECK(post(port, path, {{"prompt", std::string(32, 'x')}, {"max_tokens", 0}, {"echo", true}}).status == 200);
  CHECK(post(port, path, {{"prompt", "x"}, {"max_tokens", 31}}).status == 200);
  check_api_error(post(port, path, {{"prompt", {100000}}}), 400, "prompt", "made of token ids from 0 to");
  check_api_error(post(port, "/v1/chat/completions", {{"messages", {{{"role", "user"}}}}}), 400, "messages[0].content",
                  "must be a text");
  check_api_error(request(port, "POST", path, std::string(17 << 20, ' ')), 413, "", "too large");
}
