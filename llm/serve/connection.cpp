#include "llm/serve/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace llm {

using std::chrono::milliseconds;

Connection::Connection(int socket, const HttpLimits& limits) : socket_(socket), limits_(limits) {
  const int on = 1;
  ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // tokens are small pieces that cannot wait
}

Connection::~Connection() {
  ::shutdown(socket_, SHUT_RDWR);
  ::close(socket_);
}

bool Connection::wait(bool to_write, milliseconds timeout) const {
  pollfd poll = {socket_, static_cast<short>(to_write ? POLLOUT : POLLIN), 0};
  return ::poll(&poll, 1, static_cast<int>(std::max<long>(0, timeout.count()))) > 0;
}

bool Connection::fill_for_request() {
  in_body_ = false;
  left_ = limits_.header_bytes;
  deadline_ = Clock::now() + limits_.patience;
  trouble_ = Trouble::none;
  return begin_ < end_ || fill() > 0;
}

void Connection::begin_body() {
  in_body_ = true;
  // A body in chunks has some bytes more, which count as well.
  left_ = limits_.body_bytes;
  deadline_ = Clock::now() + limits_.patience;
}

long Connection::fill() {
  for (;;) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline_ - Clock::now());
    if (left.count() <= 0 || !wait(false, left)) {
      if (Clock::now() >= deadline_) return trouble_ = Trouble::too_slow, -1;
      continue;
    }
    const ssize_t got = ::recv(socket_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got <= 0) return trouble_ = Trouble::closed, got;
    begin_ = 0, end_ = static_cast<size_t>(got);
    return got;
  }
}

long Connection::read(char* bytes, size_t size) {
  if (left_ == 0) return trouble_ = in_body_ ? Trouble::body_too_large : Trouble::header_too_large, -1;
  if (begin_ == end_) {
    const long got = fill();
    if (got <= 0) return got;
  }
  const size_t count = std::min({size, end_ - begin_, left_});
  std::memcpy(bytes, buffer_.data() + begin_, count);
  begin_ += count;
  left_ -= count;
  return static_cast<long>(count);
}

long Connection::write(const char* bytes, size_t size) {
  for (;;) {
    const ssize_t sent = ::send(socket_, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return sent;
    if (errno == EINTR) continue;
    if (errno != EAGAIN || !wait(true, limits_.patience)) return -1;
  }
}

bool Connection::is_open() const {
  if (begin_ < end_) return true;  // more requests are there already
  char byte = 0;
  const ssize_t got = ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

void Connection::linger() {
  ::shutdown(socket_, SHUT_WR);
  const auto end = Clock::now() + milliseconds(1000);
  size_t most = 32 << 20;
  while (most > 0 && Clock::now() < end && wait(false, milliseconds(200))) {
    const ssize_t got = ::recv(socket_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (got <= 0 && errno != EINTR) break;
    most -= std::min(most, static_cast<size_t>(std::max<ssize_t>(0, got)));
  }
}

}  // namespace llm
