"""`with lm.steer(...)`: edits in forwards that somebody else's code runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentlens.access.editing.edits import Edits, require_acted
from latentlens.access.editing.selector import Frame, sentence_index
from latentlens.access.hooks import Callback, hooked, watched
from latentlens.access.layout import Layout
from latentlens.errors import BadInput
from latentlens.values.interventions import Plan
from latentlens.values.rows import TokenRow
from latentlens.values.sites import Site

#: Plans that `with lm.steer(...)` has put in force: (model, plans, one per row or one for all), outermost first.
_IN_FORCE: ContextVar[tuple[tuple[nn.Module, list[Plan]], ...]] = ContextVar("latentlens_steering", default=())
#: Whether a verb of ours is running the model; it has taken the plans above into its own.
_OURS: ContextVar[bool] = ContextVar("latentlens_own_forward", default=False)


def in_force(model: nn.Module) -> list[list[Plan]]:
    """Plans that surround the caller, outermost first; each has one plan for all rows or one per row."""
    return [plans for steered, plans in _IN_FORCE.get() if steered is model]


@contextmanager
def own_forward(layout: Layout) -> Iterator[None]:
    """Run the model with exactly the plans that the verb has worked out: surrounding `steer`s stand aside.

    A model of a few million weights on the CPU runs on one thread meanwhile: more threads gain it nothing, and on a
    busy machine they wait for each other tens of times longer than they compute.
    """
    token, threads = _OURS.set(True), torch.get_num_threads()
    if threads > 1 and layout.tiny:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        _OURS.reset(token)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def steering(
    layout: Layout, plans: list[Plan], *, special_ids: frozenset[int], prompt_width: int | None, allow_idle: bool
) -> Iterator[None]:
    """Edit every forward of a model that somebody else's code runs.

    Which positions a forward holds is read off its arguments: the attention mask (padding), the key-value cache
    (tokens already read), the token ids. What comes first is the prompt; single tokens, or a longer repetition of the
    same rows, continue it.

    Args:
        plans: one for all rows, or one per row; with beams or several sequences per prompt, one per prompt.
        prompt_width: columns of the prompt; needed when it is read in chunks.
    Raises: BadInput: a forward whose positions cannot be told. HookNeverFired: an edit never acted.
    """
    follower = _Follower(layout, plans, special_ids, prompt_width)
    sites = {c.site for plan in plans for item in plan for c in (item, *item.conditions)}
    calls = [(layout.tap(site), follower.edit_at(site)) for site in sorted(sites, key=lambda site: site.depth)]
    token = _IN_FORCE.set((*_IN_FORCE.get(), (layout.model, plans)))
    try:
        with watched(layout.decoder, follower.see), hooked(calls):
            yield
    finally:
        _IN_FORCE.reset(token)
    if not allow_idle and not follower.stood_aside:
        require_acted(follower.acted())


class _Follower:
    """Follows somebody else's forwards: which rows, which positions, what is prompt and what was generated."""

    def __init__(
        self, layout: Layout, plans: list[Plan], special_ids: frozenset[int], prompt_width: int | None
    ) -> None:
        self.layout, self.plans = layout, plans
        self.special_ids, self.prompt_width = special_ids, prompt_width
        self.stood_aside = False  # whether a verb of ours ran, and took the plans into its own
        self._edits: Edits | None = None
        self._prompt: Tensor | None = None  # token ids of the prompt, padding included
        self._columns = 0  # read so far
        self._width = 0  # columns of the prompt
        self._known = np.zeros((0, 0), dtype=bool)  # which of them hold a token
        self._rows = np.zeros(0, dtype=np.int64)
        bare = [
            (item.where.kind, item.schedule.constant, bool(item.conditions) or item.reads is not None)
            for p in plans
            for item in p
        ]
        self._boundary_matters = any(about != ("all", True, False) for about in bare)
        self._acted = Counter({item: 0 for plan in plans for item in plan})

    def acted(self) -> Counter[Any]:
        """How many states each intervention was applied to."""
        counts = self._acted.copy()
        counts.update(self._edits.acted() if self._edits else {})
        return counts

    def edit_at(self, site: Site) -> Callback:
        """A callback that carries out what the rows of the running forward have at a site."""

        def apply(states: Tensor) -> Tensor | None:
            if _OURS.get() or self._edits is None:
                return None
            changed = None
            for call in self._edits.at(site):
                new = call(states if changed is None else changed)
                changed = changed if new is None else new
            return changed

        return apply

    def see(self, given: dict[str, Any]) -> None:
        """Read a forward's arguments before it runs."""
        if _OURS.get():
            self.stood_aside = True
            return
        if given.get("cu_seq_lens_q") is not None:
            raise BadInput("lm.steer cannot follow packed rows (generate_batch): use lm.generate(..., steer=)")
        ids = given.get("input_ids")
        read = ids if ids is not None else given.get("inputs_embeds")
        if read is None:
            raise BadInput("lm.steer cannot follow a forward without input_ids or inputs_embeds")
        rows, new = read.shape[:2]
        ids = torch.zeros(rows, new, dtype=torch.long) if ids is None else ids.detach().cpu()
        past = _tokens_held(given.get("past_key_values"))
        present = _present(given.get("attention_mask"), rows, past + new)
        prompt = _prompt_being_read()
        if past == 0 and not self._continues(ids):
            self._begin(*((ids, present) if prompt is None else prompt))
        elif self._edits is None:  # the cache was filled before: all of it is prompt
            self._begin(torch.zeros(rows, past, dtype=torch.long), present)
        elif past and new > 1 and prompt is None and self.prompt_width is None and self._boundary_matters:
            self._refuse_chunks()
        seen = min(self._width, present.shape[1])
        if (present[:, :seen] != self._known[:, :seen]).any():
            raise BadInput("rows of a prompt read in pieces must not have padding beyond the first piece")
        self._columns = past + new
        positions = np.where(present, np.cumsum(present, axis=1) - 1, -1)[:, past:]
        special = np.isin(ids.numpy(), list(self.special_ids)) if self.special_ids else None
        assert self._edits is not None
        ends, sentences = self._edits.sentence_ends, None
        if ends:
            if past:
                raise BadInput("a schedule per sentence needs lm.generate, or use_cache=False: beams may swap the rows")
            sentences = sentence_index(ids.numpy(), self._width, ends)
        self._edits.announce(Frame(self._rows, positions, special, sentences))

    def _continues(self, ids: Tensor) -> bool:
        """Whether a forward without a cache repeats the same prompts and goes on."""
        if self._prompt is None or ids.shape[0] != self._prompt.shape[0] or ids.shape[1] <= self._columns:
            return False
        return torch.equal(ids[:, : self._prompt.shape[1]], self._prompt)

    def _begin(self, prompt: Tensor, present: np.ndarray) -> None:
        self._acted = self.acted()
        width = self.prompt_width or prompt.shape[1]
        if width > prompt.shape[1]:  # its end has not been seen yet
            prompt = torch.cat([prompt, torch.zeros(len(prompt), width - prompt.shape[1], dtype=torch.long)], 1)
        prompt = prompt[:, :width]
        known = np.ones(prompt.shape, dtype=bool)
        shared = min(width, present.shape[1])
        known[:, :shared] = present[:, :shared]
        rows = [
            TokenRow.plain(tuple(ids[there].tolist()), special_ids=self.special_ids)
            for ids, there in zip(prompt, torch.from_numpy(known), strict=True)
        ]
        if len(rows) % len(self.plans):
            raise BadInput(
                f"{len(self.plans)} plans for a batch of {len(rows)} rows: give one plan, or one for each row"
            )
        each = len(rows) // len(self.plans)  # beams and several sequences of a prompt are neighbours
        self._edits = Edits(self.layout, [plan for plan in self.plans for _ in range(each)], rows)
        self._prompt, self._known, self._width, self._rows = prompt, known, width, np.arange(len(rows))

    def _refuse_chunks(self) -> None:
        raise BadInput(
            "the prompt seems to be read in chunks, so its end cannot be told: pass lm.steer(..., prompt_width=columns)"
        )


def _tokens_held(cache: Any) -> int:
    held = getattr(cache, "get_seq_length", None)
    return int(held()) if held is not None else 0


def _present(mask: Any, rows: int, width: int) -> np.ndarray:
    """(rows, width) bool: which columns hold a token, from any form of attention mask."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None or not isinstance(mask, Tensor):
        return np.ones((rows, width), dtype=bool)
    mask = mask.detach().cpu()
    if mask.ndim == 4:  # the last query sees every token before it
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask == 0
    return mask[:, :width].bool().expand(rows, -1).numpy()


def _prompt_being_read() -> tuple[Tensor, np.ndarray] | None:
    """The whole prompt while transformers' `generate` reads it, perhaps in chunks: its ids, and where there are tokens.

    The tensors of a chunk of one token and of a first generated token are alike, so the caller is asked.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_prefill" and "generation_config" in frame.f_locals:
            ids, mask = (frame.f_locals.get(name) for name in ("input_ids", "attention_mask"))
            if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.shape[1]:
                return None
            if mask is None:
                mask = frame.f_locals["model_kwargs"].get("attention_mask")
            return ids.detach().cpu(), _present(mask, *ids.shape)
        frame = frame.f_back
    return None
