#include "llm/cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace llm {
namespace {

constexpr auto kRedrawEvery = std::chrono::milliseconds(100);
constexpr int kBarWidth = 24;
constexpr char kClearLine[] = "\r\033[K";

double in_megabytes(int64_t bytes) { return static_cast<double>(bytes) * 1e-6; }

}  // namespace

Progress::Progress(std::string label)
    : label_(std::move(label)), terminal_(::isatty(STDERR_FILENO) == 1), begin_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  if (shown_) std::fputs(kClearLine, stderr);
}

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
}

void Progress::update(int64_t done, int64_t total) {
  total_ = total;
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || total <= 0 || now - drawn_ < kRedrawEvery) return;
  drawn_ = now;
  shown_ = true;
  const double share = static_cast<double>(done) / static_cast<double>(total);
  const int filled = static_cast<int>(share * kBarWidth);
  const std::string bar =
      std::string(static_cast<size_t>(filled), '#') + std::string(static_cast<size_t>(kBarWidth - filled), '.');
  const double rate = in_megabytes(done) / std::max(seconds(), 1e-9);
  const int left = rate > 0 ? static_cast<int>(in_megabytes(total - done) / rate + 0.5) : 0;
  std::fprintf(stderr, "%s%s [%s] %3.0f%%  %.1f of %.1f MB  %.0f MB/s  %d:%02d left", kClearLine, label_.c_str(),
               bar.c_str(), share * 100, in_megabytes(done), in_megabytes(total), rate, left / 60, left % 60);
  std::fflush(stderr);
}

void Progress::finish() {
  const double elapsed = seconds();
  std::fprintf(stderr, "%s%s: %.1f MB in %.2f s, %.0f MB/s\n", std::exchange(shown_, false) ? kClearLine : "",
               label_.c_str(), in_megabytes(total_), elapsed, in_megabytes(total_) / std::max(elapsed, 1e-9));
}

ProgressLine::ProgressLine() : terminal_(::isatty(STDERR_FILENO) != 0) {}

void ProgressLine::show(const std::string& line, bool last) {
  const auto now = std::chrono::steady_clock::now();
  const auto interval = terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(10);
  if (!last && now - shown_ < interval) return;
  shown_ = now;
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s%s", line.c_str(), last ? "\n" : "");
    drawn_ = !last;
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

void ProgressLine::clear() {
  if (terminal_ && drawn_) std::fprintf(stderr, "\r\033[K");
  drawn_ = false;
}

size_t terminal_columns() {
  if (const char* columns = std::getenv("COLUMNS"); columns && std::atoi(columns) > 0)
    return static_cast<size_t>(std::atoi(columns));
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

std::string format_seconds(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  char text[32];
  if (s >= 3600) {
    std::snprintf(text, sizeof text, "%d:%02d:%02d", static_cast<int>(s / 3600), static_cast<int>(s / 60 % 60),
                  static_cast<int>(s % 60));
  } else {
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(s / 60), static_cast<int>(s % 60));
  }
  return text;
}

std::string format_count(double count) {
  const char* unit = "";
  for (const char* next : {"k", "M", "B"})
    if (count >= 999.5) count /= 1000, unit = next;  // which three digits would show as 1e+03
  char text[32];
  std::snprintf(text, sizeof text, *unit ? "%.3g%s" : "%.0f%s", count, unit);
  return text;
}

}  // namespace llm
