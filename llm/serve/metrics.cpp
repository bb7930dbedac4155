#include "llm/serve/metrics.h"

#include <charconv>
#include <string_view>

namespace llm {
namespace {

std::string number_text(double number) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, number).ptr};
}

void append_head(std::string& text, const char* name, const char* kind, const char* help) {
  text += std::string("# HELP train_gpt_") + name + " " + help + "\n# TYPE train_gpt_" + name + " " + kind + "\n";
}

void append_value(std::string& text, const char* name, const char* kind, const char* help, double value) {
  append_head(text, name, kind, help);
  text += std::string("train_gpt_") + name + " " + number_text(value) + "\n";
}

}  // namespace

void Histogram::add(double seconds) {
  ++count_;
  sum_ += seconds;
  for (size_t i = 0; i < kBounds.size(); ++i)
    if (seconds <= kBounds[i]) ++counts_[i];
}

void Histogram::append_to(std::string& text, const char* name, const char* help) const {
  append_head(text, name, "histogram", help);
  const std::string begin = std::string("train_gpt_") + name;
  for (size_t i = 0; i < kBounds.size(); ++i)
    text += begin + "_bucket{le=\"" + number_text(kBounds[i]) + "\"} " + std::to_string(counts_[i]) + "\n";
  text += begin + "_bucket{le=\"+Inf\"} " + std::to_string(count_) + "\n";
  text += begin + "_sum " + number_text(sum_) + "\n" + begin + "_count " + std::to_string(count_) + "\n";
}

void Metrics::first_token_after(double seconds) {
  const std::lock_guard lock(mutex_);
  first_token_.add(seconds);
}

void Metrics::token_every(double seconds) {
  const std::lock_guard lock(mutex_);
  per_token_.add(seconds);
}

void Metrics::request_ended(const char* how, double seconds) {
  const std::lock_guard lock(mutex_);
  whole_.add(seconds);
  for (Ended& ended : ended_)
    if (std::string_view(how) == ended.how) ++ended.requests;
}

std::string Metrics::text(const EngineStatistics& engine) const {
  std::string text;
  const auto gauge = [&](const char* name, const char* help, double value) {
    append_value(text, name, "gauge", help, value);
  };
  const auto counter = [&](const char* name, const char* help, double value) {
    append_value(text, name, "counter", help, value);
  };
  gauge("sequences_running", "Sequences that have blocks of keys and values.", static_cast<double>(engine.running));
  gauge("sequences_waiting", "Sequences in the queue.", static_cast<double>(engine.waiting));
  gauge("blocks_used", "Blocks of keys and values that running sequences hold.",
        static_cast<double>(engine.blocks_used));
  gauge("blocks_cached", "Blocks kept for prompts that begin with their tokens.",
        static_cast<double>(engine.blocks_cached));
  gauge("blocks_total", "Blocks of keys and values.", static_cast<double>(engine.blocks_total));
  counter("prompt_tokens_total", "Tokens of prompts.", static_cast<double>(engine.prompt_tokens));
  counter("cached_prompt_tokens_total", "Tokens of prompts that were cached.",
          static_cast<double>(engine.cached_tokens));
  counter("generated_tokens_total", "New tokens.", static_cast<double>(engine.new_tokens));
  counter("steps_total", "Steps of the engine.", static_cast<double>(engine.steps));
  counter("preemptions_total", "Sequences that gave back their blocks for others.",
          static_cast<double>(engine.preemptions));
  counter("step_seconds_total", "Time in steps.", engine.seconds);
  counter("engine_seconds_total", "Time in steps outside the model.", engine.own_seconds);
  const std::lock_guard lock(mutex_);
  append_head(text, "requests_total", "counter", "Requests that have ended, by how they did.");
  for (const Ended& ended : ended_)
    text += std::string("train_gpt_requests_total{how=\"") + ended.how + "\"} " + std::to_string(ended.requests) + "\n";
  first_token_.append_to(text, "time_to_first_token_seconds", "From a request's arrival to its first token.");
  per_token_.append_to(text, "time_per_output_token_seconds", "From token to token, the mean of a text.");
  whole_.append_to(text, "request_seconds", "From a request's arrival to its end.");
  return text;
}

}  // namespace llm
