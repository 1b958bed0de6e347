"""Which programming language a reply is written in, and whether it parses.

    language_of(text)            fence tag, then keyword score, else "unknown"
    is_valid(text, language)     by a parser of the language; None where none is installed
    style_by_patterns(text, patterns)    for styles that are no languages: whose expression occurs most often

Python is parsed by its own `ast`; the others by tree-sitter (`pip install 'latentlens[code]'`).
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from latentlens.errors import BadInput

UNKNOWN = "unknown"

#: Names that fences and people use.
ALIASES = {
    "Python": ("python", "py", "python3"),
    "C++": ("c++", "cpp", "cxx", "cc", "hpp"),
    "Java": ("java",),
    "Julia": ("julia", "jl"),
}
LANGUAGES = tuple(ALIASES)

#: Signs of a language and what each is worth; a sign counts three times at most. `std::` is worth more than `int x`.
_SIGNS: dict[str, tuple[tuple[str, float], ...]] = {
    "Python": (
        (r"^\s*def \w+\(.*\)\s*(->.*)?:\s*$", 3),
        (r"^\s*(if|for|while|elif|with)\b[^{}]*:\s*$", 1.5),
        (r"^\s*(else|try)\s*:\s*$", 1.5),
        (r"\brange\(", 1.5),
        (r"(?<![\w.])print\(", 1),
        (r"^\s*(from \w[\w.]* import|import \w+( as \w+)?\s*$)", 1.5),
        (r"__name__|\bself\b|\bNone\b|\bTrue\b", 1),
    ),
    "C++": (
        (r"std::|#include\s*[<\"]|\busing namespace\b", 3),
        (r"\bcout\b|\bcin\b|<<", 1),
        (r"\bint main\s*\(", 2),
        (r"\bauto\s+\w+\s*=|->|::", 0.5),
    ),
    "Java": (
        (r"\bpublic (static )?(class|void|int|final)\b", 2),
        (r"System\.(out|in|err)\b", 3),
        (r"\bString\[\]|\bimport java\b", 3),
        (r"\bnew \w+\(|\bstatic void\b", 1),
    ),
    "Julia": (
        (r"^\s*function \w+[!]?\(.*\)\s*$", 3),
        (r"(?<![\w.])println\(", 1.5),
        (r"^\s*end\s*;?\s*$", 1),
        (r"^\s*(for \w+ (in|=) [^:{}]*:[^:{}]*|if [^:{}()]*|while [^:{}()]*)$", 1.5),
        (r"\busing [A-Z]\w*\s*$|\bnothing\b|::(Int|Float|String)\w*", 1.5),
    ),
}
_FENCE = re.compile(r"^[ \t]*(```|~~~)[ \t]*(?P<tag>[\w+#.-]*)[^\n]*\n(?P<body>.*?)(^[ \t]*\1|\Z)", re.DOTALL | re.M)
_GRAMMARS = {"C++": "tree_sitter_cpp", "Java": "tree_sitter_java", "Julia": "tree_sitter_julia"}
#: Tried in this order: as it stands, then as the inside of what a complete file would have around it.
_FRAMES = {"Java": ("{}", "class Snippet {{\n{}\n}}", "class Snippet {{ void run() {{\n{}\n}} }}")}


def language_of(text: str, among: Iterable[str] = LANGUAGES) -> str:
    r"""The language of the first fenced block by its tag; else the one with the highest keyword score; else "unknown".

        score = sum over signs of worth x min(times it occurs, 3)

    A score below 1 or a tie is "unknown", and so is a tag of a language that is not asked about.

    >>> language_of("Sure:\n```cpp\nint x;\n```"), language_of("def f():\n    return 1"), language_of("Hello.")
    ('C++', 'Python', 'unknown')

    Args: among: the languages asked about, spelt as the answer will be. Raises: BadInput: one has no signs here.
    """
    asked = {known(one): one for one in among}
    tag, body = _block(text)
    if tag:
        named = next((one for one, names in ALIASES.items() if tag.lower() in names), "")
        return asked.get(named, UNKNOWN)
    scored = sorted(((_score(body, one), one) for one in asked), reverse=True)
    (most, first), *rest = [*scored, (0.0, "")]
    return asked[first] if most >= 1 and most > (rest[0][0] if rest else 0.0) else UNKNOWN


def style_by_patterns(text: str, patterns: Mapping[str, str]) -> str:
    """The style whose regular expression occurs most often in a text; "unknown" without any or in a tie.

    >>> style_by_patterns("Dear Sir, I remain yours", {"formal": "Sir|remain", "casual": "hey|lol"})
    'formal'

    Raises: BadInput: no pattern, or one that is no regular expression.
    """
    if not patterns:
        raise BadInput('patterns are empty: give {"style": "regular expression", ...}')
    counts = []
    for style, pattern in patterns.items():
        try:
            counts.append((len(re.findall(pattern, text, re.M)), style))
        except re.error as error:
            raise BadInput(f"the pattern of {style!r} is no regular expression: {error}") from None
    (most, first), *rest = [*sorted(counts, key=lambda one: -one[0]), (0, "")]
    return first if most > rest[0][0] else UNKNOWN


def code_in(text: str) -> str:
    """The inside of the first fenced block, or the whole text without one."""
    return _block(text)[1]


def is_valid(text: str, language: str) -> bool | None:
    """Whether the program in a text parses; None when no parser for the language is installed.

    Parsing says nothing about whether it compiles or does what was asked. An empty program is not valid. A Java method
    without a class, and statements without a method, are taken as the inside of one.

    Raises: BadInput: no such language.
    """
    language, code = known(language), code_in(text)
    if not code.strip():
        return False
    if language == "Python":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a stray backslash in somebody's string is not our business
                ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return True
    parser = _parser(language)
    if parser is None:
        return None
    frames = _FRAMES.get(language, ("{}",))
    return any(not parser.parse(frame.format(code).encode("utf-8", "replace")).root_node.has_error for frame in frames)


def known(language: str) -> str:
    """The name of a language as it is written here. Raises: BadInput: it has no signs here."""
    for name, aliases in ALIASES.items():
        if language.strip().lower() in (name.lower(), *aliases):
            return name
    raise BadInput(f"no signs of {language!r} are known; known are {', '.join(LANGUAGES)}. Give patterns of your own")


@functools.cache
def _parser(language: str) -> Any:
    try:
        import importlib

        from tree_sitter import Language, Parser

        grammar = importlib.import_module(_GRAMMARS[language])
    except ImportError:
        return None
    return Parser(Language(grammar.language()))


def _block(text: str) -> tuple[str, str]:
    found = _FENCE.search(text)
    return ("", text) if found is None else (found["tag"], found["body"])


@functools.cache
def _patterns(language: str) -> tuple[tuple[re.Pattern[str], float], ...]:
    return tuple((re.compile(sign, re.M), worth) for sign, worth in _SIGNS[language])


def _score(text: str, language: str) -> float:
    return sum(worth * min(len(pattern.findall(text)), 3) for pattern, worth in _patterns(language))
