// A small HTTP client over a socket, which can also do what no good client does: send half a request, go away, not read.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "test/command_line.h"

namespace test {

class Socket {
 public:
  // `room`: bytes that may come without being received; 0: as the system has it.
  explicit Socket(int port, int room = 0);
  ~Socket();
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  bool send(std::string_view bytes) const;  // all of them; false: the other side has closed
  // Some bytes; empty: the other side has closed, or nothing came within `seconds`.
  std::string receive(double seconds = 10) const;
  std::string receive_all(double seconds = 10) const;  // to the end of the connection

 private:
  int socket_;
};

struct HttpAnswer {
  int status = 0;
  std::string head, body;  // the body without its chunks' sizes
  nlohmann::json json() const { return nlohmann::json::parse(body); }
  // The JSON of the events of a stream, without "[DONE]", which must be the last one.
  std::vector<nlohmann::json> events() const;
};
HttpAnswer parse_answer(const std::string& bytes);

// One request on a connection of its own.
HttpAnswer request(int port, const std::string& method, const std::string& path, const std::string& body = "",
                   const std::string& headers = "");
inline HttpAnswer get(int port, const std::string& path, const std::string& headers = "") {
  return request(port, "GET", path, "", headers);
}
inline HttpAnswer post(int port, const std::string& path, const nlohmann::json& body) {
  return request(port, "POST", path, body.dump());
}

// Checks that the answer is an error in the form of OpenAI's API: its status, its field (empty: none), a part of its message.
void check_api_error(const HttpAnswer& answer, int status, const std::string& param, const std::string& part);

// A running `train_gpt serve` at a port that was free.
struct Server {
  explicit Server(const std::string& model, const Arguments& more = {});
  Folder folder;
  Process process;
  int port = 0;  // 0: the program was built without what it needs for it, which a MESSAGE says
};

}  // namespace test
