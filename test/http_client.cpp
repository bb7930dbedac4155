#include "test/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "llm/base/atomic_file.h"

namespace test {

Socket::Socket(int port, int room) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
  if (room > 0) REQUIRE(::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &room, sizeof room) == 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET, address.sin_port = htons(static_cast<uint16_t>(port));
  ::inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  REQUIRE(::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
}

Socket::~Socket() { ::close(socket_); }

bool Socket::send(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

std::string Socket::receive(double seconds) const {
  pollfd poll = {socket_, POLLIN, 0};
  if (::poll(&poll, 1, static_cast<int>(seconds * 1000)) <= 0) return "";
  char bytes[1 << 14];
  const ssize_t got = ::recv(socket_, bytes, sizeof bytes, 0);
  return got > 0 ? std::string(bytes, static_cast<size_t>(got)) : "";
}

std::string Socket::receive_all(double seconds) const {
  std::string all;
  for (std::string more; !(more = receive(seconds)).empty();) all += more;
  return all;
}

HttpAnswer parse_answer(const std::string& bytes) {
  HttpAnswer answer;
  const size_t end = bytes.find("\r\n\r\n");
  if (end == bytes.npos || !bytes.starts_with("HTTP/1.1 ")) return answer;
  answer.status = std::stoi(bytes.substr(9, 3));
  answer.head = bytes.substr(0, end + 2);
  std::string rest = bytes.substr(end + 4);
  if (!has(answer.head, "Transfer-Encoding: chunked")) return answer.body = rest, answer;
  while (!rest.empty()) {
    const size_t line = rest.find("\r\n");
    const size_t size = std::stoul(rest.substr(0, line), nullptr, 16);
    answer.body += rest.substr(line + 2, size);
    if (size == 0) break;
    rest.erase(0, line + 2 + size + 2);
  }
  return answer;
}

std::vector<nlohmann::json> HttpAnswer::events() const {
  std::vector<nlohmann::json> all;
  bool done = false;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    REQUIRE(end != body.npos);
    const std::string event = body.substr(at, end - at);
    at = end + 2;
    REQUIRE(event.starts_with("data: "));
    CHECK(!done);
    if (event == "data: [DONE]")
      done = true;
    else
      all.push_back(nlohmann::json::parse(event.substr(6)));
  }
  CHECK(done);
  return all;
}

HttpAnswer request(int port, const std::string& method, const std::string& path, const std::string& body,
                   const std::string& headers) {
  const Socket socket(port);
  const std::string length =
      body.empty() && method != "POST" ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n";
  CHECK(socket.send(method + " " + path + " HTTP/1.1\r\nHost: here\r\nConnection: close\r\n" + length + headers +
                    "\r\n" + body));
  return parse_answer(socket.receive_all());
}

void check_api_error(const HttpAnswer& answer, int status, const std::string& param, const std::string& part) {
  CAPTURE(answer.body);
  CHECK(answer.status == status);
  CHECK(has(answer.head, "Content-Type: application/json"));
  const nlohmann::json error = answer.json().at("error");
  for (const char* key : {"message", "type", "param", "code"}) CHECK(error.contains(key));
  CHECK(error["param"] == (param.empty() ? nlohmann::json() : nlohmann::json(param)));
  CHECK(has(error["message"], part));
}

namespace {
Arguments serve_arguments(const std::string& model, const Arguments& more) {
  Arguments arguments = {"serve", model, "--port", "0", "--device", "cpu"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}
}  // namespace

Server::Server(const std::string& model, const Arguments& more) : process(folder, serve_arguments(model, more)) {
  for (int tries = 0; tries < 6000; ++tries) {
    const std::string line = std::filesystem::exists(folder / "stdout") ? llm::read_file(folder / "stdout") : "";
    if (line.ends_with('\n')) {
      port = std::stoi(line.substr(line.rfind(':') + 1));
      return;
    }
    if (!process.is_running()) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const std::string error = llm::read_file(folder / "stderr");
  REQUIRE_MESSAGE(has(error, "built without cpp-httplib"), error);
  MESSAGE("built without cpp-httplib: the server is not tested");
}

}  // namespace test
