#!/usr/bin/env python3
"""Writes llm/text/nfc_table.h: what Unicode's composition (NFC) needs, from Python's own copy of the Unicode database.

    scripts/make_nfc_table.py > llm/text/nfc_table.h
"""
import sys
import unicodedata


def rows(items, per_line):
    for i in range(0, len(items), per_line):
        print("    " + ", ".join(items[i : i + per_line]) + ",")


classes, decompositions = [], []
for code in range(sys.maxunicode + 1):
    character = chr(code)
    if 0xD800 <= code <= 0xDFFF or 0xAC00 <= code <= 0xD7A3:
        continue
    if unicodedata.combining(character):
        if classes and classes[-1][1] == code - 1 and classes[-1][2] == unicodedata.combining(character):
            classes[-1][1] = code
        else:
            classes.append([code, code, unicodedata.combining(character)])
    mapping = unicodedata.decomposition(character)
    if mapping and not mapping.startswith("<"):
        parts = [int(p, 16) for p in mapping.split()]
        first, second = (parts + [0])[:2]
        composes = second != 0 and unicodedata.normalize("NFC", chr(first) + chr(second)) == character
        decompositions.append((code, first, second, int(composes)))

print(f"// Written by scripts/make_nfc_table.py from Unicode {unicodedata.unidata_version}.")
print("#pragma once\n#include <cstdint>\n\nnamespace llm {\n\n// clang-format off")
print("struct CombiningClass { uint32_t first, last; uint8_t value; };")
print("inline constexpr CombiningClass kCombiningClasses[] = {")
rows(["{0x%X, 0x%X, %d}" % tuple(c) for c in classes], 6)
print("};\n\n// Canonical decompositions, one step, Hangul left out; `composes`: the two become the one again.")
print("struct Decomposition { uint32_t code, first, second; bool composes; };")
print("inline constexpr Decomposition kDecompositions[] = {")
rows(["{0x%X, 0x%X, 0x%X, %d}" % d for d in decompositions], 5)
print("};\n// clang-format on\n\n}  // namespace llm")
