"""Where things are in a Hugging Face causal language model.

The blocks are the decoder's list of as many modules as the config has layers; `resid_pre` and `resid_post`
are a block's input and output. The points inside a block are found by arithmetic (see `trace`). No table of
class names is kept.
"""

from __future__ import annotations

import contextvars
import difflib
import functools
import inspect
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentlens.access.hooks import Tap, refuse_compiled
from latentlens.access.trace import INNER_POINTS, Trace, trace
from latentlens.errors import CompiledModel, SiteNotFound, UnsupportedArchitecture
from latentlens.values.sites import BLOCK_POINTS, DEPTH, MODEL_POINTS, Site, block_indices, parse

SiteSpec = str | int | Site | Sequence["str | int | Site"]

_TRACE_TOKENS = 5
_TINY = 4_000_000
_IN_BLOCKS = re.compile(
    r"(?P<path>[A-Za-z_][\w.]*?)(?:\.(?P<index>-?\d+|\*)|\[(?P<blocks>[^\]]*)\])(?:\.(?P<rest>.+))?"
)


class Layout:
    """Where things are in one Hugging Face causal LM, found by structure.

    The model is not changed: nothing is wrapped, no hook stays. The first time a point inside a block or the
    final norm is asked for, one forward pass over five tokens finds them all.

    Args:
        model: a causal language model from transformers, or one that looks like it (`config`, a decoder that
            owns a `ModuleList` of blocks).
    Raises:
        UnsupportedArchitecture: encoder-only or encoder-decoder model, or no list of blocks.
        CompiledModel: the model is compiled, so hooks would be ignored.

    Attributes:
        model, decoder: the model given; the part of it that ends with the final norm and has no unembedding.
        blocks, blocks_path: the blocks in order, and the path of their list ("model.layers").
        n_blocks, d_model, vocab_size: counts and widths.
        n_heads, d_head: query heads and their width, in the first block (see `heads`); None without attention.
        max_positions: longest sequence that the config allows, or None when it names no limit.
        accepts_position_ids, accepts_attention_mask: whether the decoder's forward takes them by name.
    """

    def __init__(self, model: nn.Module):
        refuse_compiled([model])
        self.model = model
        self.class_name = type(model).__name__
        self._paths = {module: path for path, module in model.named_modules()}
        self.blocks, config = _blocks(model)
        self.block_paths = [self._paths[block] for block in self.blocks]
        self.blocks_path = self.block_paths[0].rpartition(".")[0]
        self.decoder = _decoder(model, self.blocks_path)
        refuse_compiled([self.decoder])
        self.n_blocks = len(self.blocks)
        self.d_model = int(_first(config, "hidden_size", "n_embd", "d_model") or 0)
        self._heads = [_heads(one, self.d_model) for one in _config_of_each_block(config, self.n_blocks)]
        self.n_heads, self.d_head = self._heads[0] or (None, None)
        self.vocab_size = int(_first(config, "vocab_size") or 0)
        positions = _first(config, "max_position_embeddings", "n_positions", "max_seq_len")
        self.max_positions = int(positions) if positions else None
        accepted = inspect.signature(self.decoder.forward).parameters
        self.accepts_position_ids = "position_ids" in accepted
        self.accepts_attention_mask = "attention_mask" in accepted
        self._pad = _first(config, "pad_token_id")
        unembedding = getattr(model, "get_output_embeddings", lambda: None)()
        self._unembedding = unembedding if unembedding in self._paths else None
        self._traced: Trace | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Layout({self._described}; {self.blocks_path})"

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the decoder's first weight that is not offloaded."""
        weights = (p.device for p in self.decoder.parameters())
        return next((device for device in weights if device.type != "meta"), torch.device("cpu"))

    @functools.cached_property
    def tiny(self) -> bool:
        """Whether the model is on the CPU and so small that one thread serves it best."""
        on_cpu = all(p.device.type == "cpu" for p in self.model.parameters())
        return on_cpu and sum(p.numel() for p in self.model.parameters()) < _TINY

    # -- reading what the user wrote ----------------------------------------------------------------

    def sites(self, spec: SiteSpec) -> list[Site]:
        """Expand any spelling into sites, sorted by depth, without repeats.

            "resid_post[5]"  "resid_post[*]"  "z[8:16]"  "logits"          native
            5, -1                                                         block index: resid_post
            "blocks.5.hook_resid_post"  "blocks.*.attn.hook_z"            TransformerLens
            "model.layers.5"  "model.layers.5.mlp"  "model.layers.-1.output"  "layers.5"  "lm_head"
                                                                          Hugging Face, from any suffix of the path

        A module path without `.input` or `.output` means its output. `[*]` takes the blocks that have the
        point; any other selection needs every named block to have it.

        Args: spec: one spelling, or a sequence of them.
        Raises: SiteNotFound: no such block or point in this model; names what came and the nearest sites.
        """
        if isinstance(spec, str | int | Site):
            found = self._one(spec)
        elif isinstance(spec, Iterable):
            found = [site for part in spec for site in self._one(part)]
        else:
            found = self._one(spec)
        if not found:
            raise SiteNotFound(f"no site was named. {self._described} has: {', '.join(self.available())}")
        return sorted(set(found), key=lambda site: site.depth)

    def _one(self, spec: Any) -> list[Site]:
        if isinstance(spec, Site):
            if spec.block is None or 0 <= spec.block < self.n_blocks:  # plans name thousands of these
                self.tap(spec)
                return [spec]
            spec = str(spec)
        if isinstance(spec, int) and not isinstance(spec, bool):
            spec = f"resid_post[{spec}]"
        if not isinstance(spec, str):
            raise SiteNotFound(
                f"{spec!r} ({type(spec).__name__}) is no site: write resid_post[5], 5 or {self.blocks_path}.5"
            )
        text = spec.strip()
        found = self._from_path(text)
        if found is not None:
            return found
        try:
            parsed = parse(text)
            if parsed is None:
                raise SiteNotFound(f"{text!r} is no site")
            point, blocks = parsed
            if (blocks is None) != (point in MODEL_POINTS):
                Site(point, None if blocks is None else 0)  # raises, and says how the point is written
        except SiteNotFound as error:
            raise SiteNotFound(f"{error}. {self._nearest(text)}") from None
        if blocks is None:
            self.tap(Site(point))
            return [Site(point)]
        return self._at(point, blocks)

    def _at(self, point: str, blocks: str) -> list[Site]:
        found = [Site(point, block) for block in block_indices(blocks, self.n_blocks, self.class_name)]
        if blocks.strip() == "*" and point in INNER_POINTS:
            has = [site for site in found if point in self._trace().blocks[site.block or 0].taps]
            found = has or found
        for site in found:
            self.tap(site)
        return found

    def _from_path(self, text: str) -> list[Site] | None:
        """Read a Hugging Face module path; None when it is none of this model's."""
        path, side = text, "out"
        for suffix, means in ((".input", "in"), (".output", "out")):
            if text.endswith(suffix):
                path, side = text.removesuffix(suffix), means
        inside = _IN_BLOCKS.fullmatch(path)
        if inside and _is_suffix(inside["path"], self.blocks_path) and "hook_" not in (inside["rest"] or ""):
            blocks = inside["index"] or inside["blocks"]
            indices = block_indices(blocks, self.n_blocks, self.class_name)
            found = [self._point_at(index, inside["rest"], side) for index in indices]
            sites = [site for site in found if isinstance(site, Site)]
            wrong = [message for message in found if isinstance(message, str)]
            if wrong and not (sites and blocks.strip() == "*"):
                raise SiteNotFound(f"{text}: {wrong[0]}")
            return sites
        if side == "in" or not any(_is_suffix(path, full) for full in self._paths.values()):
            return None
        if self._unembedding is not None and _is_suffix(path, self._paths[self._unembedding]):
            return [Site("logits")]
        final = self._trace().final_norm
        return [Site("final_norm")] if final is not None and _is_suffix(path, final.name) else None

    def _point_at(self, block: int, rest: str | None, side: str) -> Site | str:
        """The site at a module inside a block, or what to say when there is none."""
        if rest is None:
            return Site("resid_pre" if side == "in" else "resid_post", block)
        name = f"{self.block_paths[block]}.{rest}"
        traced = self._trace().blocks[block]
        for point, tap in traced.taps.items():
            if (tap.name, tap.side) == (name, side):
                return Site(point, block)
        if side == "out" and name in traced.aliases:
            return Site(traced.aliases[name], block)
        what = f"the {side}put of {name} is no site" if name in self._paths.values() else f"there is no module {name}"
        here = ", ".join(f"{point} = {tap!r}" for point, tap in _by_depth(traced.taps))
        return f"{what}. {self._described} has in block {block}: {here or 'resid_pre and resid_post only'}"

    # -- from a site to a module --------------------------------------------------------------------

    def tap(self, site: Site) -> Tap:
        """The module and side where the site is read.

        `logits` is the output of the unembedding; softcapping (Gemma2) and scaling (Granite, Cohere) of the
        logits come after it, so the model's own logits can differ. `attn_out` and `mlp_out`, times `scale`, are
        what is added to the residual stream: the output of the post-norm where there is one. `resid_mid` is the
        input of the module that reads it first: a change there reaches that module only, not the residual
        stream (change `attn_out` instead). Copy what is read: Falcon adds to its MLP's output in place.

        Raises: SiteNotFound: this model has no such site; says why.
        """
        if site.point == "logits":
            if self._unembedding is None:
                raise SiteNotFound(f"{self._described} has no unembedding, so no logits")
            return Tap(self._unembedding, "out", self._paths[self._unembedding])
        if site.point == "final_norm":
            final = self._trace().final_norm
            if final is None:
                raise SiteNotFound(f"{self._described} runs no module of the decoder on the last block's output")
            return final
        assert site.block is not None
        (index,) = block_indices(str(site.block), self.n_blocks, self.class_name)
        if site.point in ("resid_pre", "resid_post"):
            return Tap(self.blocks[index], "in" if site.point == "resid_pre" else "out", self.block_paths[index])
        traced = self._trace().blocks[index]
        if site.point not in traced.taps:
            raise SiteNotFound(
                f"no {site} in {self._described}: {traced.missing[site.point]}. "
                f"This model has: {', '.join(self.available())}"
            )
        return traced.taps[site.point]

    def scale(self, site: Site) -> float:
        """What `attn_out` or `mlp_out` is multiplied by when it is added to the residual stream; else 1.

            resid_pre + scale(attn_out) attn_out + scale(mlp_out) mlp_out = resid_post

        Gemma4 multiplies the sum by a number of each block and may add a third contribution, which is no site.
        """
        self.tap(site)
        return self._trace().blocks[site.block or 0].scales.get(site.point, 1.0)

    def width(self, site: Site) -> int:
        """How many numbers the site has per token."""
        self.tap(site)
        if site.point == "logits":
            return self.vocab_size
        if site.point not in INNER_POINTS:
            return self.d_model
        return self._trace().blocks[site.block or 0].widths[site.point]

    def heads(self, block: int) -> tuple[int, int] | None:
        """How `z` of a block splits: (heads, width of a head). Differs between the blocks of Gemma4, for one.

        Returns: None in a model without attention (Mamba).
        """
        return self._heads[block]

    def available(self) -> list[str]:
        """The points that at least one block has, and the model's own, in the order of computation.

        Only resid_pre, resid_post and logits if the trace fails on this model (asking for another says why).
        """
        try:
            traced = self._trace()
        except (UnsupportedArchitecture, CompiledModel):
            traced = Trace([], None)
        points = {"resid_pre", "resid_post"} | {point for block in traced.blocks for point in block.taps}
        last = ["final_norm"] * (traced.final_norm is not None) + ["logits"] * (self._unembedding is not None)
        return sorted(points, key=DEPTH.__getitem__) + last

    def table(self) -> list[tuple[str, str]]:
        """Rows (point, module and side that it resolves to), shown for the first block that has the point."""
        rows = []
        for point in self.available():
            if point in MODEL_POINTS:
                rows.append((point, repr(self.tap(Site(point)))))
                continue
            has = (block for block in range(self.n_blocks) if self._has(point, block))
            rows.append((point, repr(self.tap(Site(point, next(has))))))
        return rows

    def _has(self, point: str, block: int) -> bool:
        return point in ("resid_pre", "resid_post") or point in self._trace().blocks[block].taps

    def _trace(self) -> Trace:
        with self._lock:
            if self._traced is None:
                try:
                    # In an empty context no other plan is in force: an edit would upset the arithmetic.
                    self._traced = contextvars.Context().run(self._run_trace)
                except (CompiledModel, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    raise UnsupportedArchitecture(
                        f"{self._described}: one forward pass over {_TRACE_TOKENS} tokens, which finds the sites "
                        f"inside the blocks, failed with {type(error).__name__}: {error}. "
                        "resid_pre, resid_post and logits can be used all the same."
                    ) from error
            return self._traced

    def _run_trace(self) -> Trace:
        root = self._paths.get(self.decoder, "")
        widths = [heads[0] * heads[1] if heads else None for heads in self._heads]
        return trace(self.decoder, self.blocks, self.block_paths, root, self._tokens(), widths)

    def _tokens(self) -> Tensor:
        """Five distinct ids from the middle of the vocabulary, away from special tokens."""
        ids = [i for i in range(self.vocab_size // 3, self.vocab_size) if i != self._pad]
        return torch.tensor([ids[:_TRACE_TOKENS]], device=self.device)

    # -- messages ------------------------------------------------------------------------------------

    @property
    def _described(self) -> str:
        n = self.n_blocks
        return f"{self.class_name} ({n} block{'s' * (n > 1)}: 0-{n - 1}, or -{n} to -1)"

    def _nearest(self, text: str) -> str:
        points = [point for point in BLOCK_POINTS if point in self.available()]
        valid = [f"{point}[{i}]" for i in range(self.n_blocks) for point in points]
        valid += [point for point in MODEL_POINTS if point in self.available()] + self.block_paths
        near = difflib.get_close_matches(text, valid, n=3, cutoff=0.4) or [
            "resid_post[0]",
            self.block_paths[0],
        ]
        return f"Nearest in {self._described}: {', '.join(near)}"


def _blocks(model: nn.Module) -> tuple[list[nn.Module], Any]:
    """The blocks and the config that counts them: the shallowest list of as many modules as it has layers."""
    name = _refuse_other_kinds(model)
    # A multimodal model has several such lists: its get_decoder() says which is the language model's. Where it
    # says something else (its own head, in ModernBERT), the base model is searched.
    named = getattr(model, "get_decoder", lambda: None)()
    looked = []
    for root in dict.fromkeys([named, getattr(model, "base_model", None), model]):
        if not isinstance(root, nn.Module):
            continue
        config = getattr(root, "config", None) or model.config
        config = getattr(config, "text_config", None) or config
        wanted = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
        lists = [(path, m) for path, m in root.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
        right = [(path, m) for path, m in lists if len(m) == wanted]
        shallowest = min((path.count(".") for path, _ in right), default=0)
        right = [m for path, m in right if path.count(".") == shallowest]
        if len(right) > 1:
            recorded = (getattr(root, "_can_record_outputs", None) or {}).get("hidden_states")
            right = [m for m in right if isinstance(recorded, type) and isinstance(m[0], recorded)]
        if len(right) == 1:
            blocks = list(right[0])
            if len(set(blocks)) != len(blocks):
                raise UnsupportedArchitecture(f"{name} runs one block object several times; sites would be ambiguous")
            return blocks, config
        seen = ", ".join(f"{path} ({len(m)})" for path, m in lists[:8]) or "no ModuleList at all"
        looked.append(
            f"in {type(root).__name__} for one ModuleList of {wanted} blocks (num_hidden_layers): found {seen}"
        )
    raise UnsupportedArchitecture(f"{name}: no blocks. Looked {'; '.join(looked)}")


def _refuse_other_kinds(model: nn.Module) -> str:
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None:
        raise UnsupportedArchitecture(f"{name} has no config: latentlens reads Hugging Face causal language models")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedArchitecture(f"{name} is an encoder-decoder model; latentlens looks for one decoder only")
    can_generate = getattr(model, "can_generate", None)
    if callable(can_generate) and not can_generate():
        raise UnsupportedArchitecture(
            f"{name} cannot generate text (no causal language-model head); load it with AutoModelForCausalLM"
        )
    return name


def _decoder(model: nn.Module, blocks_path: str) -> nn.Module:
    """The innermost module around the blocks that takes token ids: it has no unembedding."""
    path = blocks_path
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        if "input_ids" in inspect.signature(module.forward).parameters:
            return module
    raise UnsupportedArchitecture(f"{type(model).__name__}: no module around {blocks_path} takes input_ids")


def _config_of_each_block(config: Any, n_blocks: int) -> list[Any]:
    """Configs whose blocks differ (Gemma4) refuse to name one head width for all, and hold one config per block."""
    different = getattr(config, "is_heterogeneous", False)
    return [config.per_layer_config[block] if different else config for block in range(n_blocks)]


def _heads(config: Any, d_model: int) -> tuple[int, int] | None:
    heads = _first(config, "num_attention_heads", "n_head", "n_heads")
    if not heads:
        return None
    # With latent attention (DeepSeek) head_dim is the rotary part only; what a head puts out is v_head_dim wide.
    return int(heads), int(_first(config, "v_head_dim", "head_dim") or d_model // heads)


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _is_suffix(path: str, full: str) -> bool:
    return bool(full) and (path == full or full.endswith(f".{path}"))


def _by_depth(taps: dict[str, Tap]) -> list[tuple[str, Tap]]:
    return sorted(taps.items(), key=lambda item: DEPTH[item[0]])
