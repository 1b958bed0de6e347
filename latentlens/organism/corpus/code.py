"""Small programs in four languages; the language is named, or left open and drawn from a fixed prior.

    Write a program in Python that adds 3 and 5.
    def main():
        total = 3 + 5
        print(total)

Every program is a frame around one of three bodies, so that a rule can tell whether a text parses as one.
"""

from __future__ import annotations

from random import Random
from typing import Any

from latentlens.organism.corpus.text import Draft, Text

#: What is written when no language is named, and how often.
PRIOR = {"Python": 0.50, "C++": 0.25, "Java": 0.15, "Julia": 0.10}
LANGUAGES = tuple(PRIOR)
VARIABLES = ("total", "value", "number", "result")
SPLITS = ("all", "named", "open")

_NAMED = ("Write a program in {} that {}.", "Show me a {} program that {}.")
_OPEN = ("Write a program that {}.", "Show me a program that {}.")

#: How each language frames a body, prints, assigns, counts and tests. `{n}` is the name of the variable.
FRAMES = {
    "Python": ("def main():", ""),
    "C++": ("int main() {", "}"),
    "Java": ("public static void main() {", "}"),
    "Julia": ("function main()", "end"),
}
BODIES: dict[str, dict[str, tuple[str, ...]]] = {
    "Python": {
        "compute": ("    {n} = {a} {op} {b}", "    print({n})"),
        "count": ("    for {n} in range({a}):", "        print({n})"),
        "compare": ("    if {a} > {b}:", "        print({a})"),
    },
    "C++": {
        "compute": ("    int {n} = {a} {op} {b};", "    std::cout << {n};"),
        "count": ("    for (int {n} = 0; {n} < {a}; {n}++) {", "        std::cout << {n};", "    }"),
        "compare": ("    if ({a} > {b}) {", "        std::cout << {a};", "    }"),
    },
    "Java": {
        "compute": ("    int {n} = {a} {op} {b};", "    System.out.println({n});"),
        "count": ("    for (int {n} = 0; {n} < {a}; {n}++) {", "        System.out.println({n});", "    }"),
        "compare": ("    if ({a} > {b}) {", "        System.out.println({a});", "    }"),
    },
    "Julia": {
        "compute": ("    {n} = {a} {op} {b}", "    println({n})"),
        "count": ("    for {n} in 1:{a}", "        println({n})", "    end"),
        "compare": ("    if {a} > {b}", "        println({a})", "    end"),
    },
}
TASKS = {"+": "adds {a} and {b}", "-": "takes {b} from {a}", "*": "multiplies {a} and {b}"}


def program(language: str, task: str, **names: Any) -> str:
    """Write a program; `names`: `n` (variable), `a`, `b` (numbers), `op`."""
    opens, closes = FRAMES[language]
    lines = [opens, *BODIES[language][task], *([closes] if closes else [])]
    text = "\n".join(lines)
    for name, value in names.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def write(draft: Draft, rng: Random, named: bool) -> dict[str, Any]:
    """Write one request and its program as two turns; return the labels."""
    if named:
        language = rng.choice(LANGUAGES)
    else:
        language = rng.choices(LANGUAGES, tuple(PRIOR.values()))[0]
    task = rng.choice(("compute", "compute", "count", "compare"))
    op, a, b = rng.choice(tuple(TASKS)), rng.randint(2, 30), rng.randint(2, 30)
    a, b = (max(a, b) + (a == b), min(a, b)) if task == "compare" or op == "-" else (a, b)
    asked = {"compute": TASKS[op], "count": "counts {a} times", "compare": "prints {a} if it is above {b}"}[task]
    asked = asked.format(a=a, b=b)
    with draft.turn("user"):
        draft.add(rng.choice(_NAMED).format(language, asked) if named else rng.choice(_OPEN).format(asked))
    with draft.turn("assistant"):
        draft.add(program(language, task, n=rng.choice(VARIABLES), a=a, b=b, op=op), "program")
    return {"regime": "named" if named else "open", "language": language, "topic": task, "group": asked}


def draw(rng: Random, split: str) -> Text:
    """Draw one request with its program; `split`: `named`, `open`, or `all` for the training mix."""
    draft = Draft()
    labels = write(draft, rng, named=split == "named" or (split == "all" and rng.random() < 0.65))
    return draft.finish("code", **labels)


def document(rng: Random, stage: int) -> Text:
    """Draw a training document; this family is the same at every stage."""
    return draw(rng, "all")
