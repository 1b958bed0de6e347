"""What the SAEs were found to carry, as rows with intervals and bands, and the card that shows them.

latentlens organism evaluate-sae          prints the table of each SAE; exit code 1 if a latent or an effect is missing
latentlens organism evaluate-sae --card   also puts the tables into the SAEs' card
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentlens.access.model import LensModel
from latentlens.access.saes.sae import load_sae
from latentlens.organism import sae_path, saes
from latentlens.organism.evaluate import renew
from latentlens.organism.evaluation.rows import Band, Row, table
from latentlens.organism_saes.ablation import ablation
from latentlens.organism_saes.concepts import OFF_TOPIC, best
from latentlens.organism_saes.fidelity import fidelity
from latentlens.values.results import Estimate

#: Concepts that must have a latent of their own, by how their name begins, and how good it must be.
MUST, AREA = ("topic ", "language ", OFF_TOPIC), (0.9, 1.0)


def measure(lm: LensModel, name: str, folder: Path | None = None, causal: bool = True) -> list[Row]:
    """Measure one SAE: what it keeps, the best latent of each concept, and restarts with latents ablated.

    Args: name: one of `organism.saes()`. folder: of another SAE than the one that ships. causal: with the ablations.
    """
    sae = load_sae(folder or sae_path(name))
    kept = fidelity(lm, sae)
    one = f"{name} ({sae.kind}, block {sae.site.block})"
    rows = [
        _row(f"{one}, variance explained", kept.explained, kept.tokens, (0.9, 1.0)),
        _row(f"{one}, active latents a token", kept.l0, kept.tokens),
        _row(f"{one}, share of latents that never fire", kept.dead, kept.tokens, (0.0, 0.3)),
        _row(f"{one}, loss, nats a token", kept.clean, kept.tokens),
        _row(f"{one}, loss with its reconstruction", kept.replaced, kept.tokens),
        _row(f"{one}, loss with zeros instead", kept.zeroed, kept.tokens),
        _estimate(f"{one}, loss recovered", kept.recovered, (0.9, 1.0)),
    ]
    for found in best(lm, sae):
        band = AREA if found.concept.startswith(MUST) else None
        rows.append(_estimate(f"{one}, {found.concept}: AUROC of latent {found.latent}", found.auroc, band))
        rows.append(_row(f"{one}, {found.concept}: AUROC of a random latent, median", found.typical, found.auroc.n))
        rows.append(_row(f"{one}, {found.concept}: largest AUROC with permuted labels", found.chance, found.auroc.n))
    return [*rows, *(restarts(lm, name, folder) if causal else [])]


def restarts(lm: LensModel, name: str, folder: Path | None = None) -> list[Row]:
    """Return the causal rows: restarts under topic steering by arm, and each arm's paired change."""
    arms = ablation(lm, load_sae(folder or sae_path(name)))
    lowest = min(arm.share.value for arm in arms if "random" in arm.name)
    rows = []
    for arm in arms:
        # The claim: fewer restarts than with any set of random latents, and at most half of those without ablation.
        claimed = arm.name == "off-topic latents"
        shown = f" ({', '.join(map(str, arm.latents))})" if arm.latents else ""
        band = (0.0, min(lowest, arms[1].share.value / 2)) if claimed else None
        rows.append(_estimate(f"{name}, restarts, {arm.name}{shown}", arm.share, band))
        if arm.change is not None:
            rows.append(_estimate(f"{name}, restarts, {arm.name}, change", arm.change))
    return rows


def _row(name: str, value: float, n: int, band: Band | None = None) -> Row:
    return Row(name, value, float("nan"), float("nan"), n, band)


def _estimate(name: str, found: Estimate, band: Band | None = None) -> Row:
    return Row(name, found.value, found.low, found.high, found.n, band)


def evaluate(lm: LensModel, names: Sequence[str] = (), *, card: Path | None = None) -> int:
    """Print the table of the named SAEs (none given: all); return 1 if something that must hold does not, else 0.

    Args: card: a Markdown file with marks, between which the table goes.
    Raises: BadInput: unknown name, or the card has no marks.
    """
    rows = [row for name in names or saes() for row in measure(lm, name)]
    print(table(rows))
    if card is not None:
        renew(card, rows)
    missing = [row.name for row in rows if not row.holds]
    print(f"\n{len(missing)} of what must hold missing" + "".join(f"\n  {name}" for name in missing))
    return 1 if missing else 0
