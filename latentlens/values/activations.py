"""Values at sites x rows, every row labelled.

One row per selected token (`pool=None`) or per pooled span. `acts["resid_post[5]"]` is a tensor;
`acts.to_frame()` is the table of labels, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentlens.errors import BadInput, SiteNotFound
from latentlens.values.markup import Shown, table
from latentlens.values.sites import Site, block_indices, parse

if TYPE_CHECKING:
    import datasets
    import pandas as pd

LABELS = ("text", "position", "stop", "token_id", "token", "role", "turn", "generated", "special")


@dataclass(frozen=True, eq=False)
class Activations(Shown):
    """What a model held at some sites, for some tokens of some texts.

    values: per site a tensor (n_rows, d); heads (`z`) are (n_rows, n_heads, d_head).
    labels: per column one value per row. `text` is the index of the input, `position` the first
        position of the row in the unpadded text and `stop` the one past its last (`position + 1`
        unless pooled); `token_id`, `token`, `role`, `turn`, `generated`, `special` describe the token at
        `stop - 1`.
    about: provenance: model, weights, dtype, attention, interventions, versions, forwards run.
    """

    values: Mapping[Site, Tensor]
    labels: Mapping[str, np.ndarray]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Every site and every label column has the same number of rows."""
        lengths = {len(v) for v in self.values.values()} | {len(v) for v in self.labels.values()}
        if len(lengths) > 1:
            raise BadInput(f"sites and labels differ in their number of rows: {sorted(lengths)}")

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites held, in the order of computation."""
        return tuple(self.values)

    def __len__(self) -> int:
        return len(next(iter(self.values.values()))) if self.values else 0

    def __iter__(self) -> Iterator[Site]:
        return iter(self.values)

    def __contains__(self, spec: Any) -> bool:
        try:
            self[spec]
        except (SiteNotFound, BadInput):
            return False
        return True

    def __getitem__(self, spec: Site | str) -> Tensor:
        """Values at one site: a Site or its spelling; negative blocks count from the last block held.

        Raises: SiteNotFound: not captured; the message lists what is held.
        """
        found = self._find(spec)
        if len(found) != 1:
            raise SiteNotFound(
                f"{spec} names {len(found)} of the sites held; for several use acts.stack({str(spec)!r})"
            )
        return self.values[found[0]]

    def stack(self, spec: str | Sequence[Site | str] | None = None) -> Tensor:
        """Several sites of equal width as one tensor (n_sites, n_rows, d); all of them by default."""
        sites = list(self.values) if spec is None else self.expand(spec)
        shapes = {tuple(self.values[s].shape[1:]) for s in sites}
        if len(shapes) != 1:
            raise BadInput(f"sites of different widths cannot be stacked: {shapes}")
        return torch.stack([self.values[s] for s in sites])

    def rows(self, keep: Any) -> Activations:
        """The rows chosen by a boolean mask or an index array, at every site."""
        keep = np.asarray(keep)
        index = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(int)
        at = torch.as_tensor(index)
        values = {site: v[at] for site, v in self.values.items()}
        return Activations(values, {k: v[index] for k, v in self.labels.items()}, self.about)

    def to_frame(self, sites: Any = ()) -> pd.DataFrame:
        """The labels as a pandas frame; with `sites`, a column of vectors for each."""
        import pandas as pd

        frame = pd.DataFrame({name: list(column) for name, column in self.labels.items()})
        for site in self.expand(sites):
            frame[str(site)] = list(self.values[site].float().numpy())
        return frame

    def to_dataset(self) -> datasets.Dataset:
        """Labels and every site as a Hugging Face dataset (one column a site, float32 lists)."""
        import datasets

        columns: dict[str, Any] = {name: column.tolist() for name, column in self.labels.items()}
        columns |= {str(site): v.float().flatten(1).numpy() for site, v in self.values.items()}
        return datasets.Dataset.from_dict(columns)

    def expand(self, spec: Any) -> list[Site]:
        """The sites held that a spelling, a Site or a list of these names.

        Raises: SiteNotFound.
        """
        if isinstance(spec, (str, Site)):
            return self._find(spec)
        return [site for one in spec for site in self._find(one)]

    def _find(self, spec: Site | str) -> list[Site]:
        if isinstance(spec, Site):
            found = [spec] if spec in self.values else []
        else:
            read = parse(spec)
            point, blocks = read if read is not None else ("", None)
            held = [s for s in self.values if s.point == point]
            if blocks is None or not held:
                found = held
            else:
                count = self.about.get("n_blocks") or max(s.block or 0 for s in held) + 1
                wanted = set(block_indices(blocks, count))
                found = [s for s in held if s.block in wanted]
        if not found:
            raise SiteNotFound(f"{spec} was not captured. Held: {self._summary()}")
        return found

    def _summary(self) -> str:
        by_point: dict[str, list[int]] = {}
        for site in self.values:
            by_point.setdefault(site.point, []).append(-1 if site.block is None else site.block)
        parts = []
        for point, blocks in by_point.items():
            if blocks == [-1]:
                parts.append(point)
            elif blocks == list(range(blocks[0], blocks[-1] + 1)) and len(blocks) > 2:
                parts.append(f"{point}[{blocks[0]}:{blocks[-1] + 1}]")
            else:
                parts.append(f"{point}[{','.join(map(str, blocks))}]")
        return ", ".join(parts)

    def __repr__(self) -> str:
        n_texts = len(np.unique(self.labels["text"])) if "text" in self.labels else "?"
        first = next(iter(self.values.values()), torch.empty(0, 0))
        size = sum(v.numel() * v.element_size() for v in self.values.values())
        return (
            f"Activations({self._summary()}; {len(self)} rows of {n_texts} texts, d={tuple(first.shape[1:])}, "
            f"{str(first.dtype).removeprefix('torch.')}, {size / 2**20:.1f} MiB)"
        )

    def _html_parts(self) -> tuple[Any, ...]:
        frame = self.to_frame()
        if self.values and len(self):
            site = self.sites[-1]
            frame[f"|{site}|"] = self.values[site].float().flatten(1).norm(dim=-1).tolist()
        return (table(frame, 8),)
