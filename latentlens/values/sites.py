"""Where in the model: a block index and a point in that block.

    resid_post[5]      one site              resid_post[-1]     counted from the last block
    resid_post[*]      every block           resid_post[8:16]   a slice, Python rules
    final_norm, logits                       the two sites after the last block

TransformerLens spellings (`blocks.5.hook_resid_post`) are read here. Hugging Face module paths
(`model.layers.5.mlp`) depend on the model and are read by its layout.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from latentlens.errors import SiteNotFound

BLOCK_POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_post")
MODEL_POINTS = ("final_norm", "logits")

# Points in the order in which a forward pass reaches them; `z` precedes the attention output it makes.
DEPTH = {point: i for i, point in enumerate(("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out",
                                             "resid_post"))}  # fmt: skip

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "hook_attn_out": "attn_out",
    "attn.hook_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
    "attn.hook_z": "z",
    "mlp.hook_post": "mlp_post",
}
_TRANSFORMER_LENS_MODEL = {"ln_final.hook_out": "final_norm", "unembed.hook_out": "logits"}
_NATIVE = re.compile(r"(?P<point>[a-z_]+)(\[(?P<blocks>[^\]]*)\])?")
_LENS = re.compile(r"blocks\.(?P<blocks>-?\d+|\*)\.(?P<hook>.+)")


@dataclass(frozen=True)
class Site:
    """One site: `Site("resid_post", 5)`, printed `resid_post[5]`; `final_norm` and `logits` have no block."""

    point: str
    block: int | None = None

    def __post_init__(self) -> None:
        """Refuse points that do not exist, and blocks where there are none."""
        if self.point not in BLOCK_POINTS + MODEL_POINTS:
            raise SiteNotFound(_no_such_point(self.point))
        if (self.block is None) != (self.point in MODEL_POINTS):
            has = "has no block index" if self.point in MODEL_POINTS else "needs a block index"
            raise SiteNotFound(f"{self.point} {has}: write {example(self.point)}")

    @property
    def depth(self) -> tuple[int, int]:
        """Sort key in the order of computation."""
        if self.block is None:
            return (1 << 30, MODEL_POINTS.index(self.point))
        return (self.block, DEPTH[self.point])

    def __str__(self) -> str:
        return self.point if self.block is None else f"{self.point}[{self.block}]"

    def __repr__(self) -> str:
        return f"Site({str(self)!r})"


def example(point: str) -> str:
    """How a site at this point is written."""
    return point if point in MODEL_POINTS else f"{point}[0]"


def parse(text: str) -> tuple[str, str | None] | None:
    """Read a native or TransformerLens spelling into (point, blocks text); None when it is neither.

    >>> parse("resid_post[8:16]"), parse("blocks.5.hook_resid_post"), parse("logits")
    (('resid_post', '8:16'), ('resid_post', '5'), ('logits', None))

    Raises: SiteNotFound: the spelling is ours or TransformerLens', but the point does not exist.
    """
    text = text.strip()
    if text in _TRANSFORMER_LENS_MODEL:
        return _TRANSFORMER_LENS_MODEL[text], None
    if lens := _LENS.fullmatch(text):
        hook = lens["hook"]
        if hook not in _TRANSFORMER_LENS:
            raise SiteNotFound(
                f"{text}: {hook} is not a site of latentlens. Of TransformerLens' names it reads "
                + ", ".join(f"blocks.i.{name}" for name in _TRANSFORMER_LENS)
                + "; ln_final.hook_out; unembed.hook_out."
            )
        return _TRANSFORMER_LENS[hook], lens["blocks"]
    native = _NATIVE.fullmatch(text)
    if native is None or "." in text:
        return None
    if native["point"] not in BLOCK_POINTS + MODEL_POINTS:
        raise SiteNotFound(_no_such_point(native["point"]))
    return native["point"], native["blocks"]


def block_indices(text: str, n_blocks: int, model: str = "this model") -> list[int]:
    """Expand what stands between the brackets: `5`, `-1`, `*`, `8:16`, `::2`, `0,3,5`.

    Raises: SiteNotFound: no such block, or an empty slice; the message gives the range.
    """
    allowed = f"{model} ({n_blocks} blocks: 0-{n_blocks - 1}, or -{n_blocks} to -1)"
    text = text.strip()
    if text == "*":
        return list(range(n_blocks))
    try:
        if ":" in text:
            bounds = [int(part) if part.strip() else None for part in text.split(":")]
            found = list(range(n_blocks))[slice(*bounds)]
            if not found:
                raise SiteNotFound(f"the slice [{text}] selects no block of {allowed}")
            return found
        wanted = [int(part) for part in text.split(",")]
    except (ValueError, TypeError):
        raise SiteNotFound(f"[{text}] is no block index: write 5, -1, *, 8:16 or 0,3,5 for {allowed}") from None
    for block in wanted:
        if not -n_blocks <= block < n_blocks:
            raise SiteNotFound(f"no block {block} in {allowed}")
    return [block % n_blocks for block in wanted]


def _no_such_point(point: str) -> str:
    near = difflib.get_close_matches(point, BLOCK_POINTS + MODEL_POINTS, n=2, cutoff=0.4)
    hint = f" Nearest: {', '.join(example(n) for n in near)}." if near else ""
    return f"no point {point!r} in a model.{hint} All: {', '.join(BLOCK_POINTS + MODEL_POINTS)}"
