#include "llm/serve/http.h"

#include "llm/base/error.h"

#if __has_include(<httplib.h>) && !defined(TRAIN_GPT_WITHOUT_HTTP)
#include <httplib.h>
#include <netdb.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "llm/serve/connection.h"

#if defined(__SANITIZE_THREAD__)
// The library is not compiled for ThreadSanitizer, which so misses how it guards its static variables.
extern "C" const char* __tsan_default_suppressions() { return "called_from_lib:libcpp-httplib.so\n"; }
#endif

namespace llm {
namespace {

// A connection as the library reads and writes it.
class ConnectionStream : public httplib::Stream {
 public:
  explicit ConnectionStream(Connection& connection) : connection_(connection) {}
  bool is_readable() const override { return true; }
  bool is_writable() const override { return connection_.is_open(); }
  // Newer versions of the library have these as well.
  void get_local_ip_and_port(std::string&, int&) const {}
  bool wait_readable() const { return true; }
  bool wait_writable() const { return connection_.is_open(); }
  ssize_t read(char* bytes, size_t size) override { return connection_.read(bytes, size); }
  // What the library says of a request that could not be read to its end is not what the client should hear.
  ssize_t write(const char* bytes, size_t size) override {
    return connection_.trouble() == Connection::Trouble::none ? connection_.write(bytes, size)
                                                              : static_cast<ssize_t>(size);
  }
  void get_remote_ip_and_port(std::string&, int&) const override {}
  // The library compares it with what select(2) can take, which is not used here.
  socket_t socket() const override { return 0; }
  time_t duration() const { return 0; }

 private:
  Connection& connection_;
};

// A thread for each connection, up to a number of them.
class ThreadPerConnection : public httplib::TaskQueue {
 public:
  using Enqueued = decltype(std::declval<httplib::TaskQueue&>().enqueue(nullptr));

  // `crowded` is set while a connection is to be turned away, which the caller's thread does.
  ThreadPerConnection(int most, std::atomic<bool>& crowded) : most_(most), crowded_(crowded) {}

  Enqueued enqueue(std::function<void()> serve) override {
    bool started = false;
    {
      const std::lock_guard lock(mutex_);
      if (running_ < most_) started = true, ++running_;
    }
    if (started) try {
        std::thread([this, serve] {
          serve();
          const std::lock_guard lock(mutex_);
          --running_;
          ended_.notify_all();
        }).detach();
      } catch (const std::system_error&) {
        started = false;
        const std::lock_guard lock(mutex_);
        --running_;
      }
    if (!started) {
      crowded_ = true;
      serve();
      crowded_ = false;
    }
    return Enqueued(true);
  }

  void shutdown() override {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  const int most_;
  std::atomic<bool>& crowded_;
  std::mutex mutex_;
  std::condition_variable ended_;
  int running_ = 0;
};

// What setup_request() throws for a request that is not read any further.
struct Refused {
  int status;
  const char* message;
};

}  // namespace

struct HttpServer::Implementation : httplib::Server {
  Implementation(const HttpLimits& limits_of_all, HttpHandler to_call, HttpRefusal to_refuse)
      : limits(limits_of_all), handler(std::move(to_call)), refusal(std::move(to_refuse)) {
    new_task_queue = [this] { return new ThreadPerConnection(limits.connections, crowded); };
    // The library's own default lets another process take the same port.
    set_socket_options([this](auto socket) {
      listening = socket;
      const int on = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    });
    set_payload_max_length(limits.body_bytes);
    // Only what the Keep-Alive header says: connections are kept here.
    set_keep_alive_timeout(std::chrono::duration_cast<std::chrono::seconds>(limits.patience).count());
    set_keep_alive_max_count(1'000'000);
    const auto answer = [this](const httplib::Request& request, httplib::Response& response) {
      serve(request, response);
    };
    const char* const everything = "/.*";  // what is where, the handler knows
    Get(everything, answer);
    Post(everything, httplib::Server::Handler(answer));
    Put(everything, httplib::Server::Handler(answer));
    Patch(everything, httplib::Server::Handler(answer));
    Delete(everything, httplib::Server::Handler(answer));
    Options(everything, answer);
    set_error_handler([this](const httplib::Request&, httplib::Response& response) {
      if (response.body.empty() && !response.has_header("Content-Type"))
        response.set_content(refusal(response.status, message_of(response.status)), "application/json");
    });
    set_exception_handler([this](const httplib::Request&, httplib::Response& response, const auto&...) {
      response.status = 500;
      response.set_content(refusal(500, "the server failed"), "application/json");
    });
  }

