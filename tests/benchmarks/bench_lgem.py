"""The linear gene expression model in closed form, against least squares and training by gradient.

    python tests/benchmarks/bench_lgem.py           # 2,000 genes x 100 perturbations, K = 10
    python tests/benchmarks/bench_lgem.py --quick   # 100 genes x 12, K = 3, for the tests

All sides run in one process on the same data and must agree: without a penalty the closed form with
the solution of the least-squares problem over all genes x perturbations at once (np.linalg.lstsq of
the Kronecker product), with a penalty with the minimum of the penalised loss that L-BFGS finds. The
exit status is 1 where they differ. The closed form is timed over many repetitions. Threads are as
the environment says (OMP_NUM_THREADS).
"""

import argparse
import sys
import time

import numpy as np
import torch
from rows import row

from longaml.core import rng_for
from longaml.models.lgem import solve_lgem

LARGEST = 1e-6  # difference of a coefficient, relative to the largest, that is still agreement


def made(genes, perturbations, k):
    "Embeddings and changes of a screen: low rank and noise."
    rng = rng_for(0, "bench")
    G = rng.normal(size=(genes, k))
    P = rng.normal(size=(perturbations, k))
    Y = G @ rng.normal(size=(k, k)) @ P.T + rng.normal(size=(genes, perturbations))
    return Y, G, P


def seconds(f, repeat):
    "The result, and the median time of a call."
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        out = f()
        times.append(time.perf_counter() - start)
    return out, float(np.median(times))


def by_gradient(Y, G, P, ridge):
    "The minimum of the penalised loss, searched."
    y, g, p = (torch.as_tensor(v) for v in (Y, G, P))
    w = torch.zeros(G.shape[1], P.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [w],
        max_iter=1000,
        tolerance_grad=1e-9,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def loss():
        search.zero_grad()
        value = (
            ((y - g @ w @ p.T) ** 2).sum()
            + ridge * ((g @ w) ** 2).sum()
            + ridge * ((w @ p.T) ** 2).sum()
            + ridge**2 * (w**2).sum()
        )
        value.backward()
        return value

    search.step(loss)
    return w.detach().numpy()


def compared(name, data, ridge, other):
    "Time the closed form and another way to the same coefficients; whether they differ."
    Y, G, P = data
    slow, t_slow = seconds(other, 1)
    fast, t_fast = seconds(lambda: solve_lgem(Y, G, P, ridge=ridge), 50)
    far = float(np.abs(fast - slow).max() / np.abs(slow).max())
    row(
        f"LGEM of {len(Y):,} genes x {len(P)} perturbations, K = {G.shape[1]}",
        ("closed form", t_fast),
        (name, t_slow),
        differs=far,
    )
    print(
        f"{name}: {t_slow:.3f} s; closed form: {t_fast * 1e3:.3f} ms; "
        f"{t_slow / t_fast:,.0f} times less time; "
        f"largest relative difference of a coefficient {far:.1e}"
    )
    return far > LARGEST


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="a tiny case, for the tests")
    genes, perturbations, k = (100, 12, 3) if parse.parse_args().quick else (2000, 100, 10)
    data = made(genes, perturbations, k)
    Y, G, P = data
    print(f"{genes:,} genes x {perturbations} perturbations, K = {k}")

    def kronecker():
        return np.linalg.lstsq(np.kron(G, P), Y.ravel(), rcond=None)[0].reshape(k, k)

    wrong = compared("Kronecker least squares", data, 0.0, kronecker)
    wrong |= compared("penalised loss by L-BFGS", data, 1.0, lambda: by_gradient(Y, G, P, 1.0))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
