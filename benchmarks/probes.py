"""What does a sweep of linear probes cost: 24 layers x 5,000 rows x 896, 10 values of C, 5 folds, binary?

    python benchmarks/probes.py [--layers 24] [--sklearn-layers 4] [--threads 1]

1,200 fits. Ours: `maths.batched_logistic.fit_logistic`, all of them. Against it the loop that one would write:
StandardScaler and LogisticRegression (lbfgs) for each layer, fold and C, timed on some layers with one fold each
and multiplied up. Five loops: float32 rows with scikit-learn's default tolerance (1e-4, which stops more than .001
AUROC away from the optimum at large C), with 1e-5 and 1e-6, and float64 rows with 1e-4 and 1e-6; max_iter=5000.

Accuracy: the largest difference of held-out AUROC to the optimum (our float64 solver at tolerance 1e-7, which the
tests hold to scikit-learn's at 1e-10), over the same layers, fold and C. The rows: variance of the k-th component
proportional to 1/k, randomly rotated; the label shifts one direction, from nothing in the first layer to near
separation in the last. CPU seconds of this process, the two sides in turns. Results: benchmarks/results/probes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from latentlens.maths.batched_logistic import fit_logistic
from latentlens.maths.statistics import auroc

N, D, FOLDS = 5000, 896, 5
GRID = torch.logspace(-4, 2, 10, dtype=torch.float64)


def planted(n_layers: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.rand(N, generator=g) < 0.5
    spectrum = torch.arange(1, D + 1).float() ** -0.5
    layers = []
    for i in range(n_layers):
        rotation = torch.linalg.qr(torch.randn(D, D, generator=g))[0]
        truth = torch.nn.functional.normalize(torch.randn(D, generator=g), dim=0)
        rows = 3 * torch.randn(N, D, generator=g) * spectrum @ rotation + torch.randn(D, generator=g)
        layers.append(rows + 0.6 * i / max(n_layers - 1, 1) * (y[:, None].float() - 0.5) * truth)
    return torch.stack(layers), y


def sklearn_fold(x, y, train, dtype, tol):
    """CPU seconds and held-out AUROC of the ten fits of one layer and fold."""
    rows, labels = x.numpy().astype(dtype), y.numpy()
    began = time.process_time()
    scaler = StandardScaler().fit(rows[train])
    z, rest = scaler.transform(rows[train]), scaler.transform(rows[~train])
    models = [LogisticRegression(C=c, tol=tol, max_iter=5000).fit(z, labels[train]) for c in GRID.tolist()]
    took = time.process_time() - began
    return took, np.array([auroc(m.decision_function(rest), labels[~train]) for m in models])


def scored(x, y, test, found, columns):
    return np.array([auroc((x[test].double() @ found.weights[0, j]).numpy(), y[test].numpy()) for j in columns])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--sklearn-layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    x, y = planted(args.layers)
    fold = torch.arange(N) % FOLDS
    rows = torch.stack([fold != f for f in range(FOLDS) for _ in GRID])
    labels, C = y.expand(len(rows), N), GRID.repeat(FOLDS)
    kinds = [("float32", 1e-4), ("float32", 1e-5), ("float32", 1e-6), ("float64", 1e-4), ("float64", 1e-6)]
    loops = {f"scikit-learn, {dtype}, tol {tol:g}": (dtype, tol) for dtype, tol in kinds}
    sampled = np.linspace(1, args.layers - 1, args.sklearn_layers).round().astype(int).tolist()
    ours_name = "ours, float32, tol 0.002"
    seconds: dict[str, list[float]] = {name: [] for name in (ours_name, *loops)}
    gaps: dict[str, list[float]] = {name: [] for name in (ours_name, *loops)}
    fit_logistic(x[:1, :1000], labels[:1, :1000], C[:1])  # first use of the libraries
    for layer in range(args.layers):
        began = time.process_time()
        found = fit_logistic(x[layer : layer + 1], labels, C, rows)
        seconds[ours_name].append(time.process_time() - began)
        if layer not in sampled:
            continue
        exact = fit_logistic(
            x[layer][None], labels[:10], GRID, rows[:10], tol=1e-7, max_steps=3000, dtype=torch.float64
        )
        best = scored(x[layer], y, fold == 0, exact, range(10))
        gaps[ours_name].append(np.abs(scored(x[layer], y, fold == 0, found, range(10)) - best).max())
        with threadpool_limits(args.threads):
            for name, (dtype, tol) in loops.items():
                took, theirs = sklearn_fold(x[layer], y, (fold != 0).numpy(), dtype, tol)
                seconds[name].append(took)
                gaps[name].append(np.abs(theirs - best).max())
        print(f"layer {layer}: best held-out AUROC {best.max():.3f}", flush=True)
    whole = {ours_name: sum(seconds[ours_name])}
    whole |= {name: float(np.mean(seconds[name])) * FOLDS * args.layers for name in loops}
    print(f"{'':<34}{'CPU s':>9}{'times ours':>12}{'AUROC gap':>11}")
    table = {}
    for name, total in whole.items():
        times = total / whole[ours_name]
        print(f"{name:<34}{total:>9.1f}{times:>12.1f}{max(gaps[name]):>11.5f}")
        table[name] = {"cpu_seconds": total, "times_ours": times, "largest_auroc_gap": float(max(gaps[name]))}
    facts = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    facts |= {"scikit-learn": sklearn.__version__, "threads": args.threads, "sampled layers": sampled}
    out = Path(__file__).parent / "results" / "probes.json"
    out.write_text(json.dumps({"facts": facts, "arms": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