  static const char* message_of(int status) {
    return status == 413   ? "the body is too large"
           : status == 414 ? "the address is too long"
           : status == 404 ? "there is nothing of this name here"
                           : "this is no HTTP request that can be read";
  }

  void serve(const httplib::Request& from, httplib::Response& to) {
    Connection* connection = nullptr;
    {
      const std::lock_guard lock(mutex);
      connection = connections.at(std::this_thread::get_id());
    }
    HttpRequest request;
    request.method = from.method, request.path = from.path, request.body = from.body;
    request.authorization = from.get_header_value("Authorization"), request.origin = from.get_header_value("Origin");
    request.gone = [connection] { return !connection->is_open(); };
    HttpResponse response = handler(request);
    to.status = response.status;
    for (const auto& [name, value] : response.headers) to.set_header(name.c_str(), value);
    if (!response.stream) return to.set_content(response.body, response.type.c_str());
    to.set_chunked_content_provider(
        response.type.c_str(), [stream = std::move(response.stream)](size_t, httplib::DataSink& sink) {
          try {
            stream([&](const std::string& piece) { return sink.write(piece.data(), piece.size()); });
          } catch (const std::exception&) {
            return false;
          }
          sink.done();
          return true;
        });
  }

  bool process(ConnectionStream& stream, Connection& connection, bool last, bool& closed) {
    bool has_header = false;
    const auto setup = [&](httplib::Request& request) {
      has_header = true;
      connection.begin_body();
      // Bodies are not unpacked, whose size would be unlimited; answers are not packed, which would hold tokens back.
      const std::string encoding = request.get_header_value("Content-Encoding");
      if (!encoding.empty() && encoding != "identity")
        throw Refused{415, "the body has a Content-Encoding; send it as it is"};
      if (request.get_header_value("Content-Type").starts_with("multipart/"))
        throw Refused{415, "the body is multipart; send JSON"};
      // Of a header with a length that is too large nothing is read.
      if (request.get_header_value("Content-Length").size() > 18) throw Refused{413, message_of(413)};
      if (const std::string length = request.get_header_value("Content-Length"); !length.empty()) {
        if (length.find_first_not_of("0123456789") != length.npos) throw Refused{400, "Content-Length is no number"};
        if (std::stoull(length) > limits.body_bytes) throw Refused{413, message_of(413)};
      }
      // Without a length the library would read to the connection's end.
      if (request.method != "GET" && !request.has_header("Content-Length") && !request.has_header("Transfer-Encoding"))
        request.set_header("Content-Length", "0");
      for (const char* name : {"Accept-Encoding", "Range"}) request.headers.erase(name);
      request.ranges.clear();
    };
    // Where a request ends that could not be read, nobody knows.
    return process_by_library(stream, last, closed, setup) && has_header;
  }

  // Versions of the library differ in what they want to know.
  template <class Stream>
  bool process_by_library(Stream& stream, bool last, bool& closed,
                          const std::function<void(httplib::Request&)>& setup) {
    const std::string nowhere;
    if constexpr (requires { process_request(stream, last, closed, setup); })
      return process_request(stream, last, closed, setup);
    else
      return process_request(stream, nowhere, 0, nowhere, 0, last, closed, setup);
  }

