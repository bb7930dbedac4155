#include "llm/serve/openai_request.h"

#include <charconv>

#include "llm/serve/api_error.h"
#include "llm/serve/request_fields.h"

namespace llm {
namespace {

constexpr int64_t kMostChoices = 128, kMostSequences = 2048, kMostAlternatives = 20;

int32_t token_id(const Json& value, const std::string& field, int64_t vocabulary) {
  const std::optional<int64_t> id = whole_number(value);
  if (!id || *id < 0 || *id >= vocabulary)
    wrong_field(field, concat("made of token ids from 0 to ", vocabulary - 1), value);
  return static_cast<int32_t>(*id);
}

std::vector<int32_t> token_ids(const Json& values, const std::string& field, int64_t vocabulary) {
  if (!values.is_array()) wrong_field(field, "a list of token ids", values);
  std::vector<int32_t> ids;
  for (const Json& value : values) ids.push_back(token_id(value, field, vocabulary));
  return ids;
}

std::vector<std::string> stops_of(const RequestFields& fields) {
  constexpr size_t kMost = 16, kLongest = 1024;
  std::vector<std::string> stops;
  const Json& given = fields["stop"];
  if (given.is_null()) return stops;
  if (given.is_string())
    stops.push_back(given.string());
  else if (given.is_array() && given.size() <= kMost)
    for (const Json& stop : given) {
      if (!stop.is_string()) wrong_field("stop", "a string or a list of strings", given);
      stops.push_back(stop.string());
    }
  else
    wrong_field("stop", concat("a string or a list of up to ", kMost, " strings"), given);
  // An empty string is nowhere.
  std::erase(stops, "");
  for (const std::string& stop : stops)
    if (stop.size() > kLongest)
      wrong_field("stop", concat("made of strings of up to ", kLongest, " bytes"), Json(stop));
  return stops;
}

std::vector<std::pair<int32_t, float>> bias_of(const RequestFields& fields, int64_t vocabulary) {
  std::vector<std::pair<int32_t, float>> biases;
  if (!fields.has("logit_bias")) return biases;
  const Json& given = fields["logit_bias"];
  const char* must_be = "an object of token ids and numbers from -100 to 100";
  if (!given.is_object()) wrong_field("logit_bias", must_be, given);
  for (const auto& [key, value] : given.items()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocabulary)
      wrong_field("logit_bias", concat("an object with token ids from 0 to ", vocabulary - 1), Json(key));
    if (!value.is_number() || value.get<double>() < -100 || value.get<double>() > 100)
      wrong_field("logit_bias", must_be, value);
    biases.emplace_back(id, value.get<float>());
  }
  return biases;
}

// What the API has and this server has not, unless it is said with a value that asks for nothing.
void refuse(const RequestFields& fields, const char* name, bool asks_for_nothing, const char* why) {
  if (fields.has(name) && !asks_for_nothing) throw ApiError(400, concat(name, " ", why), name, "unsupported_parameter");
}

void read_common(const RequestFields& fields, int64_t vocabulary, GenerationFields& to) {
  to.model = fields.text("model");
  SamplingOptions& s = to.sampling;
  s.temperature = fields.number("temperature", 0, 2, 1);
  s.top_p = fields.number("top_p", 0, 1, 1);
  if (s.top_p == 0) s.top_p = 1e-9;  // only the likeliest token
  // -1 stands for "all" in some clients.
  s.top_k = std::max<int64_t>(0, fields.integer("top_k", -1, INT32_MAX).value_or(0));
  s.min_p = fields.number("min_p", 0, 1, 0);
  s.presence = fields.number("presence_penalty", -2, 2, 0);
  s.frequency = fields.number("frequency_penalty", -2, 2, 0);
  s.repetition = fields.number("repetition_penalty", 0.01, 100, 1);
  s.bias = bias_of(fields, vocabulary);
  if (const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX)) {
    s.seed = static_cast<uint64_t>(*seed);
    to.has_seed = true;
  }
  to.choices = fields.integer("n", 1, kMostChoices).value_or(1);
  to.stops = stops_of(fields);
  if (fields.has("stop_token_ids")) to.stop_tokens = token_ids(fields["stop_token_ids"], "stop_token_ids", vocabulary);
  to.ignore_end = fields.boolean("ignore_eos", false);
  to.token_ids = fields.boolean("return_token_ids", false);
  to.stream = fields.boolean("stream", false);
  const Json& options = fields["stream_options"];
  if (!options.is_null()) {
    if (!options.is_object()) wrong_field("stream_options", "an object", options);
    const Json& usage = options["include_usage"];
    if (!usage.is_null() && !usage.is_boolean()) wrong_field("stream_options.include_usage", "true or false", usage);
    to.stream_usage = to.stream && usage.is_boolean() && usage.get<bool>();
  }
  refuse(fields, "min_tokens", fields["min_tokens"] == Json(0), "is not supported; leave it out");
  refuse(fields, "use_beam_search", fields["use_beam_search"] == Json(false), "is not supported; leave it out");
  const Json& format = fields["response_format"];
  refuse(fields, "response_format", format["type"] == Json("text"),
         "can only be {\"type\": \"text\"}: answers by a grammar or schema are not supported");
}

