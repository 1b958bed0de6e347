"""Text from a model, made safe to look at.

A model can write anything: terminal escape codes, marks that turn the reading order of a line around,
characters of no width. Shown raw, the person does not see what is there.
"""

import unicodedata

# Control (ESC), format (bidirectional marks, zero width), lone surrogates, private use, line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def visible(text: str) -> str:
    r"""The text with every invisible or reordering character written out; newlines and tabs stay.

    >>> visible("abc\u202edcb\x1b[31m")
    'abc[U+202E]dcb[U+001B][31m'
    """
    return "".join(f"[U+{ord(c):04X}]" if c not in "\n\t" and unicodedata.category(c) in _HIDDEN else c for c in text)
