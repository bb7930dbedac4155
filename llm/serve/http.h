// HTTP as the rest of this room sees it: a request, and a response that is whole or comes piece by piece. http.cpp alone
// includes the library for it, cpp-httplib, and sees to what comes from the network: how large, how slow, how many.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace llm {

struct HttpRequest {
  std::string method, path, body;
  std::string authorization, origin;  // headers
  std::function<bool()> gone;         // whether the client has closed the connection
};

struct HttpResponse {
  int status = 200;
  std::string type = "application/json", body;
  std::vector<std::pair<std::string, std::string>> headers = {};
  // Instead of `body`: called once, hands pieces on by `write`, which is false when the client is gone. An exception that
  // leaves it breaks the connection.
  using Write = std::function<bool(const std::string&)>;
  std::function<void(const Write& write)> stream = {};
};

struct HttpLimits {
  size_t header_bytes = 32 << 10;  // request line and headers together
  size_t body_bytes = 4 << 20;     // its JSON may take a hundred times as much for a moment
  int connections = 256;           // at once; more are answered with 503
  // What a client may take to send a header or a body, to read something, and from a request to the next.
  std::chrono::milliseconds patience{30'000};
};

using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;
// What a client is told that the handler never sees: a body as JSON for the status.
using HttpRefusal = std::function<std::string(int status, const std::string& message)>;

class HttpServer {
 public:
  // Begins to listen; port 0 is one that is free. `handler` is called by many threads at once. Throws Error where the
  // port is taken or the address is not this machine's, and where this program was built without cpp-httplib.
  HttpServer(const std::string& host, int port, const HttpLimits& limits, HttpHandler handler, HttpRefusal refusal);
  ~HttpServer();
  int port() const;
  // Answers requests until stop(), and returns when the last one is answered.
  void run();
  void stop();

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace llm
