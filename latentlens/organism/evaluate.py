"""Measure every planted effect, with n and a 95% interval, and compare it with its band.

    python -m latentlens.organism.evaluate          prints the table; exit code 1 if a planted effect is missing
    python -m latentlens.organism.evaluate --card   also puts the table into the model card

What is measured stands in `latentlens/organism/evaluation`, one file for each family.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from latentlens.errors import BadInput
from latentlens.organism import readout
from latentlens.organism.evaluation import arithmetic, families, steering, topics, truth
from latentlens.organism.evaluation.rows import Row, table
from latentlens.organism.files import verify
from latentlens.organism.readout import Readout

OPENS, CLOSES = "<!-- table -->", "<!-- end of table -->"

MEASURES: dict[str, tuple[Callable[[Readout], list[Row]], ...]] = {
    "arithmetic": (arithmetic.regimes, arithmetic.traces),
    "truth": (truth.answers, truth.probes, steering.truth),
    "topics": (topics.unsteered, topics.detours, topics.off_topic, steering.topics),
    "code": (families.code, steering.languages),
    "traits": (families.traits, steering.traits),
    "refusal": (families.refusal, steering.refusal),
    "chats": (families.chats,),
}


def evaluate(folder: Path, only: Sequence[str] = ()) -> list[Row]:
    """Run the measurements on the model in `folder`; `only`: families (none given: all).

    Raises: BadInput: unknown family. WeightsCorrupt: the folder's files are not what they were.
    """
    for name in only:
        if name not in MEASURES:
            raise BadInput(f"nothing is measured of {name!r}; choose from {', '.join(MEASURES)}")
    model = readout.load(verify(folder))
    return [row for name in only or MEASURES for measure in MEASURES[name] for row in measure(model)]


def renew(card: Path, rows: Sequence[Row]) -> None:
    """Put the table of `rows` into a model card, between its marks.

    Raises: BadInput: the card has no marks.
    """
    before, opens, rest = card.read_text().partition(OPENS)
    _, closes, after = rest.partition(CLOSES)
    if not (opens and closes):
        raise BadInput(f"{card} has no {OPENS} and {CLOSES} between which the table could go")
    card.write_text(f"{before}{OPENS}\n{table(rows)}\n{CLOSES}{after}")


def main(arguments: Sequence[str] = ()) -> int:
    """Print the table; return 1 if a planted effect is missing, else 0."""
    parser = argparse.ArgumentParser(description="Measure every planted effect of the embedded model.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--only", nargs="*", default=(), help="families to measure (default: all)")
    parser.add_argument("--card", action="store_true", help="put the table into the folder's MODEL_CARD.md")
    given = parser.parse_args(list(arguments))
    if given.card and given.only:
        parser.error("--card needs the whole table: leave --only out")
    rows = evaluate(given.folder, given.only)
    print(table(rows))
    if given.card:
        renew(given.folder / "MODEL_CARD.md", rows)
    missing = [r.name for r in rows if not r.holds]
    print(f"\n{len(missing)} planted effect(s) missing" + "".join(f"\n  {name}" for name in missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
