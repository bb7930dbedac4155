// train_gpt serve: a trained model behind OpenAI's API.
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/base/rounding.h"
#include "llm/checkpoint/loaded_model.h"
#include "llm/cli/commands.h"
#include "llm/cli/options.h"
#include "llm/infer/engine.h"
#include "llm/model/huggingface.h"
#include "llm/serve/api.h"

namespace llm {
namespace {

struct ServeFlags {
  std::string model, host = "127.0.0.1", name, api_key, chat_template, cors = "*";
  int64_t port = 8000, max_batch = 32, max_queue = 256, max_connections = 512, step_tokens = 0, drafts = 3,
          max_body = 4, timeout = 30, blocks = 0;
  int64_t drain_seconds = 60;
  uint64_t memory_budget = 0;
  bool prefix_cache = true;
  DeviceOptions device;
  WeightOptions weights;
};

// Signals that end the server. They are blocked in every thread, and taken one by one.
class EndSignals {
 public:
  EndSignals() {
    std::signal(SIGPIPE, SIG_IGN);
    ::sigemptyset(&signals_);
    ::sigaddset(&signals_, SIGTERM);
    ::sigaddset(&signals_, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  }
  // Whether one comes within the time.
  bool wait(std::chrono::milliseconds time) const {
    timespec left = {time.count() / 1000, (time.count() % 1000) * 1'000'000};
    return ::sigtimedwait(&signals_, nullptr, &left) > 0;
  }

 private:
  sigset_t signals_;
};

// What --memory-budget leaves for keys and values; without it, room for a few texts of the whole context.
int64_t blocks_for(const ServeFlags& flags, const LoadedModel& model, const Target& target,
                   const EngineOptions& options) {
  if (flags.blocks) return flags.blocks;
  const int64_t of_one = ceil_div(model.config().context, kBlockTokens);
  if (!flags.memory_budget) return of_one * std::min<int64_t>(flags.max_batch, 8);
  const int64_t blocks = Engine::blocks_within(flags.memory_budget, model.config(), model.layout(), target, options);
  if (blocks < 1)
    fail("--memory-budget ", format_bytes(flags.memory_budget), " is not enough for this model, whose weights take ",
         format_bytes(model.layout().bytes()));
  return std::min(blocks, of_one * flags.max_batch);
}

std::vector<int32_t> end_tokens_of(const LoadedModel& model) {
  std::vector<int32_t> ends;
  for (const int id : read_end_tokens(model.checkpoint().path).eos) ends.push_back(id);
  if (model.tokenizer()->end_of_text() >= 0) ends.push_back(model.tokenizer()->end_of_text());
  return ends;
}

void serve(const ServeFlags& flags) {
  const EndSignals signals;
  flags.device.check();
  OpenedMachine opened(flags.device);
  const Target target = flags.weights.target(opened.target(), flags.device);
  LoadedModel model(flags.model, dtype_of(opened.precision()), target.weights);
  if (!model.tokenizer()) fail("the model has no tokenizer for text (", model.no_tokenizer(), ")");
  const std::unique_ptr<ChatTemplate> chat_template =
      ChatTemplate::of_model(model.checkpoint().path, flags.chat_template);

  EngineOptions options = {.most_running = flags.max_batch,
                           .prefix_cache = flags.prefix_cache,
                           .drafts = flags.drafts,
                           .known_tokens = model.tokenizer()->vocabulary()};
  options.tokens_of_step = std::max(flags.step_tokens ? flags.step_tokens : 256, flags.max_batch);
  options.blocks = blocks_for(flags, model, target, options);
  Engine engine(model.config(), model.layout(), target, options);
  std::string name = flags.name.empty() ? flags.model : flags.name;
  while (name.size() > 1 && name.ends_with('/')) name.pop_back();
  Metrics metrics;
  // What a wrong address or a taken port is told should not wait for the weights.
  std::unique_ptr<Api> api;
  HttpLimits limits;
  limits.connections = static_cast<int>(flags.max_connections);
  limits.patience = std::chrono::seconds(flags.timeout);
  limits.body_bytes = static_cast<size_t>(flags.max_body) << 20;
  HttpServer server(
      flags.host, static_cast<int>(flags.port), limits,
      [&](const HttpRequest& request) { return api->handle(request); }, Api::refusal);
  engine.bind(model.load(engine.arena_bytes(), opened.device()));
  EngineThread engine_thread(engine, metrics, flags.max_queue);
  api = std::make_unique<Api>(ApiOptions{.model = name,
                                         .context = model.config().context,
                                         .vocabulary = model.config().vocabulary,
                                         .end_tokens = end_tokens_of(model),
                                         .api_key = flags.api_key,
                                         .cors_origin = flags.cors},
                              *model.tokenizer(), chat_template.get(), engine_thread, metrics);

  std::thread listener([&] { server.run(); });
  const size_t cache = static_cast<size_t>(options.blocks) * Engine::block_bytes(model.config(), target);
  const std::string told = concat("model: ", model.description(), "\nserve: ", options.blocks, " blocks of ",
                                  kBlockTokens, " tokens for keys and values (", format_bytes(cache), "), ",
                                  format_bytes(engine.arena_bytes()), " in all; ",
                                  chat_template ? "chat template: " + chat_template->where()
                                                : std::string("no chat template, so no /v1/chat/completions"),
                                  "\n");
  std::fputs(told.c_str(), stderr);
  const bool is_ipv6 = flags.host.find(':') != std::string::npos;
  std::puts(concat("http://", is_ipv6 ? "[" : "", flags.host, is_ipv6 ? "]" : "", ":", server.port()).c_str());
  std::fflush(stdout);

  while (!signals.wait(std::chrono::hours(1))) {
  }
  api->drain();
  std::fprintf(stderr, "serve: shutting down; %lld requests are being answered (a second signal breaks them off)\n",
               static_cast<long long>(api->active()));
  for (int64_t left = flags.drain_seconds * 20; left > 0 && api->active() > 0; --left)
    if (signals.wait(std::chrono::milliseconds(50))) break;
  engine_thread.stop();
  server.stop();
  listener.join();
}

}  // namespace

Command serve_command() {
  const auto flags = std::make_shared<ServeFlags>();
  ServeFlags& f = *flags;
  Options options = {
      trained_model(f.model),
      Option("--host", &f.host, "the address to listen at; 0.0.0.0: every one of this machine, for others to use")
          .with_default(),
      Option("--port", &f.port, "the port; 0: one that is free").between(0, 65535).with_default(),
      Option("--name", &f.name, "the model's name for clients (as it is given here)"),
      Option("--chat-template", &f.chat_template, "a file with a chat template (Jinja) instead of the model's own"),
      Option("--api-key", &f.api_key, "clients must send it: Authorization: Bearer KEY"),
      Option("--cors", &f.cors, "the origin of web pages that may call, \"*\": all, \"\": none").with_default()};
  append(
      options,
      {Option("--max-batch", &f.max_batch, "sequences at once").between(1, 1024).with_default(),
       Option("--max-queue", &f.max_queue, "sequences that wait; with more, requests get status 429")
           .at_least(1)
           .with_default(),
       Option("--memory-budget", MemorySize{&f.memory_budget},
              "bytes for weights, keys and values, e.g. 8GiB (weights, and room for 8 texts of the whole context)"),
       Option("--blocks", &f.blocks, "blocks of 16 tokens for keys and values, instead of --memory-budget")
           .at_least(1)
           .not_with("--memory-budget"),
       Option("--step-tokens", &f.step_tokens, "tokens of a step: one for each text, the rest prompts; 0: 256")
           .at_least(0)
           .with_default(),
       Option("--drafts", &f.drafts, "while few texts run, so many likely tokens are tried ahead; the text is the same")
           .between(0, 64)
           .with_default(),
       Option("!--no-prefix-cache", &f.prefix_cache, "compute every prompt from its beginning"),
       Option("--max-connections", &f.max_connections, "connections at once; more get status 503")
           .between(1, 900)
           .with_default(),
       Option("--max-body", &f.max_body, "MiB that a request's body may have").between(1, 1024).with_default(),
       Option("--timeout", &f.timeout,
              "seconds that a client may take to send a request or to read a part of the answer")
           .between(1, 3600)
           .with_default(),
       Option("--drain", &f.drain_seconds, "seconds that running requests have to end after SIGTERM")
           .between(0, 3600)
           .with_default()},
      "Limits");
  append(options, f.device.options());
  append(options, f.weights.options(), "Machine");
  append(options, f.weights.cache_options(), "Machine");
  return {
      "serve", "Serve a trained model by OpenAI's API, with a page at /", options,
      "What a request gets does not depend on who else is asking: text and log-probabilities are the same bits alone "
      "and\n"
      "among others. The address is printed on standard output when requests can come. Addresses: /v1/completions,\n"
      "/v1/chat/completions, /v1/models, /tokenize, /detokenize, /health, /metrics, and a page to try it at /.\n\n"
      "Examples:\n"
      "  train_gpt serve runs/shakespeare\n"
      "  curl localhost:8000/v1/completions -d '{\"prompt\": \"ROMEO:\", \"max_tokens\": 50, \"stream\": true}'\n"
      "  train_gpt serve Qwen3-0.6B --host 0.0.0.0 --api-key secret --max-batch 16 --memory-budget 8GiB\n"
      "  OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_API_KEY=secret python my_client.py",
      [flags](const Given&) { serve(*flags); }};
}

}  // namespace llm
