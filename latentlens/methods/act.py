"""ACT: probes of attention heads, one a head and cluster of questions, push each head as far as it falls short.

    heads = act.fit(z_target, z_others)                         `z` (INPUT of the output projection) of the same prompts
    lm.generate(prompts, steer=heads.plan(alpha=12, top=24))

    d_q = mean(target rows of q) - mean(other rows of q)        per head; KMeans(3) over the questions
    p = sigmoid(w . x + b)                                      per head and cluster, logistic regression on 80% of it
    x += alpha sigma theta (1 + beta - p)                       theta = w / |w|, sigma = std of x . theta over all rows

The script that circulates captures the OUTPUT of the projection, where heads are already mixed; this reads its input.
With several other styles a prompt has more other rows than target rows, so both kinds weigh the same in the fit and in
the accuracy.

Source: Wang et al. (arXiv 2406.00034).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from latentlens.errors import BadInput, NonFiniteActivations, TooFewExamples
from latentlens.maths.clustering import kmeans
from latentlens.values.act_heads import ActHeads, HeadProbe
from latentlens.values.activations import Activations
from latentlens.values.results import Estimate
from latentlens.values.sites import Site

# As in the original script: with fewer validation rows an accuracy says nothing and counts as 0.
_LEAST = 5


def fit(
    target: Activations, others: Sequence[Activations], *, k: int = 3, test_share: float = 0.2, n_controls: int = 1,
    seed: int = 42, level: float = 0.95,
) -> ActHeads:  # fmt: skip
    """Fit the probes of every head.

    Clusters come from differences between the two kinds of rows, held-out ones included (as in the script), so inside a
    cluster even noise can be told apart: with three clusters a head without any signal scores about .8. The control
    calls a random style of each prompt the target and repeats everything: compare with that, not with .5.

    Args:
        target: `z` of each prompt in the target style, one row a prompt: (rows, heads, d_head) a site.
        others: the same prompts in each of the other styles.
        k: clusters a head, reduced to the number of distinct differences.
        test_share: of the prompts of a cluster, with all their rows, held out for the accuracy.
        n_controls: draws of the control; 0 leaves it out.
        seed: of KMeans, of the splits and of the control.
    Raises: BadInput: sites that hold no heads, or rows that do not fit. TooFewExamples, NonFiniteActivations.
    """
    if not others or any(one.sites != target.sites or len(one) != len(target) for one in others):
        raise BadInput("target and others must hold the same prompts at the same z sites, one other style at least")
    wrong = [str(site) for site in target.sites if target[site].ndim != 3]
    if wrong:
        raise BadInput(f"{wrong[0]} is not split into heads: ACT reads z sites")
    if len(target) < 2:
        raise TooFewExamples(f"{len(target)} prompt: ACT needs two at least")
    rows = {site: torch.stack([one[site].float() for one in (target, *others)], 1) for site in target.sites}
    broken = [str(site) for site, values in rows.items() if not values.isfinite().all()]
    if broken:
        raise NonFiniteActivations(f"{broken[0]} holds NaN or infinity: drop those prompts first")
    rng = np.random.default_rng(seed)
    with threadpool_limits(1):  # thousands of fits on tiny matrices: waking threads costs more than they do
        probes = _probes(rows, k, test_share, rng, seed)
        null = [
            a for _ in range(n_controls) for a in _accuracies(_probes(_anyone(rows, rng), k, test_share, rng, seed))
        ]
    shape = {site: (values.shape[2], values.shape[3]) for site, values in rows.items()}
    chance = Estimate(float(np.mean(null)), min(null), max(null), len(null), level) if null else None
    most = 1 + max((probe.cluster for probe in probes), default=0)
    return ActHeads(tuple(probes), shape, most, chance, {"method": "ACT", "seed": seed, "prompts": len(target)})


def _probes(
    rows: Mapping[Site, Tensor], k: int, test_share: float, rng: np.random.Generator, seed: int
) -> list[HeadProbe]:
    """Probes of all heads, from rows (prompts, styles, heads, d_head) of which style 0 is the target."""
    from sklearn.linear_model import LogisticRegression

    probes = []
    for site, values in rows.items():
        for head in range(values.shape[2]):
            x = values[:, :, head].double().numpy()
            labels = kmeans(x[:, 0] - x[:, 1:].mean(1), k, seed=seed)
            for cluster in range(int(labels.max()) + 1):
                of = rng.permutation(np.flatnonzero(labels == cluster))
                held, kept = np.split(of, [round(test_share * len(of))])
                found = LogisticRegression(max_iter=1000, class_weight="balanced").fit(*_sides(x[kept]))
                weight = torch.from_numpy(found.coef_[0]).float()
                if not weight.any():
                    continue
                points, truth = _sides(x[held])
                n = len(truth) if len(truth) >= _LEAST else 0
                right = found.predict(points) == truth if n else np.zeros(0, bool)
                accuracy = float((right[truth].mean() + right[~truth].mean()) / 2) if n else 0.0
                sigma = float((values[:, :, head].flatten(0, 1) @ (weight / weight.norm())).std(unbiased=False))
                probes.append(HeadProbe(site, head, cluster, weight, float(found.intercept_[0]), sigma, accuracy, n))
    return probes


def _sides(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All rows of some prompts (prompts, styles, d), and which are in the target style."""
    return x.reshape(-1, x.shape[-1]), np.tile(np.arange(x.shape[1]) == 0, len(x))


def _anyone(rows: Mapping[Site, Tensor], rng: np.random.Generator) -> dict[Site, Tensor]:
    """The same rows with a random style of each prompt in the place of the target, the same at all sites."""
    n, styles = next(iter(rows.values())).shape[:2]
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(styles), (n, 1)), axis=1))
    return {site: values[torch.arange(n)[:, None], order] for site, values in rows.items()}


def _accuracies(probes: Sequence[HeadProbe]) -> list[float]:
    return [probe.accuracy for probe in probes if probe.n_validation]
