"""Does adding a topic's direction change what the embedded model writes about?

    python steering/topics.py [--block 4] [--report topics.html] [--folder runs/topics]

The direction of a topic is the mean difference of the states (response tokens) of texts on it and of texts on the
other topics. Prompts ask for one topic and are steered towards another one while the first three tokens of the answer
are predicted; beside every strength stand random directions of equal norm, and, as the plain alternative, the prompt
that asks for the other topic in words. An answer counts when its first sentence is well formed and on the topic that it
was steered to. Fluency is the likelihood of the answers under the unsteered model: steered all along (--steps 0), the
same direction yields topic words without grammar, at nine nats a token. Block and steps were chosen on other draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

import latentlens as ll
from latentlens.organism.corpus import draw
from latentlens.organism.corpus.topics import ASKED, TOPICS
from latentlens.organism.judges import sentences, topic_of
from latentlens.views.figures import steering_effect
from latentlens.views.terminal import print_table

STRENGTHS = (0.5, 0.75, 1.0, 1.5, 2.0)  # median norms of the states at the block
SEEDS, DRAWS, TEMPERATURE, LENGTH = range(4), 3, 0.7, 48


def chat(topic: str, form: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": form.format(topic)}]


def directions(lm: ll.LensModel, block: int) -> dict[str, ll.Direction]:
    """Mean difference of each topic against the others, on texts that the experiment does not use."""
    drawn = draw("topics", 400, seed=5_000, split="on_topic")
    acts = lm.activations(
        [t.messages() for t in drawn], sites=f"resid_post[{block}]", where="role:assistant", pool="mean"
    )
    site, states = acts.sites[0], acts[acts.sites[0]]
    on = {topic: torch.tensor([t.topic == topic for t in drawn]) for topic in TOPICS}
    return {t: ll.Direction(states[mine].mean(0) - states[~mine].mean(0), site, t) for t, mine in on.items()}


def begins_with(text: str, topic: str) -> bool:
    """Whether the first sentence is on the topic, and a sentence: a capital, four to nine words, a full stop."""
    first = (sentences(text) or [""])[0]
    return topic_of(first) == topic and first[:1].isupper() and first.endswith(".") and 4 <= len(first.split()) <= 9


def main(
    block: Annotated[int, typer.Option(help="where the direction is read and added")] = 4,
    steps: Annotated[int, typer.Option(help="steer while so many tokens are predicted; 0: all of them")] = 3,
    report: Annotated[Path, typer.Option(help="page to write")] = Path("topics.html"),
    folder: Annotated[Path | None, typer.Option(help="keep finished rows here, and resume from them")] = None,
) -> None:
    """Steer ten prompts to another topic each, with controls, and write a page."""
    lm = ll.load()
    vectors = directions(lm, block)
    prompts = [(topic, TOPICS[(i + 3) % len(TOPICS)], form) for i, topic in enumerate(TOPICS) for form in ASKED]
    when = {"where": "last_prompt+response", "schedule": ll.Schedule(stop=steps) if steps else None}
    plans: dict[str, object] = {"no edit": None}
    for c in STRENGTHS:
        plans[f"direction {c}"] = [[ll.Add(vectors[to], c, unit="norm", **when)] for _, to, _ in prompts]
        for number in range(DRAWS):
            random = [vectors[to].random_like(number) for _, to, _ in prompts]
            plans[f"random {c} {number}"] = [[ll.Add(v, c, unit="norm", **when)] for v in random]
    how = {"max_new_tokens": LENGTH, "temperature": TEMPERATURE, "folder": folder}
    found = pd.concat(
        [
            ll.sweep(lm, [chat(topic, form) for topic, _, form in prompts], plans, SEEDS, **how),
            ll.sweep(lm, [chat(to, form) for _, to, form in prompts], {"prompt": None}, SEEDS, **how),
        ],
        ignore_index=True,
    )
    found["target"] = [prompts[i][1] for i in found["prompt_index"]]
    asked = [
        chat(to if plan == "prompt" else topic, form)
        for plan, i in zip(found["plan"], found["prompt_index"])
        for topic, to, form in [prompts[i]]
    ]
    found["nll"] = ll.unsteered_nll(
        lm, [row.continued(tuple(ids)) for row, ids in zip(lm.tokens(asked), found["generated"])]
    )
    found["outcome"] = [begins_with(text, t) for text, t in zip(found["text"], found["target"], strict=True)]
    arms = []
    for label, group in found.groupby("plan", sort=False):
        kind, *numbers = (label, 0, 0) if label in ("no edit", "prompt") else label.split()
        coeff, draw = float(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0
        arms.append(ll.Arm.of(kind, group["outcome"], coeff, draw))
    effect = ll.SteeringEffect(
        tuple(arms), "first sentences on the topic steered to", f"median norm at resid_post[{block}]"
    )
    table = []
    for c in STRENGTHS:
        shares = [", ".join(arm.share.short for arm in effect.of(kind, c)) for kind in ("direction", "random")]
        nll = [
            f"{found[found.plan.str.startswith(f'{kind} {c}')]['nll'].mean():.2f}" for kind in ("direction", "random")
        ]
        table.append([f"{c:+g}", *shares, effect.against("random", c).short, " / ".join(nll)])
    head = ["strength", "direction", f"{DRAWS} random directions", "difference", "nats a token, direction / random"]
    plain, prompt = (effect.of(kind)[0].share.short for kind in ("no edit", "prompt"))
    fluent = found[found.plan == "no edit"]["nll"].mean()
    note = f"n = {effect.arms[0].n} an arm; no edit {plain} ({fluent:.2f} nats), asked in words {prompt}; intervals 95%"
    print_table(
        f"share of answers whose first sentence is on the topic steered to, block {block}", head, table, note=note
    )
    ll.report(
        report,
        title="Steering topics",
        question="Does adding a topic's direction change what the model writes about?",
        highlights={f"difference to random at {c:+g}": effect.against("random", c) for c in (1.0, 1.5)},
        sections=[
            ll.Section(
                "Share of answers", [steering_effect(effect), ll.Captioned(pd.DataFrame(table, columns=head), note)]
            ),
            ll.Section(
                "Some answers",
                [found[found.plan == "direction 1.0"][["prompt", "target", "text", "outcome", "nll"]].head(12)],
            ),
        ],
        manifest=ll.manifest(lm, block=block, steps=steps, seeds=list(SEEDS), temperature=TEMPERATURE),
    )
    print(f"report: {report}")


if __name__ == "__main__":
    typer.run(main)
