"""Cosines of several directions beside what chance gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentlens.values.markup import Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class CosineMap(Shown):
    """Cosine of every direction with every other.

    names: of the directions. cosines: (k, k). chance: expected |cosine| of random directions, sqrt(2 / (pi d)).
    mean: mean |cosine| of all pairs.
    """

    names: tuple[str, ...]
    cosines: NDArray[np.float64]
    chance: float
    mean: float
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """A square frame with the names on both sides."""
        import pandas as pd

        frame = pd.DataFrame(self.cosines, index=list(self.names), columns=list(self.names))
        frame.attrs["chance |cosine|"] = self.chance
        return frame

    def __repr__(self) -> str:
        return (
            f"CosineMap({len(self.names)} directions: mean |cosine| {self.mean:.3f}, by chance {self.chance:.3f}, "
            f"{self.mean / self.chance:.1f} times as much)"
        )
