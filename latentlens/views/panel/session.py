"""What the panel does, without a widget: messages in, values for the page out.

A message is a mapping with a `kind`; the answer is a mapping of what changed. Every text in an answer has its hidden
characters written out, and the page shows it with `textContent` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlens import organism
from latentlens.errors import BadInput, LatentLensError
from latentlens.methods.latents import firing
from latentlens.values.directions import Direction
from latentlens.values.interventions import Intervention
from latentlens.values.rollouts import Rollouts
from latentlens.values.sae import SAE
from latentlens.values.visible import visible
from latentlens.views.panel.items import Item, Latent, contrast, pinned

if TYPE_CHECKING:
    from latentlens.access.model import LensModel
    from latentlens.values.codes import Codes

WHERE = ("all", "prompt", "response", "last")
_LONGEST = 400  # tokens of a text that are shown
_FOUND = 12


class Session:
    """State of one panel.

    Args:
        lm: the model. text: a text, or a chat that ends with the user. directions: by name. sae: for latents.
        length: tokens written. seed, temperature: of the writing. chat: put a text as a user's turn.
    Raises: BadInput, NoChatTemplate, ContextTooLong: as `lm.tokens`.
    """

    def __init__(
        self,
        lm: LensModel,
        text: Any,
        *,
        directions: Mapping[str, Direction] | None = None,
        sae: SAE | None = None,
        length: int = 24,
        seed: int = 0,
        temperature: float = 0.0,
        chat: bool = False,
    ) -> None:
        self.lm, self.sae = lm, sae
        self.items: dict[str, Item] = {item.key: item for item in pinned(directions or {})}
        self.chat = chat
        self.messages: list[dict[str, Any]] | None = None
        if not isinstance(text, str):
            if not isinstance(text, Sequence) or not text or not all(isinstance(one, Mapping) for one in text):
                raise BadInput(f"the panel opens a text, or a chat of messages, not {str(text)[:60]!r}")
            self.messages = [dict(message) for message in text]
            text = str(self.messages[-1].get("content", ""))
        self.text = text
        self.settings: dict[str, Any] = {
            "edits": [], "where": "all", "length": length, "temperature": temperature, "seed": seed, "show": "",
        }  # fmt: skip
        self.position: int | None = None
        self.runs: tuple[Rollouts, Rollouts] | None = None
        self._names: dict[int, str] | None = None
        self._answers = {
            "open": self.open,
            "text": self.read,
            "inspect": self.inspect,
            "search": self.search,
            "show": self.show,
            "unpin": self.unpin,
            "steer": self.steer,
        }
        self.lm.tokens(self.inputs)  # raises what is wrong with it now

    @property
    def inputs(self) -> Any:
        """The text as the model is given it."""
        if self.messages is not None:
            return [[*self.messages[:-1], {**self.messages[-1], "content": self.text}]]
        return [[{"role": "user", "content": self.text}]] if self.chat else [self.text]

    @property
    def plan(self) -> list[Intervention]:
        """The interventions that the sliders stand for."""
        where = self.settings["where"]
        return [
            self._item(one["key"]).edit(self.lm, one["strength"], one["block"], where)
            for one in self.settings["edits"]
            if one["strength"]
        ]

    def answer(self, message: Any) -> dict[str, Any]:
        """Do what a message asks. What the user can mend comes back as `problem`, in words."""
        try:
            kind = message.get("kind") if isinstance(message, Mapping) else None
            if kind not in self._answers:
                raise BadInput(f"the panel does not know the message {str(kind)!r}")
            return {"problem": "", **self._answers[kind](message)}
        except (LatentLensError, ValueError, KeyError, TypeError, IndexError) as error:
            return {"problem": visible(f"{type(error).__name__}: {error}")}

    # -- answers ------------------------------------------------------------------------------------

    def open(self, message: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything that a panel shows when it is opened."""
        layout = self.lm.layout
        about = {
            "model": visible(repr(self.lm)), "blocks": layout.n_blocks, "where": list(WHERE),
            "can_chat": self.messages is None, "sae": visible(repr(self.sae)) if self.sae else "",
        }  # fmt: skip
        return {
            "about": about, "tokens": self._tokens(), "items": self._listed(), "settings": self.settings,
            "code": self.code(), "found": self._find(""),
        }  # fmt: skip

    def read(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Read another text."""
        before, chat = self.text, self.chat
        self.text, self.chat = str(message["text"]), bool(message.get("chat", self.chat))
        try:
            shown = self._tokens()
        except LatentLensError:
            self.text, self.chat = before, chat
            raise
        self.position, self.runs = None, None
        return {"tokens": {**shown, **self._colours()}, "inspected": {}, "runs": {}, "code": self.code()}

    def inspect(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """What one token holds: projections on what is pinned, the strongest latents, and the logit lens."""
        position = int(message["position"])
        (row,) = self.lm.tokens(self.inputs)
        if not 0 <= position < len(row):
            raise BadInput(f"no position {position} in a text of {len(row)} tokens")
        self.position = position
        lens = self.lm.logit_lens(self.inputs, where=[position], k=3)
        layers = [
            {"site": str(site), "says": [[visible(w), p] for w, p in lens.says(site, 0)]}
            for site in reversed(lens.sites)
        ]
        pinned_values = [
            {"key": item.key, "name": visible(item.name), "value": float(self._values(item)[position])}
            for item in self.items.values()
        ]
        (spoken,) = self._words(row.ids[position : position + 1])
        latents = self._latents_at(position)
        shown = {"position": position, "word": spoken, "values": pinned_values, "latents": latents, "lens": layers}
        return {"inspected": shown}

    def search(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Find something to pin: a direction by name, a latent by number or by what it fires on, "this - that"."""
        return {"found": self._find(str(message.get("query", "")).strip())}

    def show(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Colour the tokens by an item; pins it if it is new. An empty key takes the colours away."""
        key = str(message.get("key", ""))
        if key:
            self._item(key)
        self.settings["show"] = key
        out = {"tokens": {**self._tokens(), **self._colours()}, "items": self._listed(), "settings": self.settings}
        if self.position is not None:
            out |= self.inspect({"position": self.position})
        return {**out, **({"runs": self._written()} if self.runs is not None else {})}

    def unpin(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Take an item away, with its edit and its colours, and write without it what was written with it."""
        key = str(message["key"])
        self.items.pop(self._item(key).key)
        self.settings["edits"] = [one for one in self.settings["edits"] if one["key"] != key]
        shown = self.show({"key": "" if self.settings["show"] == key else self.settings["show"]})
        again = self.steer({"settings": self.settings}) if self.runs is not None else {}
        return {**shown, **again, "code": self.code()}

    def steer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Write with and without the edits of the sliders, paired."""
        self._set(message["settings"])
        how = {name: self.settings[name] for name in ("temperature", "seed")}
        plan = self.plan
        plain = self.lm.generate(self.inputs, self.settings["length"], **how)
        steered = self.lm.generate(self.inputs, self.settings["length"], **how, steer=plan, allow_idle=True)
        self.runs = (plain, steered)
        return {"runs": self._written(), "settings": self.settings, "items": self._listed(), "code": self.code()}

    # -- parts --------------------------------------------------------------------------------------

    def code(self) -> str:
        """Lines of Python that do what the panel shows."""
        name = self.lm.name
        given = "" if name == "organism" else repr(name)
        lines, edits = ["import latentlens as ll", "", f"lm = ll.load({given})"], []
        for one in self.settings["edits"]:
            if not one["strength"]:
                continue
            made, edit = self._item(one["key"]).code(one["strength"], one["block"], self.settings["where"])
            lines += [line for line in made if line not in lines]
            edits.append(edit)
        prompt = self.inputs[0] if self.messages is None and not self.chat else self.inputs
        how = f"max_new_tokens={self.settings['length']}, seed={self.settings['seed']}"
        how += f", temperature={self.settings['temperature']:g}" if self.settings["temperature"] else ""
        steer = "".join(f"\n    {edit}," for edit in edits)
        lines += ["", f"prompt = {prompt!r}", f"plain = lm.generate(prompt, {how})"]
        lines += [f"steered = lm.generate(prompt, {how}, steer=[{steer}\n])"] if edits else []
        shown = "steered" if edits else "plain"
        return "\n".join([*lines, f"print({shown}.texts[0])", *(["print(steered.effect())"] if edits else [])])

    def _set(self, given: Mapping[str, Any]) -> None:
        """Take settings from the page, checked."""
        where, n_blocks = str(given["where"]), self.lm.layout.n_blocks
        if where not in WHERE:
            raise BadInput(f"where={where!r}: the panel offers {', '.join(WHERE)}")
        edits = []
        for one in given["edits"]:
            item, block = self._item(str(one["key"])), int(one["block"])
            if not 0 <= block < n_blocks:
                raise BadInput(f"no block {block}: 0 to {n_blocks - 1}")
            edits.append({"key": item.key, "strength": round(float(one["strength"]), 4), "block": block})
        length, temperature = int(given["length"]), float(given["temperature"])
        if not 1 <= length <= 512:
            raise BadInput(f"{length} tokens: the panel writes 1 to 512")
        if not temperature >= 0:
            raise BadInput(f"temperature {temperature} must be 0 (greedy) or more")
        self.settings |= {"edits": edits, "where": where, "length": length, "seed": int(given["seed"])}
        self.settings["temperature"] = temperature

    def _item(self, key: str) -> Item:
        """An item by its key; latents and contrasts are made, and pinned, when first asked for."""
        if key not in self.items:
            kind, _, rest = key.partition(":")
            made: Item | None = None
            if kind == "latent" and self.sae is not None and rest.isdigit() and int(rest) < self.sae.d_sae:
                made = Latent(key, f"latent {rest}", self.sae.site, self.sae, int(rest), _loading(self.sae))
            elif kind == "contrast":
                made = contrast(rest, self.lm.layout.n_blocks)
            if made is None:
                raise BadInput(f"there is no {key!r} to pin")
            self.items[key] = made
        return self.items[key]

    def _listed(self) -> list[dict[str, Any]]:
        return [
            {"key": item.key, "name": visible(item.name), "site": str(item.site), "block": item.site.block,
             "note": self.names.get(item.latent, "") if isinstance(item, Latent) else ""}
            for item in self.items.values()
        ]  # fmt: skip

    def _tokens(self) -> dict[str, Any]:
        (row,) = self.lm.tokens(self.inputs)
        if len(row) > _LONGEST:
            raise BadInput(f"{len(row)} tokens: the panel shows up to {_LONGEST}")
        return {"text": self.text, "chat": self.chat, "words": self._words(row.ids), "special": list(row.special)}

    def _words(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, safe to show."""
        if self.lm.tokenizer is None:
            return [str(i) for i in ids]
        return [visible(self.lm.tokenizer.decode([i])) for i in ids]

    def _block(self, item: Item) -> int:
        """Where an item is read: where its slider stands, or its own place."""
        moved = {one["key"]: one["block"] for one in self.settings["edits"]}
        return moved.get(item.key, item.site.block or 0)

    def _values(self, item: Item, inputs: Any = None) -> np.ndarray:
        return item.values(self.lm, self.inputs if inputs is None else inputs, self._block(item))

    def _colours(self) -> dict[str, Any]:
        """Values of the shown item on the text, and what full colour stands for."""
        if not self.settings["show"]:
            return {}
        values = self._values(self._item(self.settings["show"]))
        return {"values": [float(v) for v in values], "largest": float(np.abs(values).max()) or 1.0}

    def _written(self) -> dict[str, Any]:
        """Both continuations as tokens, coloured by the shown item, with the readings of the effect."""
        assert self.runs is not None
        item = self._item(self.settings["show"]) if self.settings["show"] else None
        sides, means = {}, {}
        for name, runs in zip(("plain", "steered"), self.runs):
            run = runs[0]
            sides[name] = {"words": self._words(run.generated), "text": visible(run.text)}
            if item is not None and run.generated:
                read = [run.full_row]
                values = self._values(item, read)[len(run.row) :]
                sides[name]["values"] = [float(v) for v in values]
                means[name] = float(values.mean())
        largest = max((abs(v) for side in sides.values() for v in side.get("values", [])), default=0.0) or 1.0
        steered = self.runs[1]
        effect = steered.effect() if steered[0].steer else None
        readings = []
        if effect is not None:
            frame = effect.to_frame().iloc[0]
            readings += [
                f"KL to the unsteered model: mean {frame.kl_mean:.2g}, 95% of tokens below {frame.kl_p95:.2g} nats",
                f"edits acted {int(frame.fired)} times, median |delta| / |h| = {frame.relative_norm:.2g}",
            ]
        if item is not None and len(means) == 2:
            readings.append(
                f"{visible(item.name)}, mean over what was written (read without edits): {means['plain']:.2f} → "
                f"{means['steered']:.2f}"
            )
        same = self.runs[0][0].generated == steered[0].generated
        return {**sides, "largest": largest, "readings": readings, "same": same}

    # -- latents ------------------------------------------------------------------------------------

    def _latents_at(self, position: int, k: int = 8) -> list[dict[str, Any]]:
        if self.sae is None:
            return []
        codes: Codes = self.lm.latents(self.sae, self.inputs)
        start, stop = codes.offsets[position : position + 2].tolist()
        found = sorted(zip(codes.values[start:stop].tolist(), codes.indices[start:stop].tolist()), reverse=True)
        return [{**self._latent(j), "value": value} for value, j in found[:k]]

    def _latent(self, j: int) -> dict[str, Any]:
        return {"key": f"latent:{j}", "name": f"latent {j}", "note": self.names.get(j, "silent on the reference texts")}

    @property
    def names(self) -> dict[int, str]:
        """What each latent fires on most, in the model's reference texts."""
        if self._names is None:
            self._names = {}
            if self.sae is not None:
                codes = self.lm.latents(self.sae, self.lm.reference_texts, where="content")
                self._names = fires_on(codes)
        return self._names

    def _find(self, query: str) -> list[dict[str, Any]]:
        lower = query.lower()
        out = [
            {"key": item.key, "name": visible(item.name), "note": str(item.site)}
            for item in self.items.values()
            if lower in item.name.lower()
        ]
        made = contrast(query, self.lm.layout.n_blocks)
        if made is not None and made.key not in self.items:
            out.append(
                {"key": made.key, "name": visible(made.name), "note": "the state after one minus after the other"}
            )
        if self.sae is not None:
            if query.isdigit():
                wanted = [int(query)] if int(query) < self.sae.d_sae else []
            elif query:
                wanted = [j for j, name in self.names.items() if lower in name.lower()]
            else:
                wanted = firing(self.lm.latents(self.sae, self.inputs, where="content")).top(_FOUND // 2, "max")
            out += [self._latent(j) for j in wanted[:_FOUND] if f"latent:{j}" not in self.items]
        return out[: 2 * _FOUND]


def fires_on(codes: Codes, k: int = 3) -> dict[int, str]:
    """The k tokens on which each latent fires most, latents that fire on the most rows of them first."""
    latent, value = codes.indices.cpu().numpy(), codes.values.float().cpu().numpy()
    words = codes.labels["token"]
    row = codes.row_of.cpu().numpy()
    found: dict[int, dict[str, float]] = {}
    for i in np.lexsort((-value, latent)):
        mine = found.setdefault(int(latent[i]), {})
        if len(mine) < k:
            mine.setdefault(str(words[row[i]]), float(value[i]))
    strongest = sorted(found, key=lambda j: -max(found[j].values()))
    return {j: " ".join(visible(w.strip() or repr(w)) for w in found[j]) for j in strongest}


def _loading(sae: SAE) -> str:
    """The line that loads an SAE, as far as it says itself where it is from."""
    release, name = str(sae.about.get("release", "")), str(sae.about.get("sae_id", ""))
    if release and name:
        return f"sae = ll.load_sae({release!r}, {name!r})"
    if sae.about.get("model_name") == "organism" and release in organism.saes():
        return f"sae = ll.load_sae(ll.organism.sae_path({release!r}))"
    return f"sae = ll.load_sae(...)  # {sae.name}"
