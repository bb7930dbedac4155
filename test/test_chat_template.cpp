// Chat templates: what jinja2 makes of the usual ones, what is refused, and that a hostile one comes to an end.
#include <doctest/doctest.h>

#include <filesystem>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/serve/chat_template.h"
#include "llm/serve/jinja.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;

namespace {

std::string render(const std::string& source, const Json& variables = Json::object(),
                   const jinja::Limits& limits = {}) {
  std::vector<std::pair<std::string, jinja::Value>> values;
  for (const auto& [name, value] : variables.items()) values.emplace_back(name, jinja::Value(value));
  return jinja::Template(source).render(
      std::move(values), [](const std::string& format) { return format; }, limits);
}

std::string error(const std::string& source, const jinja::Limits& limits = {}) {
  return error_of([&] { render(source, Json::object(), limits); });
}

}  // namespace

TEST_CASE("chat template: the usual ones give what jinja2 gives") {
  const Json reference = read_json("test/data/chat/reference.json");
  int texts = 0, raised = 0, errors = 0;
  for (const Json& row : reference["rows"]) {
    const std::string name = row["template"].string();
    CAPTURE(name);
    CAPTURE(row["conversation"].string());
    CAPTURE(row["variables"].string());
    Json variables = reference["variables"].at(row["variables"].string());
    variables.update({{"messages", reference["conversations"].at(row["conversation"].string())},
                      {"bos_token", "<s>"},
                      {"eos_token", "</s>"}});
    const std::string source = read_file("test/data/chat/" + name);
    try {
      const std::string text = render(source, variables);
      REQUIRE(row.contains("text"));
      CHECK(text == row["text"].string());
      ++texts;
    } catch (const jinja::Raised& e) {
      REQUIRE(row.contains("raised"));
      CHECK(e.what() == row["raised"].string());
      ++raised;
    } catch (const Error& e) {
      CAPTURE(e.what());
      CHECK(row.contains("error"));
      ++errors;
    }
  }
  CHECK(texts > 150);
  CHECK(raised > 30);
  CHECK(errors > 30);
}

TEST_CASE("chat template: white space around tags") {
  CHECK(render("a\n  {% if true %}\n  b\n  {% endif %}\nc\n") == "a\n  b\nc");
  CHECK(render("a {%- if true -%}  b  {%- endif -%}  c") == "abc");
  CHECK(render("  {%+ if true +%}\n b{% endif %}") == "  \n b");
  CHECK(render("x\n {# note #}\ny") == "x\ny");
  CHECK(render("{{ 1 }}\n{{ 2 }}\r\n") == "1\n2");
  CHECK(render("\xC2\xA0 {{- 'a' }}") == "a");
}

TEST_CASE("chat template: expressions are Python's") {
  const Json variables = {
      {"l", {3, 1, 2}}, {"s", "h\u00e9llo"}, {"d", {{"b", 1}, {"a", nullptr}}}, {"items", {{"items", 5}}}};
  const auto value = [&](const std::string& text) { return render("{{ " + text + " }}", variables); };
  CHECK(value("-7 // 2") == "-4");
  CHECK(value("-7 % 3") == "2");
  CHECK(value("7 / 2") == "3.5");
  CHECK(value("1e22") == "1e+22");
  CHECK(value("s[1] ~ s[-1] ~ s[1:3] ~ s[::-1]") == "\u00e9o\u00e9loll\u00e9h");
  CHECK(value("l[-1:0:-1]") == "[2, 1]");
  CHECK(value("(1,)") == "(1,)");
  CHECK(value("\"it's\" ~ ['it\\'s', 'a\\n\"']") == "it's[\"it's\", 'a\\n\"']");
  CHECK(value("d") == "{'b': 1, 'a': None}");
  CHECK(value("d | tojson(indent=1)") == "{\n \"b\": 1,\n \"a\": null\n}");
  CHECK(value("'</s>\u00e9\\x7f' | tojson") == "\"</s>\u00e9\x7f\"");
  CHECK(value("s | length ~ nothing | length ~ nothing") == "50");
  CHECK(value("items['items'] + 1") == "6");
  CHECK(value("true + true") == "2");
  CHECK(value("'a' if nothing") == "");
  CHECK(value("[1, 2] == [1.0, 2] and not (1, 2) == [1, 2]") == "True");
  CHECK(render("{% for k, v in d | dictsort %}{{ k }}{{ loop.last }}{% endfor %}", variables) == "aFalsebTrue");
}

TEST_CASE("chat template: what is beyond the subset is refused by its name") {
  CHECK(error("{% include 'x' %}") ==
        "line 1: the tag {% include %} is not among those that chat templates may use here: if, for, set, macro, "
        "generation, break, continue");
  CHECK(has(error("\n\n{{ x | batch(2) }}"), "line 3: the filter \"batch\" is not among what chat templates may use"));
  CHECK(has(error("{{ x is lower }}"), "the test \"is lower\" is not among"));
  CHECK(has(error("{{ 'x'.format(1) }}"), "the method format() of a string is not among"));
  CHECK(has(error("{{ ''.__class__() }}"), "the method __class__() of a string is not among"));
  CHECK(has(error("{{ lipsum() }}"), "\"lipsum\" is no function"));
  CHECK(has(error("{% for x in y recursive %}{% endfor %}"), "recursive loop"));
  CHECK(has(error("{{ 1 < 2 < 3 }}"), "chain of comparisons"));
  CHECK(has(error("{{ [1] | map('upper', *x) }}"), "\"*\""));
  CHECK(has(error("{{ 'a'.upper }}"), "the method upper is not called"));
  CHECK(has(error("{{ x.y }}"), "\"x\" is undefined"));
  CHECK(has(error("{{ x + 'a' }}"), "\"+\" of \"x\", which is undefined and a string"));
  CHECK(has(error("{% if x %}"), "{% endif %} is missing"));
  CHECK(has(error("{{ (1, 2; }}"), "\"}\" closes what is not open"));
  CHECK(has(error("{{ 1"), "a tag has no end"));
  CHECK(has(error("{{ 1 ] }}"), "\"]\" closes what is not open"));
  CHECK(has(error("{{ a ? b }}"), "\"?\" has no meaning"));
  CHECK(has(error("{% set x.y = 1 %}"), "no namespace()"));
  CHECK(error("{{ raise_exception('No ' ~ 1) }}") == "No 1");
}

