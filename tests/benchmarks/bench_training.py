"""Many fits as one against one after the other: 32 Transformers (8 folds x 4 permutations).

    python tests/benchmarks/bench_training.py           # 10 patients x 400 genes; 28 x 2,000
    python tests/benchmarks/bench_training.py --quick   # 8 fits of a small cohort, for the tests

Both sides train the same networks in one process: one call of `la.models.stacking.fit_many`
against one of `la.models.fit` per network, the plain loop. Nothing is dropped out, so that the
networks of both sides must agree; the exit status is 1 where they do not. Threads are as the
environment says (OMP_NUM_THREADS).
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace

os.environ.setdefault("LONGAML_PROGRESS", "0")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rows import row  # noqa: E402

import longaml as la  # noqa: E402

LARGEST = 1e-3  # difference of a logit that is still agreement


@dataclass
class Size:
    "A cohort, and how it is timed."

    preset: str
    patients: int
    genes: int
    folds: int = 8
    permutations: int = 4
    epochs: int = 20  # as in a ranking
    repeats: int = 3  # the best counts


SIZES = [Size("small", 10, 400), Size("realistic", 28, 2000, repeats=1)]
QUICK = [Size("small", 7, 200, folds=4, permutations=2, epochs=5, repeats=1)]


def jobs_of(sets, size):
    "A job for every permutation and fold, each with its labels."
    names = sorted(set(sets.patients))
    folds = la.pp.patient_folds(sets.patients, n_folds=size.folds)
    labels = [
        np.array([[sets.timepoints.index(a[s]) for s in row] for row in sets.samples])
        for a in la.tl.permute_samples(
            la.tl.permutation.design_of(sets), n=size.permutations
        ).assignments
    ]
    return [
        la.models.training.Job(tuple(p for p in names if p not in f), seed=i, y=y)
        for y in labels
        for i, f in enumerate(folds)
    ]


def best(side, repeats):
    "The result and the shortest time of a side; the first call only warms up."
    side()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = side()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def compare(size):
    "Time both sides and print what came out: the largest difference of a logit between them."
    sets = la.pp.timepoint_pairs(
        la.pp.bags(
            la.datasets.simulate_cohort(
                size.preset, n_patients=size.patients, n_genes=size.genes, seed=0
            )
        ),
        ("DX", "REL"),
    )
    jobs, how = jobs_of(sets, size), la.models.Training(epochs=size.epochs, device="cpu")

    def make():
        return la.models.build("transformer", sets, dropout=0.0)

    def together():
        return la.models.stacking.fit_many(make, sets, jobs, how=how)

    def alone():
        return [
            la.models.fit(make, replace(sets, y=j.y), train=j.train, valid=(), seed=j.seed, how=how)
            for j in jobs
        ]

    (many, ours), (one, plain) = (best(side, size.repeats) for side in (together, alone))
    differs = max(
        float(np.abs(a.predict(sets) - b.predict(sets)).max())
        for a, b in zip(many, one, strict=True)
    )
    moved = max(float(np.abs(a.predict(sets)).max()) for a in many)
    row(
        f"{len(jobs)} Transformers, {size.patients} patients x {size.genes:,} genes, "
        f"{size.epochs} epochs",
        ("la.models.stacking.fit_many", ours),
        ("la.models.fit, one by one", plain),
        differs=differs,
    )
    print(
        f"{size.patients} patients x {size.genes:,} genes: {len(jobs)} fits of {size.epochs} "
        f"epochs on {len(sets)} pairs of bags of {len(set(sets.patients))} patients with both "
        f"visits, best of {size.repeats}"
    )
    print(
        f"  as one      {ours:7.2f} s\n"
        f"  one by one  {plain:7.2f} s\n"
        f"  ratio       {plain / ours:7.2f} x less time\n"
        f"  largest difference of a logit {differs:.1e} (largest logit {moved:.2f})",
        flush=True,
    )
    return differs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a small cohort and few fits: whether both sides agree"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} threads")
    differs = [compare(size) for size in (QUICK if parser.parse_args().quick else SIZES)]
    if not max(differs) <= LARGEST:
        sys.exit(f"the two sides differ by {max(differs):.1e}; at most {LARGEST:g} is agreement")


if __name__ == "__main__":
    main()
