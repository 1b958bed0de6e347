"""Does adding a topic's direction change what the embedded model writes about?

    python steering/topics.py [--block 3] [--report topics.html] [--folder runs/topics]

The direction of a topic is the mean difference of the states (response tokens) of texts on it and of texts on the
other topics. Ten prompts ask for one topic each and are steered towards another one; beside every strength stand
random directions of equal norm, and, as the plain alternative, the prompt that asks for the other topic in words. An
answer counts when most of its sentences are on the topic that it was steered to; sentences are judged by their words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import latentlens as ll
from latentlens.organism.corpus import texts
from latentlens.organism.corpus.topics import ASKED, TOPICS
from latentlens.organism.judges import sentences, topic_of
from latentlens.views.figures import steering_effect
from latentlens.views.terminal import print_table

STRENGTHS = (0.5, 1.0, 1.5, 2.0)  # median norms of the states at the block
SEEDS, DRAWS, TEMPERATURE, LENGTH = range(4), 3, 0.7, 48


def chat(topic: str, form: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": form.format(topic)}]


def directions(lm: ll.LensModel, block: int) -> dict[str, ll.Direction]:
    """Mean difference of each topic against the others, on texts that the experiment does not use."""
    drawn = texts("topics", 400, seed=5_000, split="on_topic")
    acts = lm.activations([t.messages() for t in drawn], sites=f"resid_post[{block}]", where="role:assistant", pool="mean")
    states, topic = acts[f"resid_post[{block}]"], pd.Series([t.topic for t in drawn])
    return {
        t: ll.Direction(states[(topic == t).to_numpy()].mean(0) - states[(topic != t).to_numpy()].mean(0), acts.sites[0], t)
        for t in TOPICS
    }


def written_about(text: str, topic: str) -> bool:
    found = [topic_of(sentence) for sentence in sentences(text)]
    return sum(one == topic for one in found) * 2 > len(found)


def main(
    block: Annotated[int, typer.Option(help="where the direction is read and added")] = 3,
    report: Annotated[Path, typer.Option(help="page to write")] = Path("topics.html"),
    folder: Annotated[Path | None, typer.Option(help="keep finished rows here, and resume from them")] = None,
) -> None:
    """Steer ten prompts to another topic each, with controls, and write a page."""
    lm = ll.load()
    vectors = directions(lm, block)
    target = {topic: TOPICS[(i + 3) % len(TOPICS)] for i, topic in enumerate(TOPICS)}
    arms, rows = [], []
    for topic in TOPICS:
        v = vectors[target[topic]]
        plans: dict[str, object] = {"no edit": None}
        for c in STRENGTHS:
            plans[f"direction {c}"] = ll.Add(v, c, unit="norm", where="last_prompt+response")
            for draw in range(DRAWS):
                plans[f"random {c} {draw}"] = ll.Add(v.random_like(draw), c, unit="norm", where="last_prompt+response")
        how = {"max_new_tokens": LENGTH, "temperature": TEMPERATURE, "folder": folder}
        frame = ll.sweep(lm, [chat(topic, form) for form in ASKED], plans, SEEDS, **how)
        asked = ll.sweep(lm, [chat(target[topic], form) for form in ASKED], {"prompt": None}, SEEDS, **how)
        rows.append(pd.concat([frame, asked]).assign(asked=topic, target=target[topic]))
    found = pd.concat(rows, ignore_index=True)
    found["outcome"] = [written_about(text, t) for text, t in zip(found["text"], found["target"], strict=True)]
    for label, group in found.groupby("plan", sort=False):
        kind, *numbers = (label, 0, 0) if label in ("no edit", "prompt") else label.split()
        coeff, draw = float(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0
        arms.append(ll.Arm.of(kind, group["outcome"], coeff, draw))
    effect = ll.SteeringEffect(tuple(arms), "answers on the topic steered to", f"median norm at resid_post[{block}]")
    table = [
        [f"{c:+g}", *(", ".join(a.share.short for a in effect.of(k, c)) for k in ("direction", "random"))]
        + [effect.against("random", c).short]
        for c in STRENGTHS
    ]
    head = ["strength", "direction", f"{DRAWS} random directions", "difference"]
    plain, prompt = (effect.of(kind)[0].share.short for kind in ("no edit", "prompt"))
    note = f"n = {effect.arms[0].n} answers an arm; no edit {plain}, asked in words {prompt}; 95% intervals"
    print_table(f"share of answers on the topic steered to, block {block}", head, table, note=note)
    ll.report(
        report,
        title="Steering topics",
        question="Does adding a topic's direction change what the model writes about?",
        highlights={f"difference to random at {c:+g}": effect.against("random", c) for c in (1.0, 2.0)},
        sections=[
            ll.Section("Share of answers", [steering_effect(effect), ll.Captioned(pd.DataFrame(table, columns=head), note)]),
            ll.Section("Some answers", [found[found.plan == "direction 1.5"][["prompt", "target", "text", "outcome"]].head(12)]),
        ],
        manifest={"model": repr(lm), "block": block, "seeds": list(SEEDS), "temperature": TEMPERATURE},
    )
    print(f"report: {report}")


if __name__ == "__main__":
    typer.run(main)
