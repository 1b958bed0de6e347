"""Directions side by side: cosines over concepts, data sets, methods and layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from latentlens.errors import BadInput
from latentlens.values.directions import Direction

if TYPE_CHECKING:
    import pandas as pd


def cosines(directions: Mapping[str, Direction]) -> pd.DataFrame:
    """Cosine of every direction with every other, a square frame with the names given.

    Between sites the cosine compares coordinates of the residual stream that both share; of random directions in d
    dimensions its standard deviation is 1 / sqrt(d), which the frame carries as `attrs["random sd"]`.

    Raises: BadInput: none given, or different widths or frames.
    """
    import pandas as pd

    if not directions:
        raise BadInput("no directions to compare: give a mapping of names to Directions")
    names = list(directions)
    frame = pd.DataFrame(
        [[directions[a].cosine(directions[b]) for b in names] for a in names], index=names, columns=names
    )
    frame.attrs["random sd"] = directions[names[0]].vector.numel() ** -0.5
    return frame
