"""`--config FILE`: arguments of a command from a TOML file, under the names that they have in Python.

    [probe]                          latentlens probe --config run.toml --seed 1
    data = "rows.jsonl"              is
    sites = ["resid_post[*]"]        latentlens probe rows.jsonl --sites "resid_post[*]" --full --seed 1
    full = true
    seed = 0

What stands on the command line wins: the file gives defaults, options and positional arguments alike.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from latentlens.errors import BadInput


def configured(
    arguments: Sequence[str], command: Any, parameters: Callable[[str], Sequence[Any]] | None = None
) -> tuple[list[str], dict[str, Any]]:
    """The arguments without `--config FILE`, and what the file says as defaults of the command.

    Args: arguments: as typed, without the program's name. command: the command line, as click has it; a command that
        has commands of its own has a table for each of these, `[cache.stats]`. parameters: those of an experiment, by
        the name of its command.
    Returns: arguments; defaults nested as the commands are, for click's `default_map`.
    Raises: BadInput: no file given, none there, no TOML, no table for the command, a name that is no argument of it, a
        value of another kind.
    """
    kept, file = _taken(list(arguments))
    if file is None:
        return kept, {}
    words = []
    while len(words) < len(kept) and kept[len(words)] in getattr(command, "commands", {}):
        command = command.commands[kept[len(words)]]
        words.append(kept[len(words)])
    if not words or getattr(command, "commands", {}):
        raise BadInput("--config goes with a command: latentlens probe rows.jsonl --config run.toml")
    table = _read(file)
    for word in words:
        if not isinstance(table.get(word), dict):
            raise BadInput(f"{file} has no table [{'.'.join(words)}]; it has {', '.join(table) or 'nothing'}")
        table = table[word]
    known = parameters(words[0]) if parameters and command.context_settings.get("allow_extra_args") else command.params
    defaults = _defaults(file, " ".join(words), table, known)
    for word in reversed(words):
        defaults = {word: defaults}
    return kept, defaults


def _taken(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The arguments without `--config`, and its file."""
    for i, word in enumerate(arguments):
        if word.startswith("--config="):
            return arguments[:i] + arguments[i + 1 :], Path(word.removeprefix("--config="))
        if word == "--config":
            if i + 1 == len(arguments):
                raise BadInput("--config needs a file")
            return arguments[:i] + arguments[i + 2 :], Path(arguments[i + 1])
    return arguments, None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is no TOML: {error}") from None


def _defaults(file: Path, command: str, table: dict[str, Any], known: Sequence[Any]) -> dict[str, Any]:
    """Values by the names that click has for the parameters; the file may use these or the options' own."""
    names = {alias: one for one in known if one.name != "help" for alias in _names(one)}
    found = {}
    for name, value in table.items():
        one = names.get(name.replace("-", "_"))
        if one is None:
            allowed = ", ".join(dict.fromkeys(_names(p)[-1] for p in names.values()))
            raise BadInput(f"{file}: {name} is no argument of `latentlens {command}`; it has {allowed}")
        several = getattr(one, "multiple", False) or one.nargs != 1
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            raise BadInput(f"{file}: {name} = {value!r}: `latentlens {command}` takes one value there")
        found[one.name] = [value] if several and not isinstance(value, list) else value
    return found


def _names(parameter: Any) -> list[str]:
    """What a parameter may be called in a file, the name of its option last."""
    options = [o.removeprefix("--").replace("-", "_") for o in parameter.opts if o.startswith("--")]
    return [parameter.name, *reversed(options)]