TEST_CASE("chat template: a hostile one comes to an end") {
  const auto repeated = [](const std::string& text, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += text;
    return all;
  };
  // A tenth of the limits that hold otherwise, for the sake of time.
  constexpr jinja::Limits kFew = {.steps = 1'000'000, .bytes = 6 << 20};
  const auto error = [&](const std::string& source) { return ::error(source, kFew); };
  CHECK(has(error(repeated("{% for a in range(99999) %}", 5) + repeated("{% endfor %}", 5)), "too many steps"));
  CHECK(has(error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "too deeply"));
  CHECK(has(error("{{ " + repeated("(", 100'000) + repeated(")", 100'000) + " }}"), "nested too deeply"));
  CHECK(has(error("{{ " + repeated("-", 100'000) + "1 }}"), "nested too deeply"));
  CHECK(has(error("{{ 1" + repeated("+1", 100'000) + " }}"), "nested too deeply"));
  CHECK(has(error(repeated("{% if x %}", 10'000)), "nested too deeply"));
  CHECK(has(error("{{ 'ab' * 999999999999 }}"), "too many steps"));
  CHECK(has(error("{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}"),
            "too much text"));
  CHECK(has(error("{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = [n.x] %}{% endfor %}"),
            "more than 200 deep"));
  CHECK(has(
      error("{% set n = namespace(x=[]) %}{% for i in range(150) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}"),
      "too many steps"));
  CHECK(has(error("{% set n = namespace(x=[]) %}{% for i in range(150) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x "
                  "== [n.x] }}{{ n.x | tojson }}"),
            "too many steps"));
  CHECK(has(error("{% set n = namespace() %}{% set n.x = n %}"), "a namespace cannot be inside"));
  CHECK(has(error("{% set s = 'ab' * 1000000 %}{% for i in range(99999) %}{{ 'c' in s }}{% endfor %}"),
            "too many steps"));
  CHECK(has(error("{% set s = 'a b ' * 1000000 %}{% for i in range(99999) %}{% set t = s.split() %}{% endfor %}"),
            "too m"));
}

TEST_CASE("chat template: of a model's files") {
  const Folder folder;
  CHECK(ChatTemplate::of_model(folder.path) == nullptr);
  const auto config = [&](const Json& json) {
    write_file_atomically(folder / "tokenizer_config.json", json_text(json));
  };
  const ChatTemplate::Conversation hello = {.messages = Json::array({{{"role", "user"}, {"content", "hello"}}}),
                                            .tools = nullptr};
  const auto text = [&](const std::string& file = "") {
    return ChatTemplate::of_model(folder.path, file)->render(hello);
  };

  config({{"bos_token", {{"content", "<s>"}, {"lstrip", false}}}, {"eos_token", nullptr}});
  CHECK(ChatTemplate::of_model(folder.path) == nullptr);
  const std::string plain = "{{ bos_token }}{{ messages[0].content }}{{ eos_token is defined }}";
  config({{"bos_token", {{"content", "<s>"}, {"lstrip", false}}}, {"chat_template", plain}});
  CHECK(text() == "<s>helloFalse");
  Json two = Json::array();
  two.push_back({{"name", "tool_use"}, {"template", "no"}});
  config({{"chat_template", two}});
  CHECK(has(error_of([&] { text(); }), "(tool_use) none is named \"default\"; --chat-template FILE takes one"));
  two.push_back({{"name", "default"}, {"template", "yes{{ tools is none }}{{ add_generation_prompt }}"}});
  config({{"chat_template", two}});
  CHECK(text() == "yesTrueTrue");
  config({{"chat_template", 3}});
  CHECK(has(error_of([&] { text(); }), "tokenizer_config.json: \"chat_template\" is neither"));
  config({{"chat_template", "{% x %}"}});
  CHECK(has(error_of([&] { text(); }), "tokenizer_config.json: chat template: line 1: the tag {% x %}"));
  write_file_atomically(folder / "chat_template.jinja", "from the file");
  CHECK(text() == "from the file");
  write_file_atomically(folder / "own", "{{ raise_exception('one word') }}");
  CHECK_THROWS_AS(text(folder / "own"), UsageError);
  CHECK(error_of([&] { text(folder / "own"); }) == "the chat template refuses these messages: one word");
  write_file_atomically(folder / "own", "\xFF");
  CHECK(has(error_of([&] { text(folder / "own"); }), "not UTF-8"));
  CHECK(has(error_of([&] { text(folder / "none"); }), "none"));
}
