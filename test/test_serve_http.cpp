// The server as its clients see it: a process of its own with a small model, asked over sockets.
#include <doctest/doctest.h>

#include <signal.h>

#include <chrono>
#include <set>
#include <thread>

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

std::string metric(int port, const std::string& name) {
  const std::string text = "\n" + get(port, "/metrics").body;
  const size_t at = text.find("\ntrain_gpt_" + name + " ");
  REQUIRE(at != text.npos);
  const size_t begin = text.find(' ', at) + 1;
  return text.substr(begin, text.find('\n', begin) - begin);
}

// Waits for a metric to have a value.
bool becomes(int port, const std::string& name, const std::string& value) {
  for (int tries = 0; tries < 500; ++tries) {
    if (metric(port, name) == value) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

void check_api_error(const HttpAnswer& answer, int status, const std::string& param, const std::string& part) {
  CAPTURE(answer.body);
  CHECK(answer.status == status);
  CHECK(has(answer.head, "Content-Type: application/json"));
  const json error = answer.json().at("error");
  for (const char* key : {"message", "type", "param", "code"}) CHECK(error.contains(key));
  CHECK(error["param"] == (param.empty() ? json() : json(param)));
  CHECK(has(error["message"], part));
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

TEST_CASE("serve: broken clients hurt nobody else") {
  const int port = shared_port();
  if (!port) return;
  const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: here\r\n";
  const auto send = [&](const std::string& bytes) {
    const Socket socket(port);
    socket.send(bytes);
    return parse_answer(socket.receive_all());
  };
  check_api_error(send("nonsense\r\n\r\n"), 400, "", "no HTTP request");
  check_api_error(send("GET /" + std::string(9000, 'x') + " HTTP/1.1\r\n\r\n"), 414, "", "address is too long");
  check_api_error(send("GET / HTTP/1.1\r\nX: " + std::string(10 << 20, 'x') + "\r\n\r\n"), 431, "",
                  "header is too large");
  std::string lines;
  for (int i = 0; i < 100'000; ++i) lines += "X-" + std::to_string(i) + ": y\r\n";
  check_api_error(send("GET / HTTP/1.1\r\n" + lines + "\r\n"), 431, "", "header is too large");
  check_api_error(send(head + "Content-Length: 99999999999999999999\r\n\r\n"), 413, "", "too large");
  check_api_error(send(head + "Content-Length: x\r\n\r\n"), 400, "", "no number");
  check_api_error(send(head + "Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"), 415, "", "Content-Encoding");
  check_api_error(send(head + "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1\r\n\r\nx"), 415, "",
                  "multipart");
  std::string chunks;
  for (int i = 0; i < 17; ++i) chunks += "100000\r\n" + std::string(1 << 20, ' ') + "\r\n";
  check_api_error(send(head + "Transfer-Encoding: chunked\r\n\r\n" + chunks + "0\r\n\r\n"), 413, "", "too large");
  // Chunks of a size that is allowed, and two requests on one connection.
  const std::string small = "4\r\n{\"pr\r\n";
  const std::string rest = "ompt\":\"x\",\"max_tokens\":1}";
  CHECK(
      send(head + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + small + "19\r\n" + rest + "\r\n0\r\n\r\n")
          .status == 200);
  {
    const Socket socket(port);
    socket.send("GET /health HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
    const std::string both = socket.receive_all();
    CHECK(both.find("{\"status\":\"ok\"}") != both.rfind("{\"status\":\"ok\"}"));
  }
  // A text cut inside a character arrives in two packets.
  {
    const Socket socket(port);
    const std::string body = "{\"prompt\":\"\u00e9\",\"max_tokens\":0,\"echo\":true}";
    socket.send(head + "Connection: close\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
                body.substr(0, 12));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    socket.send(body.substr(12));
    CHECK(parse_answer(socket.receive_all()).json()["choices"][0]["text"] == "\u00e9");
  }
  // Half-open connections: nothing, a part of a header, a part of a body.
  std::vector<std::unique_ptr<Socket>> open;
  for (int i = 0; i < 30; ++i) {
    open.push_back(std::make_unique<Socket>(port));
    if (i % 3 == 1) open.back()->send("POST /v1/comp");
    if (i % 3 == 2) open.back()->send(head + "Content-Length: 100\r\n\r\n{");
  }
  CHECK(get(port, "/health").status == 200);
}

TEST_CASE("serve: a client that goes away ends its request and no other") {
  const Server server(trained().run_path, {"--max-batch", "1"});
  if (!server.port) return;
  const int port = server.port;
  const std::string body = R"({"prompt": "a", "max_tokens": 31, "n": 100, "stream": true})";
  const std::string ask =
      "POST /v1/completions HTTP/1.1\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  {
    const Socket leaves(port);
    leaves.send(ask);
    CHECK(has(leaves.receive(), "HTTP/1.1 200 OK"));
  }
  CHECK(post(port, "/v1/completions", {{"prompt", "a"}, {"max_tokens", 3}}).status == 200);
  CHECK(becomes(port, "requests_total{how=\"cancelled\"}", "1"));
  CHECK(becomes(port, "blocks_used", "0"));
  CHECK(metric(port, "sequences_waiting") == "0");
  CHECK(std::stoi(metric(port, "generated_tokens_total")) < 3000);
}

TEST_CASE("serve: a full queue, too many connections, an API key") {
  const Server server(trained().run_path, {"--max-batch", "1", "--max-queue", "2", "--max-connections", "8",
                                           "--api-key", "secret", "--cors", ""});
  if (!server.port) return;
  const int port = server.port;
  const std::string key = "Authorization: Bearer secret\r\n";
  const HttpAnswer refused = get(port, "/v1/models");
  check_api_error(refused, 401, "", "asks for its API key");
  CHECK(has(refused.head, "WWW-Authenticate: Bearer\r\n"));
  CHECK(!has(refused.head, "Access-Control"));
  check_api_error(get(port, "/v1/models", "Authorization: Bearer secre\r\n"), 401, "", "key");
  check_api_error(get(port, "/metrics"), 401, "", "key");
  CHECK(get(port, "/v1/models", key).status == 200);
  CHECK(get(port, "/health").status == 200);
  CHECK(get(port, "/").status == 200);

  const std::string body = R"({"prompt": "a", "max_tokens": 31, "n": 100, "stream": true})";
  const Socket busy(port);
  busy.send("POST /v1/completions HTTP/1.1\r\n" + key + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
            body);
  CHECK(has(busy.receive(), "HTTP/1.1 200 OK"));
  const HttpAnswer full = request(port, "POST", "/v1/completions", R"({"prompt": "a"})", key);
  check_api_error(full, 429, "", "queue is full");
  CHECK(has(full.head, "Retry-After: 1\r\n"));

  std::vector<std::unique_ptr<Socket>> open;
  for (int i = 0; i < 8; ++i) open.push_back(std::make_unique<Socket>(port));
  check_api_error(get(port, "/health"), 503, "", "too many connections");
}

TEST_CASE("serve: SIGTERM lets running requests end, and takes no new ones") {
  Server server(trained().run_path, {"--max-batch", "2"});
  if (!server.port) return;
  const std::string body = R"({"prompt": "a", "max_tokens": 31, "n": 100, "stream": true})";
  const Socket running(server.port);
  running.send("POST /v1/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: " + std::to_string(body.size()) +
               "\r\n\r\n" + body);
  std::string stream = running.receive();
  server.process.kill(SIGTERM);
  while (get(server.port, "/health").status == 200) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  check_api_error(get(server.port, "/health"), 503, "", "shuts down");
  check_api_error(post(server.port, "/v1/completions", {{"prompt", "x"}}), 503, "", "shuts down");
  stream += running.receive_all();
  std::set<size_t> ended;
  for (const json& event : parse_answer(stream).events())
    if (!event["choices"][0]["finish_reason"].is_null()) ended.insert(event["choices"][0]["index"].get<size_t>());
  CHECK(ended.size() == 100);
  CHECK(server.process.wait().status == 0);
}

TEST_CASE("serve: what is wrong with its command line") {
  const int port = shared_port();
  if (!port) return;
  const Folder folder;
  const std::string run = trained().run_path;
  check_error(folder, {"serve", run, "--port", std::to_string(port)}, 1,
              "is taken by another program; --port 0 takes one that is free");
  check_error(folder, {"serve", run, "--port", "99999"}, 2, "--port");
  check_error(folder, {"serve", run, "--port", "0", "--host", "203.0.113.1"}, 1,
              "--host takes an address of this machine");
  check_error(folder, {"serve", run, "--port", "0", "--memory-budget", "1KiB"}, 1,
              "--memory-budget 1.00 KiB is not enough");
  check_error(folder, {"serve", run, "--port", "0", "--chat-template", folder / "none"}, 1, "none");
  llm::write_file_atomically(folder / "bad", "{% include 'x' %}");
  check_error(folder, {"serve", run, "--port", "0", "--chat-template", folder / "bad"}, 1,
              "the tag {% include %} is not among");
}
