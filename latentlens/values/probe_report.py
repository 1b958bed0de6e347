"""What a serious report on a linear probe holds: ten parts, each a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latentlens.errors import BadInput
from latentlens.values.directions import Direction
from latentlens.values.markup import Html, Shown, note, table, tag
from latentlens.values.results import Estimate

if TYPE_CHECKING:
    import pandas as pd

PARTS = {
    "folds": "1. grouped, nested cross-validation: what each outer fold chose",
    "scores": "2. scores on rows never used for choosing",
    "chance": "3. permutation test over sites, highest of all sites",
    "controls": "4. control task, selectivity and shuffled labels",
    "calibration": "5. calibration",
    "layers": "6. every site, and baselines without the model",
    "aggregation": "7. how tokens are joined",
    "transfer": "8. transfer to other data",
    "samples": "9. fewer rows and rarer positives",
    "causal": "10. does the direction cause anything?",
}


@dataclass(frozen=True, eq=False)
class ProbeReport(Shown):
    """A concept probe examined. Made by `latentlens.methods.probe_report.probe_report`.

    auroc: of the pooled out-of-fold scores of the whole procedure (site and C chosen inside each fold), with its
        interval; n counts rows. p: of the permutation test for the best of all sites. direction: the probe refitted
        on all rows at the site chosen most often. rows: part name -> rows of its table; a part that could not be
        made is absent, and `missing` says what to give. about: settings. reliability: for probabilities "as fitted" and
        "with temperature", per bin their mean, and the share of label 1 with its Wilson interval.
    """

    auroc: Estimate
    p: float
    direction: Direction
    classes: tuple[str, str]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    missing: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)
    reliability: Mapping[str, Sequence[tuple[float, Estimate]]] = field(default_factory=dict)

    def table(self, part: str) -> pd.DataFrame:
        """One part, a frame with Estimates as cells.

        Raises: BadInput: no such part, or it could not be made; the message says what to give.
        """
        import pandas as pd

        if part not in PARTS:
            raise BadInput(f"no part {part!r}; the parts are {', '.join(PARTS)}")
        if part not in self.rows:
            raise BadInput(f"part {part!r} was not made: {self.missing.get(part, 'nothing to show')}")
        return pd.DataFrame(list(self.rows[part]))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every part that was made, by its heading, in order."""
        return {heading: self.table(part) for part, heading in PARTS.items() if part in self.rows}

    def to_frame(self) -> pd.DataFrame:
        """All parts in one long frame: part, row, column, value, low, high, n."""
        import pandas as pd

        out = []
        for part, rows in self.rows.items():
            for i, row in enumerate(rows):
                for column, value in row.items():
                    ends = (value.value, value.low, value.high, value.n) if isinstance(value, Estimate) else (value,)
                    ends = (*ends, None, None, None)[:4]
                    out.append(
                        dict(zip(("part", "row", "column", "value", "low", "high", "n"), (part, i, column, *ends)))
                    )
        return pd.DataFrame(out)

    def __repr__(self) -> str:
        missing = f"; not made: {', '.join(self.missing)}" if self.missing else ""
        return (
            f"ProbeReport({self.classes[1]!r} against {self.classes[0]!r}: AUROC {self.auroc}, permutation "
            f"p={self.p:.3g}, {self.direction!r}{missing})"
        )

    def _html_parts(self) -> list[Html]:
        shown = [part for heading, frame in self.tables().items() for part in (tag("h4", heading), table(frame))]
        return [*shown, *(note(f"{PARTS[part]}: {why}") for part, why in self.missing.items())]