CompletionRequest::Prompt text_prompt(const Json& text) { return {text.string(), {}, true}; }

std::vector<CompletionRequest::Prompt> prompts_of(const Json& given, int64_t vocabulary) {
  const char* must_be = "a string, a list of strings, a list of token ids, or a list of such lists";
  if (given.is_string()) return {text_prompt(given)};
  if (!given.is_array() || given.empty()) wrong_field("prompt", must_be, given);
  if (given[0].is_number()) return {{"", token_ids(given, "prompt", vocabulary), false}};
  if (given.size() > static_cast<size_t>(kMostSequences))
    throw ApiError(400, concat("prompt has ", given.size(), " prompts, more than ", kMostSequences), "prompt");
  std::vector<CompletionRequest::Prompt> prompts;
  for (const Json& prompt : given) {
    if (prompt.is_string())
      prompts.push_back(text_prompt(prompt));
    else if (prompt.is_array())
      prompts.push_back({"", token_ids(prompt, "prompt", vocabulary), false});
    else
      wrong_field("prompt", must_be, prompt);
  }
  return prompts;
}

const char* const kRoles[] = {"system", "developer", "user", "assistant", "tool", "function"};

// A call's arguments are JSON in a string for clients, and an object for templates.
Json with_argument_objects(const Json& calls) {
  Json changed = Json::array();
  for (const Json& call : calls) {
    Json one = call;
    const Json& function = call["function"];
    if (function["arguments"].is_string()) {
      const Json arguments = json_or_null(function["arguments"].string());
      if (arguments.is_object()) {
        Json with_object = function;
        with_object["arguments"] = arguments;
        one["function"] = with_object;
      }
    }
    changed.push_back(one);
  }
  return changed;
}

// A message as templates know it: the texts of a content in parts are joined. A developer is what used to be the system.
Json message_of(const Json& given, size_t index) {
  const std::string field = concat("messages[", index, "]");
  if (!given.is_object()) wrong_field(field, "an object", given);
  const Json& role = given["role"];
  bool known = false;
  for (const char* name : kRoles) known = known || role == Json(name);
  if (!known) wrong_field(field + ".role", "system, developer, user, assistant or tool", role);
  const Json& content = given["content"];
  Json message = Json::object();
  for (const auto& [key, value] : given.items())
    if (key != "content") message[key] = key == "tool_calls" && value.is_array() ? with_argument_objects(value) : value;
  if (role == Json("developer")) message["role"] = "system";
  if (content.is_array()) {
    std::string text;
    for (const Json& part : content) {
      if (part["type"] != Json("text"))
        wrong_field(field + ".content", "a text, or a list of {\"type\": \"text\", \"text\": ...}", part);
      if (!part["text"].is_string()) wrong_field(field + ".content", "made of texts", part);
      text += (text.empty() ? "" : "\n") + part["text"].string();
    }
    message["content"] = text;
  } else if (content.is_string()) {
    message["content"] = content;
  } else {
    // Calls of tools may come without words.
    const bool may_be_absent = content.is_null() && role == Json("assistant");
    if (!may_be_absent)
      wrong_field(field + ".content", "a text, or a list of {\"type\": \"text\", \"text\": ...}", content);
    message["content"] = "";
  }
  return message;
}

