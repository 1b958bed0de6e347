"""`lm.explore(text)`: the panel in a notebook, and what stands in its place where widgets do not run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens import organism
from latentlens.errors import LatentLensError
from latentlens.values.interventions import Intervention
from latentlens.values.markup import Html, card, facts, note, tag, tokens
from latentlens.values.sae import SAE
from latentlens.views.panel.session import Session

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_HERE = Path(__file__).parent
_TOLD = ("about", "settings", "tokens", "inspected", "items", "found", "runs", "problem", "code")


class Panel:
    """A panel on one model and text. Show it as the last line of a cell; its state stays readable from Python.

    Attributes: session: what it does, without a page. widget: the anywidget, or None where that is not installed.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        made = _widget_class()
        self.widget: Any = None if made is None else made(session)

    @property
    def steer(self) -> list[Intervention]:
        """The interventions that the sliders stand for: `lm.generate(prompts, steer=panel.steer)`."""
        return self.session.plan

    @property
    def code(self) -> str:
        """Lines of Python that do what the panel shows."""
        return self.session.code()

    def pin(self, key: str) -> None:
        """Pin and show an item: "direction:NAME", "latent:17", "contrast:happy - sad".

        Raises: BadInput: nothing of that name.
        """
        found = self.session.show({"key": key})
        if self.widget is not None:
            self.widget.tell(found)

    def __repr__(self) -> str:
        return f"Panel({self.session.lm.name}: {self.session.text!r}, {len(self.session.items)} pinned)"

    def _repr_html_(self) -> str:
        """Without a widget: the tokens with their colours, both texts if they were written, and the code."""
        shown = self.session.open()
        words = shown["tokens"]["words"]
        colours = self.session._colours()
        parts: list[Html] = [tokens(words, colours.get("values", [0.0] * len(words)), largest=colours.get("largest"))]
        if self.session.runs is not None:
            plain, steered = (runs[0].text for runs in self.session.runs)
            parts.append(facts({"unsteered": plain, "steered": steered}))
        parts.append(tag("pre", shown["code"]))
        why = (
            "anywidget is not installed: pip install latentlens[notebook]" if self.widget is None else "no kernel runs"
        )
        parts.append(note(f"The panel itself is not shown here ({why})."))
        return card(repr(self), *parts)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget with the static page beside it, for viewers that know no widgets."""
        still = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        if self.widget is None:
            return still
        bundle = self.widget._repr_mimebundle_(**options)
        data, about = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**still, **data, "text/plain": repr(self)}, about


def explore(lm: LensModel, text: Any, *, sae: SAE | None = None, **options: Any) -> Panel:
    """Open the panel: the text as tokens, what each of them holds, and sliders that change what is written next.

        lm.explore("Tell me about the sea.", directions={"truth": truth}, sae=sae, chat=True)

    Args:
        text: a text, or a chat that ends with the user.
        sae: whose latents are shown and can be pinned; for the embedded model its own by default.
        options: `directions` by name, ready to be added; `chat` to put a text as a user's turn; `length`, `seed` and
            `temperature` of what is written. See `Session`.
    Raises: what `lm.tokens` raises; BadInput: directions that are none, neither a text nor a chat.
    """
    if sae is None and lm.name == "organism" and organism.saes():
        from latentlens.access.saes.sae import load_sae

        try:
            sae = load_sae(organism.sae_path())
        except LatentLensError:  # other weights are installed than those that it was trained on
            sae = None
    return Panel(Session(lm, text, sae=sae, **options))


@functools.cache
def _widget_class() -> Any:
    """The widget, or None without anywidget."""
    try:
        import anywidget
        from traitlets import Any as Trait
    except ImportError:
        return None

    class PanelWidget(anywidget.AnyWidget):
        """Shows a session; every trait is one part of the page."""

        _esm = _HERE / "panel.js"
        _css = _HERE / "panel.css"

        def __init__(self, session: Session) -> None:
            self.add_traits(**{name: Trait({}).tag(sync=True) for name in _TOLD})
            empty: dict[str, Any] = {"inspected": {}, "runs": {}, "problem": ""}
            super().__init__(**empty, **deepcopy(session.open()))
            self.on_msg(lambda _widget, message, _buffers: self.hear(session, message))

        def hear(self, session: Session, message: Any) -> None:
            """Answer a message of the page."""
            self.tell(session.answer(message))
            self.send({"kind": "done"})

        def tell(self, changed: Mapping[str, Any]) -> None:
            """Put what changed on the page, in one message: never new tokens beside old texts."""
            with self.hold_sync():
                for name, value in changed.items():
                    setattr(self, name, deepcopy(value))  # a session goes on changing its own

    return PanelWidget
