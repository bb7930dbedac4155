#include "llm/serve/api.h"

#include <algorithm>
#include <ctime>
#include <random>

#include "llm/serve/generation.h"
#include "llm/serve/page.h"

namespace llm {
namespace {

HttpResponse json_response(const Json& json, int status = 200) { return {.status = status, .body = json.dump()}; }

// In a time that does not depend on where they differ.
bool equal_secrets(const std::string& a, const std::string& b) {
  unsigned different = a.size() != b.size();
  for (size_t i = 0; i < a.size(); ++i)
    different |= static_cast<unsigned char>(a[i] ^ (b.empty() ? '\0' : b[i % b.size()]));
  return different == 0;
}

// A seed that fits JavaScript's numbers.
uint64_t new_seed() {
  std::random_device device;
  return device() % (1u << 31);
}

// Counts a request for as long as it is answered.
class Counted {
 public:
  explicit Counted(std::atomic<int64_t>& count) : count_(count) { ++count_; }
  ~Counted() { --count_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  std::atomic<int64_t>& count_;
};

}  // namespace

Api::Api(ApiOptions options, const Tokenizer& tokenizer, const ChatTemplate* chat_template, EngineThread& engine,
         Metrics& metrics)
    : options_(std::move(options)),
      tokenizer_(tokenizer),
      template_(chat_template),
      engine_(engine),
      metrics_(metrics),
      started_(std::time(nullptr)) {}

HttpResponse Api::handle(const HttpRequest& request) {
  HttpResponse response;
  try {
    response = route(request);
  } catch (const ApiError& error) {
    response = json_response(error.json(), error.status);
    if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
    if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  } catch (const UsageError& error) {
    response = json_response(ApiError(400, error.what()).json(), 400);
  } catch (const std::exception& error) {
    response = json_response(ApiError(500, error.what()).json(), 500);
  }
  if (!options_.cors_origin.empty()) {
    response.headers.emplace_back("Access-Control-Allow-Origin", options_.cors_origin);
    if (request.method == "OPTIONS") {
      response.headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
      response.headers.emplace_back("Access-Control-Allow-Headers", "Authorization, Content-Type");
      response.headers.emplace_back("Access-Control-Max-Age", "86400");
    }
  }
  return response;
}

HttpResponse Api::route(const HttpRequest& request) {
  const std::string& path = request.path;
  if (request.method == "OPTIONS") return {.status = 204, .type = "text/plain", .body = ""};
  const bool reads = request.method == "GET" || request.method == "HEAD";
  const bool posts = request.method == "POST";
  const auto allow = [&](bool allowed, const char* method) {
    if (!allowed) throw ApiError(405, concat(path, " takes ", method, ", not ", request.method));
  };
  if (path == "/")
    return allow(reads, "GET"), HttpResponse{.type = "text/html; charset=utf-8", .body = std::string(page())};
  if (path == "/health") {
    allow(reads, "GET");
    if (draining_) throw ApiError(503, "the server shuts down");
    return json_response({{"status", "ok"}});
  }
  authorize(request);
  if (path == "/metrics")
    return allow(reads, "GET"),
           HttpResponse{.type = "text/plain; version=0.0.4", .body = metrics_.text(engine_.statistics())};
  if (path == "/v1/models")
    return allow(reads, "GET"), json_response({{"object", "list"}, {"data", Json::array({model_json()})}});
  if (path.starts_with("/v1/models/")) {
    allow(reads, "GET");
    check_model(path.substr(std::string("/v1/models/").size()));
    return json_response(model_json());
  }
  if (path == "/tokenize" || path == "/v1/tokenize") return allow(posts, "POST"), json_response(tokenize(request.body));
  if (path == "/detokenize" || path == "/v1/detokenize")
    return allow(posts, "POST"), json_response(detokenize(request.body));
  if (path == "/tokenizer_info") return allow(reads, "GET"), json_response(tokenizer_json());
  const bool completions = path == "/v1/completions", chats = path == "/v1/chat/completions";
  if (!completions && !chats)
    throw ApiError(404, concat("there is no ", path, " here; try /v1/completions, /v1/chat/completions, /v1/models"));
  allow(posts, "POST");
  if (draining_) throw ApiError(503, "the server shuts down");
  return completions ? complete(request) : chat(request);
}

void Api::authorize(const HttpRequest& request) const {
  if (options_.api_key.empty()) return;
  const std::string bearer = "Bearer ";
  if (!request.authorization.starts_with(bearer) ||
      !equal_secrets(options_.api_key, request.authorization.substr(bearer.size())))
    throw ApiError(401, "this server asks for its API key: Authorization: Bearer KEY", "", "invalid_api_key");
}

void Api::check_model(const std::string& name) const {
  if (!name.empty() && name != options_.model)
    throw ApiError(404, concat("there is no model \"", name, "\" here, only \"", options_.model, "\""), "model",
                   "model_not_found");
}

Json Api::model_json() const {
  return {{"id", options_.model},
          {"object", "model"},
          {"created", started_},
          {"owned_by", "train_gpt"},
          {"max_model_len", options_.context}};
}

// What lm-eval asks for, so that it needs no tokenizer of its own.
Json Api::tokenizer_json() const {
  const auto named = [&](int32_t id) { return id < 0 ? Json() : Json(text_of_bytes(tokenizer_.bytes_of(id))); };
  const std::vector<int32_t> prefix = tokenizer_.text_prefix();
  return {{"bos_token", named(prefix.empty() ? -1 : prefix[0])},
          {"eos_token", named(tokenizer_.end_of_text())},
          {"pad_token", nullptr},
          {"chat_template", template_ ? Json(template_->source()) : Json()}};
}

const ChatTemplate& Api::need_template() const {
  if (!template_)
    throw ApiError(
        400, "this model has no chat template; ask /v1/completions, or start the server with --chat-template FILE",
        "messages", "no_chat_template");
  return *template_;
}

std::vector<int32_t> Api::ids_of(const ChatTemplate::Conversation& conversation) const {
  std::vector<int32_t> ids;
  try {
    tokenizer_.encode(need_template().render(conversation), true, ids);
  } catch (const UsageError& error) {
    throw ApiError(400, error.what(), "messages", "invalid_messages");
  }
  return ids;
}

int64_t Api::most_tokens(const GenerationFields& fields, int64_t prompt, int64_t usual) const {
  const int64_t room = options_.context - prompt;
  const auto too_long = [&](const std::string& what) {
    return ApiError(400, concat("the model's context is ", options_.context, " tokens; ", what), "max_tokens",
                    "context_length_exceeded");
  };
  if (room < 0 || (room == 0 && fields.max_tokens.value_or(1) > 0))
    throw too_long(concat("the prompt has ", prompt, ", which leaves no place for an answer"));
  if (!fields.max_tokens) return std::min(usual, room);
  if (*fields.max_tokens > room)
    throw too_long(concat("the prompt has ", prompt, " and max_tokens asks for ", *fields.max_tokens, " more"));
  return *fields.max_tokens;
}

HttpResponse Api::complete(const HttpRequest& http) {
  const CompletionRequest request = parse_completion_request(http.body, options_.vocabulary);
  std::vector<Prompt> prompts;
  for (const CompletionRequest::Prompt& given : request.prompts) {
    Prompt prompt = {given.ids};
    if (given.is_text) {
      if (request.special_tokens) prompt.ids = tokenizer_.text_prefix();
      prompt.prefix = static_cast<int64_t>(prompt.ids.size());
      tokenizer_.encode(given.text, true, prompt.ids);
      if (prompt.ids.empty() && tokenizer_.end_of_text() >= 0) prompt = {{tokenizer_.end_of_text()}, 1};
    }
    if (prompt.ids.empty()) throw ApiError(400, "the prompt is empty", "prompt");
    prompts.push_back(std::move(prompt));
  }
  return generate(ApiKind::completion, request, prompts, request.echo, http.gone);
}

HttpResponse Api::chat(const HttpRequest& http) {
  const ChatRequest request = parse_chat_request(http.body, options_.vocabulary);
  check_model(request.model);
  const std::vector<int32_t> ids = ids_of(request.conversation);
  if (ids.empty()) throw ApiError(400, "the chat template makes no text of these messages", "messages");
  return generate(ApiKind::chat, request, {{ids}}, false, http.gone);
}

HttpResponse Api::generate(ApiKind kind, GenerationFields fields, const std::vector<Prompt>& prompts, bool echo,
                           const std::function<bool()>& gone) {
  check_model(fields.model);
  if (!fields.has_seed) fields.sampling.seed = new_seed();
  std::vector<Request> sequences;
  std::vector<AnswerChoice> choices;
  int64_t prompt_tokens = 0;
  for (const Prompt& prompt : prompts) {
    const auto size = static_cast<int64_t>(prompt.ids.size());
    for (const int32_t id : prompt.ids)
      if (id >= options_.vocabulary)
        throw ApiError(400, concat("token ", id, " is outside the model's vocabulary of ", options_.vocabulary),
                       "prompt");
    prompt_tokens += size;
    Request request;
    request.prompt = prompt.ids;
    request.max_tokens = most_tokens(fields, size, kind == ApiKind::chat ? options_.context : 16);
    request.sampling = fields.sampling;
    std::vector<int32_t> ends = fields.stop_tokens;
    if (!fields.ignore_end) ends.insert(ends.end(), options_.end_tokens.begin(), options_.end_tokens.end());
    // Who scores a prompt counts on one token behind it, be it the one that ends the text.
    const bool tells_end = echo && fields.logprobs >= 0;
    if (!tells_end) request.stop_tokens = std::exchange(ends, {});
    request.logprobs = fields.logprobs;
    request.echo = echo;
    for (int64_t i = 0; i < fields.choices; ++i) {
      // The choices of one prompt have seeds of their own, which the first one's gives.
      request.sampling.seed = fields.sampling.seed + static_cast<uint64_t>(i);
      sequences.push_back(request);
      choices.emplace_back(tokenizer_, AnswerChoice::Options{.kind = kind,
                                                             .logprobs = fields.logprobs,
                                                             .token_ids = fields.token_ids,
                                                             .stops = fields.stops,
                                                             .ends = ends,
                                                             .prompt = size,
                                                             .prefix = prompt.prefix});
    }
  }
  auto ticket = engine_.submit(std::move(sequences));
  if (!ticket) throw ApiError(429, "the queue is full; try again later", "", "queue_full");
  const auto counted = std::make_shared<Counted>(active_);
  const auto generation = std::make_shared<Generation>(
      Generation::Form{.kind = kind,
                       .id = concat(kind == ApiKind::chat ? "chatcmpl-" : "cmpl-", started_, "-", next_++),
                       .model = options_.model,
                       .created = static_cast<int64_t>(std::time(nullptr)),
                       .seed = fields.sampling.seed,
                       .stream_usage = fields.stream_usage,
                       .prompt_tokens = prompt_tokens},
      std::move(choices), std::move(ticket), gone);
  generation->begin();
  if (!fields.stream) return json_response(generation->answer());
  return {.type = "text/event-stream",
          .body = "",
          .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}},
          .stream = [generation, counted](const HttpResponse::Write& write) { generation->stream(write); }};
}

Json Api::tokenize(const std::string& body) const {
  const TokenizeRequest request = parse_tokenize_request(body);
  std::vector<int32_t> ids;
  if (request.conversation) {
    ids = ids_of(*request.conversation);
  } else {
    if (request.special_tokens) ids = tokenizer_.text_prefix();
    tokenizer_.encode(request.text, true, ids);
  }
  return {{"count", ids.size()}, {"max_model_len", options_.context}, {"tokens", ids}};
}

Json Api::detokenize(const std::string& body) const {
  const std::vector<int32_t> ids = parse_detokenize_request(body, tokenizer_.vocabulary());
  const std::string text = text_of_bytes(tokenizer_.decode(ids));
  return {{"prompt", text}, {"text", text}};
}

}  // namespace llm
