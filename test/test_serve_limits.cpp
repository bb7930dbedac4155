// The server among clients that are many, slow, silent, broken or gone, and when it is told to end.
#include <doctest/doctest.h>

#include <signal.h>

#include <chrono>
#include <memory>
#include <set>
#include <thread>

#include "llm/base/atomic_file.h"
#include "test/http_client.h"

using namespace test;
using nlohmann::json;

namespace {

std::string metric(int port, const std::string& name) {
  const std::string text = "\n" + get(port, "/metrics").body;
  const size_t at = text.find("\ntrain_gpt_" + name + " ");
  REQUIRE(at != text.npos);
  const size_t begin = text.find(' ', at) + 1;
  return text.substr(begin, text.find('\n', begin) - begin);
}

// Waits for a metric to have a value.
bool becomes(int port, const std::string& name, const std::string& value) {
  for (int tries = 0; tries < 6000; ++tries) {
    if (metric(port, name) == value) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

}  // namespace

TEST_CASE("serve: broken clients hurt nobody else") {
  const Server server(trained().run_path);
  if (!server.port) return;
  const int port = server.port;
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

TEST_CASE("serve: clients that are too slow are given up") {
  const Server server(trained().run_path, {"--timeout", "1", "--max-queue", "10000"});
  if (!server.port) return;
  const int port = server.port;
  const Socket silent(port), half(port), reads_nothing(port, 4096);
  half.send("POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{");
  // About 20 MB, more than the server's buffer of a socket holds.
  std::string prompts;
  for (int i = 0; i < 8; ++i) prompts += std::string(i ? "," : "") + "\"a\"";
  const std::string body =
      "{\"prompt\": [" + prompts + "], \"max_tokens\": 31, \"n\": 128, \"logprobs\": 20, \"stream\": true}";
  reads_nothing.send("POST /v1/completions HTTP/1.1\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
                     body);
  CHECK(get(port, "/health").status == 200);
  CHECK(silent.receive_all(30) == "");
  check_api_error(parse_answer(half.receive_all(30)), 408, "", "too slowly");
  // Its tokens are made, or given up; what is left of them waits a second for a reader.
  CHECK(becomes(port, "sequences_waiting", "0"));
  CHECK(becomes(port, "blocks_used", "0"));
  std::this_thread::sleep_for(std::chrono::milliseconds(3000));
  CHECK(!has(reads_nothing.receive_all(), "[DONE]"));
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
  const Server server(trained().run_path);
  if (!server.port) return;
  const int port = server.port;
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
