"""`--config FILE`: arguments of a command from a TOML file, under the names that they have in Python.

    [probe]                          latentlens probe rows.jsonl --config run.toml --seed 1
    sites = ["resid_post[*]"]        is
    seed = 0                         latentlens probe --sites "resid_post[*]" --seed 0 rows.jsonl --seed 1
    full = true

What stands on the command line comes later, and so wins.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentlens.errors import BadInput


def expanded(arguments: Sequence[str], groups: Sequence[str] = ()) -> list[str]:
    """The arguments with `--config FILE` replaced by what the file says for the command.

    Args: arguments: as typed, without the program's name. groups: commands that have commands of their own, whose
        table is `[group.command]`.
    Raises: BadInput: no file given, none there, no TOML, no table for the command, a value that is no argument.
    """
    kept, file = _taken(list(arguments))
    if file is None:
        return kept
    depth = 2 if kept and kept[0] in groups else 1
    command = kept[:depth]
    if not kept or any(word.startswith("-") for word in command):
        raise BadInput("--config goes with a command: latentlens probe rows.jsonl --config run.toml")
    table = _read(file)
    for word in command:
        if not isinstance(table.get(word), dict):
            raise BadInput(f"{file} has no table [{'.'.join(command)}]; it has {', '.join(table) or 'nothing'}")
        table = table[word]
    options = [part for name, value in table.items() for part in _option(file, name, value)]
    return [*command, *options, *kept[depth:]]


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
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{file} is no TOML: {error}") from None


def _option(file: Path, name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag.removeprefix("--")]
    if isinstance(value, list):
        return [part for one in value for part in _option(file, name, one)]
    if isinstance(value, (str, int, float)):
        return [f"{flag}={value}"]  # one word, so that a value may begin with a dash
    raise BadInput(f"{file}: {name} = {value!r} is no argument of a command")
