"""What a model is measured by: texts of reference, the size of its states, and which tokens end a sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from latentlens.errors import BadInput
from latentlens.values.sites import Site

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

_ENDS = re.compile(r"[.!?\u3002\uff01\uff1f][\"')\]\u201d]*\s*$|\n\s*$")

#: Plain texts of several kinds, on which a model is measured unless told otherwise.
TEXTS = (
    "The ferry left the harbour before sunrise, and by noon the town was only a thin line behind us.",
    "To bake a simple loaf, mix flour, water, salt and yeast, wait until it has doubled, and use a hot oven.",
    "A prime number has exactly two divisors. Seven is prime; nine is not, because three times three is nine.",
    "She asked whether the meeting could be moved to Thursday, since two of her colleagues would be travelling.",
    "In the northern forest, wolves follow the herds, and ravens follow the wolves.",
    "def area(width, height):\n    return width * height\n",
    "Our flight was delayed by four hours, so we played cards on the floor next to the gate.",
    "Water boils at a lower temperature on a mountain because the pressure of the air is lower there.",
    "Dear Ms Okafor, thank you for your letter. We are glad to confirm your reservation for two nights.",
    "The orchestra rehearsed the slow movement again and again until the cellos no longer dragged.",
    "Prices rose by two percent in the spring, while wages hardly changed.",
    "What would you do if nobody had ever told you that it was impossible?",
    "The cat watched the snow from the windowsill and refused to go out.",
    "A court may set a contract aside when one party was misled about an essential fact.",
    "First remove the four screws at the back. Then lift the cover carefully, without pulling on the cable.",
    "My grandmother kept bees, and every August the whole kitchen smelled of warm honey.",
    "Light from that star has travelled for nine hundred years before reaching us tonight.",
    "No, I do not think the second proposal is better; it costs more and promises less.",
    "The river is forty metres wide here, but shallow enough to cross on foot in late summer.",
    "Vaccines teach the immune system to recognise a germ without making the person ill.",
    "He scored in the last minute, ran to the corner and disappeared under his team mates.",
    "Please list three reasons why cities plant trees along their streets.",
    "An old map showed a road that nobody in the village could remember.",
    "When the power failed, the whole street came outside and looked at the sky.",
)


def median_norm(lm: LensModel, site: Site) -> float:
    """Median norm of the states at a site over the content tokens of `lm.reference_texts`.

    Raises: BadInput: the model has no tokenizer and `reference_texts` holds texts.
    """
    if lm.tokenizer is None and any(isinstance(text, str) for text in lm.reference_texts):
        raise BadInput("unit='norm' needs texts to measure norms on: set lm.reference_texts to lists of token ids")
    states = lm.activations(lm.reference_texts, sites=site, where="content", truncate="right")[site]
    return float(states.float().flatten(1).norm(dim=-1).median())


def sentence_ends(tokenizer: Any, vocab_size: int) -> frozenset[int]:
    """Token ids whose text closes a sentence: a full stop, a question or exclamation mark, or a line break.

    Raises: BadInput: there is no tokenizer.
    """
    if tokenizer is None:
        raise BadInput("a schedule per sentence needs a tokenizer, to know which tokens end a sentence")
    size = min(vocab_size, len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in range(size)])
    return frozenset(i for i, text in enumerate(texts) if _ENDS.search(text))
