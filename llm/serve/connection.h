// A client's socket, with what it may cost: how many bytes a header and a body may have, and how long they may take.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <string>

#include "llm/serve/http.h"

namespace llm {

class Connection {
 public:
  Connection(int socket, const HttpLimits& limits);
  ~Connection();  // closes it
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  enum class Trouble { none, header_too_large, body_too_large, too_slow, closed };
  // Why there was nothing more to read.
  Trouble trouble() const { return trouble_; }

  // Waits for the first byte of a request; false where none comes in time, or `stop` says so, which is asked now and then.
  template <class Stop>
  bool wait_for_request(Stop&& stop) {
    const auto end = Clock::now() + limits_.patience;
    while (!stop() && Clock::now() < end) {
      if (begin_ < end_ || wait(false, std::chrono::milliseconds(50))) return fill_for_request();
    }
    return false;
  }
  // The header ends here; what comes is the body.
  void begin_body();

  // As read(2) and write(2): 0 or less where there is no more.
  long read(char* bytes, size_t size);
  long write(const char* bytes, size_t size);
  bool is_open() const;  // whether the client still listens
  int socket() const { return socket_; }
  // Takes what the client still sends for a moment, so that it reads our answer before it learns that we closed.
  void linger();

 private:
  using Clock = std::chrono::steady_clock;
  bool wait(bool to_write, std::chrono::milliseconds timeout) const;
  bool fill_for_request();
  long fill();

  const int socket_;
  const HttpLimits& limits_;
  std::array<char, 1 << 14> buffer_;
  size_t begin_ = 0, end_ = 0;  // what of the buffer is not read yet
  size_t left_ = 0;             // bytes that header or body may still have
  bool in_body_ = false;
  Clock::time_point deadline_;
  Trouble trouble_ = Trouble::none;
};

}  // namespace llm
