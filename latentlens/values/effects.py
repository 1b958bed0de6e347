"""What edits did to the rollouts they were in force for: how often, how much, and how far the predictions moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentlens.values.interventions import Intervention
from latentlens.values.markup import Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class EditCount:
    """One intervention in one rollout: the states it changed, their median |delta|, and median |delta| / |h|."""

    rollout: int
    edit: Intervention
    fired: int
    delta_norm: float
    relative_norm: float


@dataclass(frozen=True, eq=False)
class EditEffect(Shown):
    """Per rollout and intervention how often it fired and how much it moved; per token the KL to the unsteered model.

    kl: per rollout, KL(steered || unsteered) in nats of the distribution that each generated token was drawn from.
    edits: one EditCount per rollout and intervention at one site.
    """

    kl: tuple[np.ndarray, ...]
    edits: tuple[EditCount, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a rollout: tokens, mean, 95th percentile and maximum KL (nats), edits fired, median |delta| / |h|."""
        import pandas as pd

        rows = []
        for i, kl in enumerate(self.kl):
            mine = [edit for edit in self.edits if edit.rollout == i]
            rows.append(
                {
                    "rollout": i,
                    "tokens": len(kl),
                    "kl_mean": float(kl.mean()) if len(kl) else 0.0,
                    "kl_p95": float(np.quantile(kl, 0.95)) if len(kl) else 0.0,
                    "kl_max": float(kl.max()) if len(kl) else 0.0,
                    "fired": sum(edit.fired for edit in mine),
                    "relative_norm": _median([edit.relative_norm for edit in mine if edit.fired]),
                }
            )
        return pd.DataFrame(rows)

    def by_edit(self) -> pd.DataFrame:
        """One row a rollout and intervention: site, states changed, median |delta| and |delta| / |h|."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "rollout": edit.rollout,
                    "edit": repr(edit.edit),
                    "site": str(edit.edit.site),
                    "fired": edit.fired,
                    "delta_norm": edit.delta_norm,
                    "relative_norm": edit.relative_norm,
                }
                for edit in self.edits
            ]
        )

    def __repr__(self) -> str:
        tokens = np.concatenate(self.kl) if self.kl else np.zeros(0)
        silent = sum(edit.fired == 0 for edit in self.edits)
        p95 = float(np.quantile(tokens, 0.95)) if len(tokens) else 0.0
        size = _median([edit.relative_norm for edit in self.edits if edit.fired])
        return (
            f"EditEffect({len(self.kl)} rollouts, {len(tokens)} tokens: KL to unsteered p95 {p95:.3g} nats, "
            f"median |delta|/|h| {size:.3g}, {silent} of {len(self.edits)} edits never fired)"
        )


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0
