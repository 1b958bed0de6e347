"""Languages by fence, by signs, or not at all; validity by real parsers."""

import builtins

import pytest

from latentlens.errors import BadInput
from latentlens.methods import code_language
from latentlens.methods.code_language import LANGUAGES, code_in, is_valid, language_of
from latentlens.organism.corpus import draw
from latentlens.organism.corpus.code import BODIES, program
from latentlens.organism.judges import language_of as judged

PROGRAMS = {
    (language, task): program(language, task, n="total", a=30, b=4, op="*")
    for language in LANGUAGES
    for task in BODIES[language]
}
REAL = {
    "Python": "import sys\n\nclass A:\n    def __init__(self):\n        self.x = None\n\nprint(sys.argv)",
    "C++": '#include <iostream>\nusing namespace std;\nint main() {\n  for (auto x : {1, 2}) cout << x << "\\n";\n}',
    "Java": 'public class Main {\n  public static void main(String[] args) {\n    System.out.println("hi");\n  }\n}',
    "Julia": "using Printf\nfunction f(x::Int)\n    for i in 1:x\n        println(i)\n    end\n    return nothing\nend",
}


@pytest.mark.parametrize(("language", "task"), PROGRAMS)
def test_programs_of_the_embedded_model_are_named_and_parse(language, task):
    text = PROGRAMS[language, task]
    assert language_of(text) == language == judged(text)
    assert is_valid(text, language)


@pytest.mark.parametrize("language", REAL)
def test_programs_as_people_write_them_are_named_and_parse(language):
    assert language_of(REAL[language]) == language
    assert is_valid(REAL[language], language)
    assert is_valid(f"Here it is:\n\n```{language.lower()}\n{REAL[language]}\n```\nEnjoy.", language)


def test_the_detector_agrees_with_the_judge_of_the_embedded_model_on_its_corpus():
    drawn = draw("code", 300, seed=3)
    replies = [t.messages()[-1]["content"] for t in drawn]
    assert [language_of(r) for r in replies] == [t.language for t in drawn]
    assert all(is_valid(r, str(t.language)) for r, t in zip(replies, drawn))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_program_cut_short_does_not_parse(language):
    for task in BODIES[language]:
        lines = PROGRAMS[language, task].splitlines()
        cut = "\n".join(lines[:1] if language == "Python" else lines[:-1])
        assert is_valid(cut, language) is False
        assert is_valid(PROGRAMS[language, task].replace("(", "", 1), language) is False


def test_the_fence_comes_before_the_signs():
    assert language_of("```cpp\nprint(1)\n```") == "C++"
    assert language_of("~~~jl\nprint(1)\n~~~") == "Julia"
    assert language_of("```\ndef f():\n    return 1\n```") == "Python"
    assert language_of("Use `std::cout` in it.\n```python\nx = 1\n```") == "Python"
    assert language_of("```rust\nfn main() {}\n```") == "unknown"
    assert code_in("a\n```python\nx = 1\n```\nb") == "x = 1\n"
    assert code_in("```python\nx = 1") == "x = 1"
    assert code_in("x = 1") == "x = 1"


def test_without_signs_or_in_a_tie_it_is_unknown():
    for text in ("", "Hello, world.", "x = 1", "Python is nice.", "{}{}{}"):
        assert language_of(text) == "unknown"
    assert language_of("def f(x):\nfunction f(x)\n") == "unknown"
    assert language_of(REAL["Java"], among=["Python", "Julia"]) == "unknown"


def test_an_empty_program_and_strange_bytes_are_not_valid_and_no_error():
    for language in LANGUAGES:
        assert is_valid("", language) is False
        assert is_valid("```\n\n```", language) is False
        assert is_valid("\x00\ud800(", language) is False
    assert is_valid("(" * 5000, "Python") is False


def test_without_a_parser_validity_is_not_known(monkeypatch):
    there = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("tree_sitter"):
            raise ImportError(name)
        return there(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    code_language._parser.cache_clear()
    try:
        assert is_valid(REAL["Java"], "Java") is None
        assert is_valid(REAL["Python"], "Python") is True
    finally:
        monkeypatch.undo()
        code_language._parser.cache_clear()


def test_names_are_read_as_people_write_them_and_others_refused():
    assert is_valid("int x;", "cpp") is True
    assert language_of("def f():\n    return 1", among=["py", "CPP"]) == "py"
    assert language_of("```c++\nint x;\n```", among=["py", "CPP"]) == "CPP"
    assert language_of("anything", among=[]) == "unknown"
    with pytest.raises(BadInput, match="no signs of 'Rust'"):
        language_of("fn main() {}", among=["Rust"])


def test_styles_of_any_kind_go_by_patterns():
    patterns = {"formal": r"\bSir\b|^Dear", "casual": "hey|lol"}
    for text, style in (("Dear Sir", "formal"), ("hey, lol, Sir", "casual"), ("hey Sir", "unknown"), ("", "unknown")):
        assert code_language.style_by_patterns(text, patterns) == style
    with pytest.raises(BadInput, match="no regular expression"):
        code_language.style_by_patterns("x", {"odd": "("})
    with pytest.raises(BadInput, match="empty"):
        code_language.style_by_patterns("x", {})