ChatTemplate::Conversation conversation_of(const RequestFields& fields) {
  ChatTemplate::Conversation conversation;
  const Json& messages = fields.need("messages");
  if (!messages.is_array() || messages.empty()) wrong_field("messages", "a list of at least one message", messages);
  for (size_t i = 0; i < messages.size(); ++i) conversation.messages.push_back(message_of(messages[i], i));
  const Json& tools = fields["tools"];
  if (!tools.is_null() && !tools.is_array()) wrong_field("tools", "a list", tools);
  if (!tools.empty() && fields["tool_choice"] != Json("none")) conversation.tools = tools;
  conversation.add_generation_prompt = fields.boolean("add_generation_prompt", true);
  const Json& variables = fields["chat_template_kwargs"];
  if (!variables.is_null()) {
    if (!variables.is_object()) wrong_field("chat_template_kwargs", "an object", variables);
    conversation.variables = variables;
  }
  refuse(fields, "chat_template", false, "comes with the model; the server's --chat-template takes another");
  return conversation;
}

}  // namespace

CompletionRequest parse_completion_request(std::string_view body, int64_t vocabulary) {
  const RequestFields fields(body);
  CompletionRequest request;
  read_common(fields, vocabulary, request);
  request.prompts = prompts_of(fields.need("prompt"), vocabulary);
  request.max_tokens = fields.integer("max_tokens", 0, INT64_MAX);
  request.echo = fields.boolean("echo", false);
  request.special_tokens = fields.boolean("add_special_tokens", true);
  request.logprobs = static_cast<int>(fields.integer("logprobs", 0, kMostAlternatives).value_or(-1));
  const auto best_of = fields.integer("best_of", 1, kMostChoices);
  refuse(fields, "best_of", best_of == request.choices, "other than n is not supported; leave it out");
  refuse(fields, "suffix", fields["suffix"] == Json(""), "is not supported; leave it out");
  const auto sequences = static_cast<int64_t>(request.prompts.size()) * request.choices;
  if (sequences > kMostSequences)
    throw ApiError(400, concat("n and the prompts make ", sequences, " texts, more than ", kMostSequences), "n");
  return request;
}

ChatRequest parse_chat_request(std::string_view body, int64_t vocabulary) {
  const RequestFields fields(body);
  ChatRequest request;
  read_common(fields, vocabulary, request);
  request.conversation = conversation_of(fields);
  request.max_tokens = fields.integer("max_completion_tokens", 1, INT64_MAX);
  if (!request.max_tokens) request.max_tokens = fields.integer("max_tokens", 1, INT64_MAX);
  const bool logprobs = fields.boolean("logprobs", false);
  const auto alternatives = fields.integer("top_logprobs", 0, kMostAlternatives);
  if (alternatives.value_or(0) > 0 && !logprobs)
    throw ApiError(400, "top_logprobs needs \"logprobs\": true", "top_logprobs", "invalid_value");
  if (logprobs) request.logprobs = static_cast<int>(alternatives.value_or(0));
  refuse(fields, "tool_choice", fields["tool_choice"] == Json("none") || fields["tool_choice"] == Json("auto"),
         "can only be none or auto: a call cannot be forced");
  refuse(fields, "functions", false, "is not supported; tools is");
  refuse(fields, "audio", false, "is not supported");
  return request;
}

TokenizeRequest parse_tokenize_request(std::string_view body) {
  const RequestFields fields(body);
  TokenizeRequest request;
  request.special_tokens = fields.boolean("add_special_tokens", true);
  if (fields.has("messages")) {
    request.conversation = conversation_of(fields);
  } else {
    const char* name = fields.has("prompt") ? "prompt" : fields.has("text") ? "text" : "content";
    fields.need(fields.has(name) ? name : "prompt");
    request.text = fields.text(name);
  }
  return request;
}

std::vector<int32_t> parse_detokenize_request(std::string_view body, int64_t vocabulary) {
  const RequestFields fields(body);
  const char* name = fields.has("ids") ? "ids" : "tokens";
  return token_ids(fields.need(name), name, vocabulary);
}

}  // namespace llm