  bool process_and_close_socket(socket_t socket) override {
    Connection connection(socket, limits);
    if (crowded && std::this_thread::get_id() == accepting) {
      refuse(connection, 503, "there are too many connections; try again later");
      return false;
    }
    {
      const std::lock_guard lock(mutex);
      connections[std::this_thread::get_id()] = &connection;
    }
    ConnectionStream stream(connection);
    bool go_on = true;
    while (go_on && connection.wait_for_request([&] { return stopping.load(); })) {
      bool closed = false;
      try {
        go_on = process(stream, connection, stopping, closed) && !closed;
      } catch (const Refused& refused) {
        refuse(connection, refused.status, refused.message);
        connection.linger();
        go_on = false;
      } catch (const std::exception&) {
        go_on = false;
      }
      switch (connection.trouble()) {
        case Connection::Trouble::none: continue;
        case Connection::Trouble::closed: break;
        case Connection::Trouble::header_too_large: refuse(connection, 431, "the header is too large"); break;
        case Connection::Trouble::body_too_large: refuse(connection, 413, message_of(413)); break;
        case Connection::Trouble::too_slow: refuse(connection, 408, "the request came too slowly"); break;
      }
      connection.linger();
      break;
    }
    const std::lock_guard lock(mutex);
    connections.erase(std::this_thread::get_id());
    return true;
  }

  void refuse(Connection& connection, int status, const std::string& message) const {
    const std::string body = refusal(status, message);
    const char* reason = status == 503   ? "Service Unavailable"
                         : status == 431 ? "Request Header Fields Too Large"
                         : status == 413 ? "Payload Too Large"
                         : status == 408 ? "Request Timeout"
                                         : "Bad Request";
    const std::string all =
        concat("HTTP/1.1 ", status, " ", reason,
               "\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ", body.size(),
               status == 503 ? "\r\nRetry-After: 1" : "", "\r\n\r\n", body);
    connection.write(all.data(), all.size());
  }

  const HttpLimits limits;
  const HttpHandler handler;
  const HttpRefusal refusal;
  socket_t listening = INVALID_SOCKET;
  int port = 0;
  std::atomic<bool> crowded = false, stopping = false;
  std::thread::id accepting;
  std::mutex mutex;
  std::unordered_map<std::thread::id, Connection*> connections;  // each served by a thread of its own
};

HttpServer::HttpServer(const std::string& host, int port, const HttpLimits& limits, HttpHandler handler,
                       HttpRefusal refusal)
    : implementation_(std::make_unique<Implementation>(limits, std::move(handler), std::move(refusal))) {
  Implementation& server = *implementation_;
  errno = 0;
  const int bound = port == 0                                 ? server.bind_to_any_port(host.c_str())
                    : server.bind_to_port(host.c_str(), port) ? port
                                                              : -1;
  if (bound < 0) {
    const int why = errno;
    if (why == EADDRINUSE)
      fail("port ", port, " of ", host, " is taken by another program; --port 0 takes one that is free");
    if (why == EACCES) fail("port ", port, " of ", host, " is for root alone; take one of 1024 or more");
    fail("cannot listen at port ", port, " of ", host, why ? ": " : "", why ? std::strerror(why) : "",
         "; --host takes an address of this machine");
  }
  server.port = bound;
  // The library's queue of connections that are not accepted yet has 5 places.
  ::listen(server.listening, 512);
}

HttpServer::~HttpServer() = default;

int HttpServer::port() const { return implementation_->port; }

void HttpServer::run() {
  implementation_->accepting = std::this_thread::get_id();
  implementation_->listen_after_bind();
}

void HttpServer::stop() {
  implementation_->stopping = true;
  // The library's stop() does nothing before its loop has begun.
  for (int tries = 0; !implementation_->is_running() && tries < 1000; ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  implementation_->stop();
}

}  // namespace llm

#else

namespace llm {

struct HttpServer::Implementation {};

HttpServer::HttpServer(const std::string&, int, const HttpLimits&, HttpHandler, HttpRefusal) {
  fail(
      "this train_gpt was built without cpp-httplib, so it cannot serve; `make setup` installs it (Debian's "
      "libcpp-httplib-dev), `make` then builds it in");
}
HttpServer::~HttpServer() = default;
int HttpServer::port() const { return 0; }
void HttpServer::run() {}
void HttpServer::stop() {}

}  // namespace llm
#endif
