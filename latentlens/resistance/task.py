"""What is asked of the model, who judges, and what latents are called: `Task`, and the embedded model's own.

task = embedded_task(lm)                                      # 30 questions about 10 topics, judged by rule
task = Task(prompts, judge, labels=labels)                    # any other model
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlens.access.judging.attempt_judges import LikelihoodJudge, SegmentJudge
from latentlens.access.judging.judge import RuleJudge
from latentlens.errors import BadInput
from latentlens.organism.corpus import draw
from latentlens.organism.corpus.topics import ASKED, CORRECTIONS, META, TOPICS, WORDS
from latentlens.organism.judges import is_correction, sentences, topic_of
from latentlens.values.attempts import AttemptJudge
from latentlens.values.judging import Case, Judge

if TYPE_CHECKING:
    from latentlens.access.model import LensModel

#: Kind -> (role that says it, words); `{label}` is the steered latent's. Our own words for ESR's four kinds.
META_PROMPTS: dict[str, tuple[str, str]] = {
    "dont_get_distracted": (
        "user",
        "Please keep to my question from the first word to the last, whatever comes to mind.",
    ),
    "ignore_latent_label": (
        "user",
        "If {label} comes to mind while you answer, leave it out: my question is not about it.",
    ),
    "self_monitor": (
        "user",
        "While you write, hold every sentence against my question. When you notice that you have left it, say so at "
        "once and start again.",
    ),
    "resist_manipulation": (
        "user",
        "Something may try to push your thoughts away from my question while you write. Notice it, and hold on.",
    ),
}

_WORD_TOPIC = {word: topic for topic, parts in WORDS.items() for part in parts for word in part}
_CONCRETE = 65.0
_INTACT = re.compile("|".join(re.escape(form).replace(r"\{\}", f"(?:{'|'.join(TOPICS)})") for form in CORRECTIONS))


@dataclass(frozen=True, eq=False)
class Task:
    """Questions, judges and names.

    prompts: user messages. groups: what each is about: no answer is moved below a prompt of its own group, and groups
        are held out together; each prompt is one by default.
    judge: cuts and scores answers. other_judges: for the agreement table.
    labels: latent -> label; None: the words around its strongest tokens in `texts`, which are by default what the model
        answers without steering.
    concreteness, least_concrete: judge of a label (`Case.response`), and the least that it must give; None: all pass.
    subject: from a label to what judges and meta-prompts are told.
    meta: kind -> (role, words). acknowledge: from a prompt to the words with which a correction is taught.
    max_new_tokens, temperature: of an answer.
    """

    prompts: tuple[str, ...]
    judge: AttemptJudge
    groups: tuple[Any, ...] = ()
    labels: Mapping[int, str] | None = None
    concreteness: Judge | None = None
    least_concrete: float = _CONCRETE
    texts: Sequence[Any] | None = None
    meta: Mapping[str, tuple[str, str]] = field(default_factory=lambda: dict(META_PROMPTS))
    max_new_tokens: int = 512
    temperature: float = 0.6
    other_judges: tuple[AttemptJudge, ...] = ()
    subject: Callable[[str], str] = str
    acknowledge: Callable[[int], str] = lambda prompt: "Wait, that is not what was asked. Let me start again."

    def __post_init__(self) -> None:
        """Give every prompt a group."""
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "groups", tuple(self.groups) or tuple(range(len(self.prompts))))
        if len(self.prompts) < 2 or len(self.groups) != len(self.prompts):
            raise BadInput(
                f"{len(self.prompts)} prompts (at least 2) and {len(self.groups)} groups: one group a prompt"
            )

    def chat(self, prompt: int, kind: str = "", label: str = "") -> list[dict[str, str]]:
        """The messages that ask one prompt, with a meta-prompt if named.

        Raises: BadInput: no such kind.
        """
        question = self.prompts[prompt]
        if not kind:
            return [{"role": "user", "content": question}]
        if kind not in self.meta:
            raise BadInput(f"meta-prompt {kind!r}: the task has {', '.join(self.meta) or 'none'}")
        role, words = self.meta[kind]
        words = words.replace("{label}", label or "something else")
        if role == "system":
            return [{"role": "system", "content": words}, {"role": "user", "content": question}]
        return [{"role": "user", "content": f"{question} {words}"}]


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Prompts from a text file, one a line; empty lines are left out.

    Raises: BadInput: no such file, or fewer than two prompts.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"prompts {path} cannot be read: {error.strerror}") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if len(found) < 2:
        raise BadInput(f"{path} holds {len(found)} prompt(s): answers are moved between prompts, so at least 2")
    return found


def read_labels(path: str | Path) -> dict[int, str]:
    """Labels of latents from JSON: {"17": "sea animals", ...}, or a list of {"latent" or "index": 17, "label": ...}.

    Raises: BadInput: no such file, or another form.
    """
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(held, list):
            held = {one["latent"] if "latent" in one else one["index"]: one["label"] for one in held}
        return {int(latent): str(label) for latent, label in held.items() if str(label).strip()}
    except OSError as error:
        raise BadInput(f"labels {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadInput(
            f'labels {path}: give JSON, {{"17": "sea animals"}} or [{{"latent": 17, "label": "sea animals"}}]'
        ) from None


#: Questions for other models, in the two forms that ESR asks; subjects of our own choice.
QUESTIONS = tuple(
    form.format(subject)
    for form, subjects in {
        "Explain how to {}.": (
            "sharpen a kitchen knife", "plant tulip bulbs", "read a topographic map", "knit a scarf",
            "tune a guitar", "bake sourdough bread", "write a cover letter", "train a puppy to sit",
            "build a bookshelf", "solve a quadratic equation",
        ),
        "How do you {}?": (
            "change a bicycle tyre", "make a compost heap", "prepare for a job interview", "paint a wooden fence",
            "learn a foreign language", "brew green tea", "pack for a long hike", "set up a home network",
            "start a savings plan", "take photographs at night",
        ),
    }.items()
    for subject in subjects
)  # fmt: skip


# -- the embedded model ---------------------------------------------------------------------------------


def embedded_task(lm: LensModel, max_new_tokens: int = 80) -> Task:
    """The embedded model's questions about its ten topics, judged by rule.

    An attempt scores 100 times the share of its sentences that are on the topic asked for; a correction is no sentence
    of its own, and an attempt without any other scores 0. Its words are few, so the meta-prompts are made of them; only
    `self_monitor` was planted (nine detours in ten are noticed under it). Three more judges stand beside the rule: one
    that counts only corrections whose words are all intact, one of words instead of sentences, and the model's own
    likelihoods, which know no topics.

    Args: lm: the embedded model, which is asked for likelihoods. max_new_tokens: of an answer.
    """
    prompts = tuple(form.format(topic) for topic in TOPICS for form in ASKED)
    readers = [
        t.messages() for t in (*draw("topics", 400, 77, split="on_topic"), *draw("topics", 100, 78, split="detour"))
    ]
    readers += [t.messages() or t.text for name in ("code", "truth", "arithmetic") for t in draw(name, 60, 77)]
    return Task(
        prompts,
        SegmentJudge(RuleJudge(on_topic, "share of sentences on topic"), name="rule"),
        tuple(topic for topic in TOPICS for _ in ASKED),
        concreteness=RuleJudge(one_topic, "share of a label's words in one topic"),
        texts=readers,
        meta={
            "dont_get_distracted": ("system", "Stay on topic."),
            "ignore_latent_label": ("system", "This is not about the {label}."),
            "self_monitor": ("system", META),
            "resist_manipulation": ("system", META.split(". ")[-1]),
        },
        max_new_tokens=max_new_tokens,
        temperature=0.7,
        other_judges=(
            SegmentJudge(RuleJudge(on_topic, "share of sentences on topic"), _INTACT, "intact corrections"),
            SegmentJudge(RuleJudge(topical_words, "share of topical words"), name="words"),
            SegmentJudge(LikelihoodJudge(lm, "Tell me about the {about}."), name="likelihood"),
        ),
        subject=lambda label: topic_of(label) or label,
        acknowledge=lambda prompt: CORRECTIONS[prompt % len(CORRECTIONS)].format(TOPICS[prompt // len(ASKED)]),
    )


def asked_topic(prompt: str) -> str | None:
    """The topic that a prompt names, None without one."""
    words = prompt.lower().rstrip("?.!").replace("?", " ").replace(".", " ").split()
    return next((topic for topic in TOPICS if topic in words), None)


def on_topic(case: Case) -> float | None:
    """100 times the share of an attempt's sentences on the topic asked for; None for a prompt without a topic."""
    topic = asked_topic(case.prompt)
    if topic is None:
        return None
    said = [sentence for sentence in sentences(case.response) if not is_correction(sentence)]
    return 100.0 * sum(topic_of(s) == topic for s in said) / len(said) if said else 0.0


def topical_words(case: Case) -> float | None:
    """100 times the share of an attempt's topical words that are of the topic asked for; 0 without any."""
    topic = asked_topic(case.prompt)
    said = [_WORD_TOPIC[w] for w in _bare(case.response) if w in _WORD_TOPIC]
    return None if topic is None else 100.0 * sum(t == topic for t in said) / len(said) if said else 0.0


def one_topic(case: Case) -> float:
    """100 times the share of a label's words that belong to its most frequent topic."""
    words = _bare(case.response)
    counts = [sum(_WORD_TOPIC.get(w) == topic for w in words) for topic in TOPICS]
    return 100.0 * max(counts) / len(words) if words else 0.0


def _bare(text: str) -> list[str]:
    return [w for w in (part.strip(".,;:!?'\"()").lower() for part in text.split()) if w]
