"""Options that several commands and experiments share, and what they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlens.errors import BadInput

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

Texts = Annotated[list[str] | None, typer.Argument(help="Texts, read as they are.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="File of inputs: .txt (a text a line), .jsonl (objects with `text` or `messages`), .csv, .parquet."
    ),
]
Chat = Annotated[bool, typer.Option(help="Put each text to the model as a user's turn of a chat.")]
Model = Annotated[str | None, typer.Option(help="Hub id or folder; the embedded model if left out.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own if left out.")]
Quantization = Annotated[str | None, typer.Option(help="int8 or nf4 (bitsandbytes).")]
DeviceMap = Annotated[str | None, typer.Option(help="As in transformers, e.g. auto.")]
Sites = Annotated[list[str], typer.Option(help="Where in the model; may be repeated.")]
Where = Annotated[str, typer.Option(help="Which positions: last, all, prompt, response, role:user, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]

# What the experiments on traits share.
Traits = Annotated[list[Path] | None, typer.Option(help="trait files, for another model")]
Judge = Annotated[str, typer.Option(help="judging model, for another model; itself by default")]
JudgeUrl = Annotated[str, typer.Option(help="OpenAI-compatible server of the judge; key in OPENAI_API_KEY")]
Budget = Annotated[int, typer.Option(help="requests that the server may be sent")]
Length = Annotated[int, typer.Option(help="tokens of an answer at most")]
LeastCoherence = Annotated[float, typer.Option(help="mean coherence that a setting must keep")]
# What the parts of a study of steering resistance share.
Schedule = Annotated[str, typer.Option(help="persistent or transient")]
StudyFolder = Annotated[Path, typer.Option(help="of the study: what steering/esr.py was given")]


def load(
    model: str | None, dtype: str | None, quantization: str | None, device_map: str | None, *, cache: bool = True
) -> LensModel:
    """Load the model that the options name."""
    from latentlens.access.model import load as load_model

    chosen: Any = quantization
    return load_model(model, dtype=dtype, quantization=chosen, device_map=device_map, cache=cache)


def inputs(texts: list[str] | None, data: Path | None, chat: bool = False) -> list[Any]:
    """Texts and chats from the command line and from a file, in order.

    Raises: BadInput: nothing was given.
    """
    found: list[Any] = [*(texts or []), *([row["input"] for row in rows(data)] if data else [])]
    if not found:
        raise BadInput("no input: give texts, or a file with --data")
    return [[{"role": "user", "content": one}] if chat and isinstance(one, str) else one for one in found]


def place(path: Path | None, *kinds: str) -> None:
    """Look before a long computation whether its result can be written there.

    Args: kinds: endings that the file may have, "" for a folder; any if none is named.
    Raises: BadInput: another ending, or no folder to put it in.
    """
    if path is None:
        return
    if kinds and path.suffix not in kinds:
        named = [f"a file ending in {kind}" for kind in kinds if kind] + (["a folder"] if "" in kinds else [])
        raise BadInput(f"{path}: give {' or '.join(named)}")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path} cannot be written: there is no folder {path.parent}")


def rows(path: Path) -> list[dict[str, Any]]:
    """Read a file of examples; `input` of each row is its `messages`, `text` or `prompt`, the rest is as in the file.

    Raises: BadInput: no such file, another kind of file, a row without an input, a line that is no JSON object.
    """
    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    kind = path.suffix.lower()
    if kind == ".txt":
        return [{"input": line} for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if kind in (".jsonl", ".ndjson"):
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        read = [_object(path, number, line) for number, line in lines if line.strip()]
    elif kind in (".csv", ".parquet"):
        import pandas as pd

        frame = pd.read_csv(path) if kind == ".csv" else pd.read_parquet(path)
        read = frame.to_dict("records")
    else:
        raise BadInput(f"{path}: give .txt, .jsonl, .csv or .parquet")
    return [{**row, "input": _input(path, number, row)} for number, row in enumerate(read, 1)]


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}, line {number}, is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadInput(f'{path}, line {number}, is no JSON object: write {{"text": ...}}')
    return value


def _input(path: Path, number: int, row: dict[str, Any]) -> Any:
    for name in ("messages", "text", "prompt"):
        if name in row:
            value = row[name]
            return value if isinstance(value, str) else list(value)
    raise BadInput(f"{path}, row {number}, has none of `messages`, `text` and `prompt`; it has {', '.join(row)}")


def show(value: dict[str, Any]) -> None:
    """Print a JSON object; numbers that JSON does not know (NaN) become null."""
    print(json.dumps(_plain(value), ensure_ascii=False, indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and value - value != 0:
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
