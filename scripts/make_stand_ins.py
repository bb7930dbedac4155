#!/usr/bin/env python3
"""Writes llm/text/stand_ins_table.h: the characters that the Oniguruma inside of Hugging Face's tokenizers knows and
Unicode 14.0 (Python 3.11's own database) does not, each with an older one of the same general category and length in
UTF-8, and, where there is one, of the same script and other properties that patterns ask for.

    python3.11 scripts/make_stand_ins.py > llm/text/stand_ins_table.h

It needs the packages tokenizers, regex and unicodedata2.
"""
import sys
import unicodedata

import regex
import unicodedata2
from tokenizers import Regex, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0", "Python 3.11 knows Unicode 14.0, others do not"
SCRIPTS = "Latin Cyrillic Arabic Kannada Lao Devanagari Han Hiragana Katakana Egyptian_Hieroglyphs Common Inherited".split()
PROPERTIES = "Alphabetic Lowercase Emoji Extended_Pictographic".split()
# Older ones that have become Alphabetic or Lowercase since.
CHANGED = [(0x363, 0x36F), (0xC04, 0xC04), (0xF82, 0xF83), (0x1DD3, 0x1DE6), (0x11080, 0x11081), (0x10FC, 0x10FC)]
CHANGED += [(0xA7F2, 0xA7F4), (0xAB69, 0xAB69), (0x1171E, 0x1171E)]
unassigned = pre_tokenizers.Split(Regex(r"\p{Cn}"), "removed")
characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]


def changed(character):
    return any(first <= ord(character) <= last for first, last in CHANGED)


def kinds(character):
    """What a stand-in must be like, the best kind first."""
    must = unicodedata2.category(character), len(character.encode())
    script = next((s for s in SCRIPTS if regex.match(r"\p{Script=%s}" % s, character)), "other")
    properties = tuple(bool(regex.match(r"\p{%s}" % p, character)) for p in PROPERTIES)
    return [(must, script, properties), (must, "other", properties), (must, "any", properties), (must, script), (must,)]


older = {}  # the first of each kind
for c in characters:
    if unicodedata.category(c) in ("Cn", "Co") or unicodedata.category(c) != unicodedata2.category(c) or changed(c):
        continue
    of_c = kinds(c)
    for kind in [of_c[0], (of_c[0][0], "any", of_c[0][2])] + of_c[3:]:
        older.setdefault(kind, c)

ranges = []
for c in characters:
    if not changed(c) and (unicodedata.category(c) != "Cn" or not unassigned.pre_tokenize_str(c)):
        continue
    stand_in = ord(next(older[kind] for kind in kinds(c) if kind in older))
    if ranges and ranges[-1][1] == ord(c) - 1 and ranges[-1][2] == stand_in:
        ranges[-1][1] = ord(c)
    else:
        ranges.append([ord(c), ord(c), stand_in])

print("// Written by scripts/make_stand_ins.py: what Unicode 15.0 to 16.0 added, and older characters that they changed.")
print("#pragma once\n#include <cstdint>\n\nnamespace llm {\n\n// clang-format off")
print("struct StandIn { uint32_t first, last, older; };")
print("inline constexpr StandIn kStandIns[] = {")
for i in range(0, len(ranges), 5):
    print("    " + " ".join("{0x%X, 0x%X, 0x%X}," % tuple(r) for r in ranges[i : i + 5]))
print("};\n// clang-format on\n\n}  // namespace llm")
