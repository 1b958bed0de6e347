"""A vector at a site: the shared currency of probes, personas, latents and mean differences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from latentlens.errors import BadInput, CacheVersion, UnsafeFile
from latentlens.values.markup import Shown, facts
from latentlens.values.sites import Site, block_indices, parse

_SCHEMA = 1
_FRAMES = ("raw", "centred")


@dataclass(frozen=True, eq=False)
class Direction(Shown):
    """A vector at a site, with its frame.

    vector: (d,), kept in float32. site: where it lives, `Site("resid_post", 3)` or `"resid_post[3]"`.
    frame: "raw" (the model's own coordinates) or "centred" (each state minus its mean over d_model, as TransformerLens
        and the SAEs trained on it see GPT-2). Raw and centred do not mix: `to_raw()` converts.
    source: how it was found, for people and manifests.

    Raises: BadInput: not one-dimensional, empty, non-finite, or a zero vector.
    """

    vector: Tensor
    site: Site
    name: str = ""
    frame: str = "raw"
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Cast to float32 on the CPU, copy, and check."""
        vector = torch.as_tensor(self.vector).detach().to("cpu", torch.float32).clone()
        if vector.ndim != 1 or vector.numel() == 0:
            raise BadInput(f"a direction is one vector of shape (d,), not {tuple(vector.shape)}")
        if not torch.isfinite(vector).all():
            raise BadInput(f"direction {self.name!r} has NaN or infinite entries")
        if not vector.any():
            raise BadInput(f"direction {self.name!r} is the zero vector: it points nowhere")
        if self.frame not in _FRAMES:
            raise BadInput(f"frame={self.frame!r}: allowed are {', '.join(_FRAMES)}")
        object.__setattr__(self, "vector", vector)
        object.__setattr__(self, "site", as_site(self.site))
        object.__setattr__(self, "source", MappingProxyType(dict(self.source)))

    @property
    def norm(self) -> float:
        """Euclidean length of the vector."""
        return float(self.vector.norm())

    @property
    def unit(self) -> Tensor:
        """The vector divided by its length."""
        return self.vector / self.vector.norm()

    def project(self, values: Tensor) -> Tensor:
        """Coordinate along the unit direction, h . v / |v|, in float32.

        Args: values: (..., d). Returns: (...).
        """
        if values.shape[-1] != self.vector.numel():
            raise BadInput(f"{self} has {self.vector.numel()} entries, the values {values.shape[-1]}")
        return values.float() @ self.unit.to(values.device)

    def to_raw(self) -> Direction:
        """The same direction for the model's own coordinates: v - mean(v), so that h . v' = (h - mean(h)) . v'."""
        if self.frame == "raw":
            return self
        return replace(self, vector=self.vector - self.vector.mean(), frame="raw")

    def cosine(self, other: Direction) -> float:
        """Cosine of the angle to another direction of the same width and frame."""
        if other.frame != self.frame:
            raise BadInput(f"{self} and {other} are in different frames: convert with to_raw()")
        if other.vector.shape != self.vector.shape:
            raise BadInput(f"{self} and {other} have different widths")
        return float(self.unit @ other.unit)

    def scaled_to(self, norm: float) -> Direction:
        """The same direction with another length."""
        return replace(self, vector=self.unit * norm)

    def random_like(self, seed: int) -> Direction:
        """A uniformly random direction of equal norm at the same site: the control arm of steering."""
        noise = torch.randn(self.vector.numel(), generator=torch.Generator().manual_seed(seed))
        return Direction(
            noise / noise.norm() * self.norm,
            self.site,
            name=f"random({seed})",
            frame=self.frame,
            source={"method": "random of equal norm", "seed": seed, "like": self.name},
        )

    @property
    def fingerprint(self) -> str:
        """sha256 of what changes arithmetic: bytes, site and frame. The name does not."""
        head = f"{self.site}|{self.frame}|".encode()
        return hashlib.sha256(head + self.vector.numpy().astype("<f4").tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Direction) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"Direction({name}{self.site}, d={self.vector.numel()}, norm={self.norm:.3g}, {self.frame})"

    def _html_parts(self) -> tuple[Any, ...]:
        return (facts({**self.source, "fingerprint": self.fingerprint[:16]}),)

    def save(self, path: str | Path) -> Path:
        """Write `.safetensors` with the description in its JSON header; no pickle."""
        from safetensors.torch import save_file

        path = Path(path).with_suffix(".safetensors")
        about = {"schema": _SCHEMA, "site": str(self.site), "name": self.name, "frame": self.frame}
        save_file({"vector": self.vector}, path, {"direction": json.dumps({**about, "source": dict(self.source)})})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Read what `save` wrote.

        Raises: UnsafeFile: not a safetensors file of a direction. CacheVersion: written by a newer version.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {})["direction"])
                vector = file.get_tensor("vector")
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise UnsafeFile(
                f"{path} is not a direction saved by latentlens (safetensors with a direction header): {error}. "
                "Pickled .pt files are never opened here."
            ) from None
        if about["schema"] > _SCHEMA:
            raise CacheVersion(f"{path} has direction schema {about['schema']}, this version reads up to {_SCHEMA}")
        return cls(vector, as_site(about["site"]), about["name"], about["frame"], about["source"])


def as_site(site: Site | str) -> Site:
    """One site from its spelling, without a model to count blocks from the end.

    Raises: BadInput: a glob, a negative index or a module path, which only a model can resolve.
    """
    if isinstance(site, Site):
        return site
    read = parse(site)
    if read is None or (read[1] is not None and not read[1].isdigit()):
        raise BadInput(f"{site!r} is not one site: write e.g. resid_post[3], with a non-negative block")
    point, blocks = read
    return Site(point, None if blocks is None else block_indices(blocks, 1 << 20)[0])
