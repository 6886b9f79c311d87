"""The spellings of a text: one definition for torch's codec and for a bundle's, which must give the same tokens."""

import re
from unicodedata import category, normalize

# re's \w leaves out the marks that a word is written with: vowel signs of Hindi, points of Hebrew.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x20000)) if category(c)[0] == "M")
_WORD = re.compile(rf"\w[\w{_MARKS}]*")


def spellings(text: str) -> set[str]:
    """The words of a text and their character 2- to 6-grams, < and > at a word's ends (fastText, Bojanowski 2017)."""
    found = set()
    for word in _WORD.findall(normalize("NFC", text).casefold()):
        framed = f"<{word}>"
        found.add(word)
        found |= {framed[i : i + n] for n in range(2, 7) for i in range(len(framed) - n + 1)}
    return found
