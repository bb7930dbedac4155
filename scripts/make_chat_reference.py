#!/usr/bin/env python3
"""Writes test/data/chat/reference.json: what jinja2 makes of the chat templates test/data/chat/*.jinja, set up as
transformers' apply_chat_template() sets it up. Needs jinja2; run it when a template or a conversation changes:

    scripts/make_chat_reference.py
"""
import json
from pathlib import Path

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).resolve().parent.parent / "test" / "data" / "chat"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place: \"rain\" or 'sun' in °C",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1.5}},
                "required": ["place"],
                "strict": True,
                "none": None,
                "empty": [{}, []],
            },
        },
    }
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"place": "Köln", "days": "2"}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "one": [turn("user", " Hello,\n  you! ")],
    "system": [turn("system", "Answer in one word."), turn("user", "Où? 🙂"), turn("assistant", " Là.\n"), turn("user", "Why?")],
    "thoughts": [turn("user", "2+2"), turn("assistant", "<think>\n2 and 2\n</think>\n\n4"), turn("user", "3+3"),
                 turn("assistant", "<think>\n\nthree\n\n</think>\nsix")],
    "tools": [turn("user", "Weather in Köln?"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "12 °C", tool_call_id="abcdefghi"),
              turn("tool", "rain", tool_call_id="abcdefghi"), turn("assistant", "It rains."), turn("user", "Thanks.")],
    "null": [turn("user", "Weather?"), turn("assistant", None, tool_calls=[CALL, CALL])],
    "parts": [turn("user", [{"type": "text", "text": "look "}, {"type": "text", "text": " at 'this'"}])],
    "order": [turn("assistant", "first"), turn("user", "second")],
    "empty": [],
}
VARIABLES = {
    "plain": {},
    "prompt": {"add_generation_prompt": True, "enable_thinking": False},
    "tools": {"add_generation_prompt": True, "tools": TOOLS},
    "builtin": {"tools": TOOLS, "builtin_tools": ["weather", "code_interpreter"], "tools_in_user_message": False},
}


class Generation(Extension):
    """{% generation %} marks what a model said; for the text it is nothing."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Raised(Exception):
    pass


def raise_exception(message):
    raise Raised(message)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: form
    return made


def main():
    env = environment()
    rows = []
    for path in sorted(FOLDER.glob("*.jinja")):
        template = env.from_string(path.read_text(encoding="utf-8"))
        for name, messages in CONVERSATIONS.items():
            for kind, more in VARIABLES.items():
                row = {"template": path.name, "conversation": name, "variables": kind}
                try:
                    row["text"] = template.render(messages=messages, bos_token="<s>", eos_token="</s>", **more)
                except Raised as e:
                    row["raised"] = str(e)
                except (jinja2.TemplateError, TypeError):
                    row["error"] = True
                rows.append(row)
    text = json.dumps({"conversations": CONVERSATIONS, "variables": VARIABLES, "rows": rows}, ensure_ascii=False, indent=1)
    (FOLDER / "reference.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(rows)} rows:", *(f"{sum(key in row for row in rows)} {key}" for key in ("text", "raised", "error")))


if __name__ == "__main__":
    main()
