"""Logistic regression with its tuning: one decomposition for all penalties against scikit-learn.

    python tests/benchmarks/bench_logistic.py           # 2,400 bags of 2,000 genes, 28 patients
    python tests/benchmarks/bench_logistic.py --quick   # 160 bags of 300 genes, for the tests

Both sides run in one process on the same pairs of bags. The other side is the form before: the
principal scores of all rows, then scikit-learn's `newton-cholesky` for each of three inner folds
and five penalties, and once more for the penalty that was chosen. The exit status is 1 where the
two choose another penalty, or coefficients differ by more than 1e-6 of the largest. Threads are as
the environment says (OMP_NUM_THREADS).
"""

import argparse
import sys
import time

import numpy as np
import sklearn
from rows import row
from sklearn.linear_model import LogisticRegression

from longaml.core import rng_for
from longaml.models.baselines import Logistic
from longaml.models.contract import observed_rows
from longaml.pp.preprocessing import Sequences, patient_folds

LARGEST = 1e-6  # difference that is still agreement, as a share of the largest coefficient


def pairs_of_bags(patients, pairs, genes):
    "Centred pairs of bags, with effects of patients, cell types and time, and noise."
    rng = rng_for(0, "bench logistic", patients, pairs, genes)
    who = np.arange(pairs) % patients
    cell_type = (np.arange(pairs) // patients) % 12
    level = rng.gamma(1.0, 1.0, genes)
    change = rng.normal(0, 0.15, genes) + rng.normal(0, 0.3, (patients, genes))[who]
    change += rng.normal(0, 0.3, (12, genes))[cell_type]
    noise = rng.normal(0, 0.4, (pairs, 2, genes))
    x = level + np.array([-0.5, 0.5])[None, :, None] * change[:, None] + noise
    x = (x - x.mean(1, keepdims=True)).astype(np.float32)
    names = np.array([f"P{i:02d}" for i in who])
    return Sequences(
        x=x,
        mask=np.ones((pairs, 2), dtype=bool),
        y=np.tile([0, 1], (pairs, 1)),
        patients=names,
        cell_types=cell_type.astype(str),
        samples=np.char.add(names[:, None], np.array(["_DX", "_REL"])),
        technical=np.zeros((pairs, 2, 1), dtype=np.float32),
        timepoints=["DX", "REL"],
        genes=[f"G{i}" for i in range(genes)],
        level=None,
    )


def fitted(x, y, weight, c):
    "Coefficients by scikit-learn."
    how = {"fit_intercept": False, "solver": "newton-cholesky", "tol": 1e-8, "max_iter": 50}
    return LogisticRegression(C=c, **how).fit(x, y, sample_weight=weight).coef_


def before(sets, grid):
    "The penalty chosen and the coefficients, one fit at a time."
    rows = observed_rows(sets, sets.x)
    scale = rows.x.std(0)
    z = rows.x / scale
    values, axes = np.linalg.eigh(z @ z.T)
    keep = values > values[-1] * 1e-10
    axes = (axes[:, keep] / np.sqrt(values[keep])).T @ z
    scores, loss = z @ axes.T, np.zeros(len(grid))
    for held in patient_folds(rows.patients, n_folds=3, seed=0):
        out = np.isin(rows.patients, held)
        for i, c in enumerate(grid):
            margin = scores[out] @ fitted(scores[~out], rows.y[~out], rows.weight[~out], c)[0]
            margin = np.where(rows.y[out] == 1, margin, -margin)
            loss[i] += (rows.weight[out] * np.logaddexp(0, -margin)).sum()
    chosen = grid[int(np.argmin(loss))]
    return chosen, fitted(scores, rows.y, rows.weight, chosen) @ axes / scale


def timed(work):
    "Seconds, and what the work gives."
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="a small case, for the tests")
    quick = parse.parse_args().quick
    patients, pairs, genes = (8, 80, 300) if quick else (28, 1200, 2000)
    sets = pairs_of_bags(patients, pairs, genes)
    seconds, model = timed(lambda: Logistic().fit(sets))
    old_seconds, (chosen, coef) = timed(lambda: before(sets, model.grid))
    far = float(np.abs(model.coef - coef).max() / np.abs(coef).max())
    what = f"logistic regression and its penalty, {2 * pairs:,} bags of {genes:,} genes"
    row(what, ("path", seconds), ("scikit-learn, one by one", old_seconds), differs=far)
    print(f"{2 * pairs:,} bags of {genes:,} genes, scikit-learn {sklearn.__version__}")
    print(f"  path           {seconds:8.3f} s, penalty {model.chosen:g}")
    print(f"  scikit-learn   {old_seconds:8.3f} s, penalty {chosen:g}")
    print(f"  {old_seconds / seconds:,.1f} times less time")
    print(f"  largest difference of a coefficient, as a share of the largest: {far:.1e}")
    return int(model.chosen != chosen or far > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
