"""Deletions by touched blocks, and Spearman by one product, against the plain ways.

    python tests/benchmarks/bench_networks.py           # graphs of 100 and 1,000 genes
    python tests/benchmarks/bench_networks.py --quick   # small cases, for the tests

Deletions: the value without each gene, by zeros in its row and column. Three sides of the same run
must agree: la.tl.block_decomposition.node_impact (touched blocks, all genes at once); la.tl.bdm of
each matrix (the whole matrix again, by array operations); and a plain loop over blocks with a
dictionary of counts, the way the method is usually written, at 1,000 genes for a few genes and
scaled to all of them, which the line says. Densities 0.05 (the default of la.tl.networks.adjacency)
and 0.3. The touched blocks are timed seven times, the median counts. Correlations: 2,000 genes and
500 samples. The exit status is 1 where sides differ. Threads are as the environment says
(OMP_NUM_THREADS).
"""

import argparse
import os
import sys
import time
from collections import Counter
from math import log2

import numpy as np
from rows import row
from scipy import stats

from longaml.core import rng_for
from longaml.tl.block_decomposition import BLOCK_STARTS, bdm, load_ctm, node_impact
from longaml.tl.networks import correlation_matrix

LARGEST = 1e-6  # bits of a deletion that may differ
RANKS = 1e-10  # of a correlation


def graph(n, density):
    "A random graph."
    a = np.triu(rng_for(0, "bench graph", n).random((n, n)) < density, 1)
    return (a | a.T).astype(np.uint8)


def without(a, k):
    "The graph with a gene's row and column set to zero."
    b = a.copy()
    b[k] = b[:, k] = 0
    return b


def plain(a, ctm):
    "Block decomposition by a loop over 4 x 4 blocks and a dictionary."
    m = len(a) // 4 * 4
    seen = Counter(
        "".join(map(str, a[i : i + 4, j : j + 4].flat))
        for i in range(0, m, 4)
        for j in range(0, m, 4)
    )
    return sum(ctm[BLOCK_STARTS[4] + int(block, 2)] + log2(n) for block, n in seen.items())


def timed(fn, repeats=1):
    "The result, and the median seconds."
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        out = fn()
        times.append(time.perf_counter() - start)
    return out, float(np.median(times))


def deletions(n, density, loop_genes):
    "Time the three sides; whether they differ."
    a, ctm = graph(n, density), load_ctm()
    node_impact(a)
    ours, fast = timed(lambda: node_impact(a).to_numpy(), 7)
    whole, slow = timed(lambda: bdm(a) - np.array([bdm(without(a, k)) for k in range(n)]))
    some = np.linspace(0, n - 1, min(n, loop_genes)).astype(int)
    looped, loop = timed(
        lambda: plain(a, ctm) - np.array([plain(without(a, k), ctm) for k in some])
    )
    far = max(np.abs(ours - whole).max(), np.abs(ours[some] - looped).max())
    scaled = loop * (n + 1) / (len(some) + 1)
    what = f"deleting each of {n:,} genes from a network of density {density}"
    row(what, ("touched blocks", fast), ("each matrix again, by arrays", slow), differs=far)
    row(
        what,
        ("touched blocks", fast),
        ("a loop over blocks", scaled),
        differs=far,
        scaled="" if len(some) == n else f"{len(some)} of {n:,} genes",
    )
    print(
        f"deletions, {n:,} genes, density {density}: touched blocks {fast * 1e3:.2f} ms; "
        f"each matrix again, by arrays {slow * 1e3:,.1f} ms, {slow / fast:,.0f} times; "
        f"by a loop over blocks {scaled * 1e3:,.0f} ms (from {len(some)} genes), "
        f"{scaled / fast:,.0f} times; largest difference {far:.1e} bits",
        flush=True,
    )
    return far > LARGEST


def ranks(genes, samples, pairs):
    "Spearman of all genes, and scipy's of a sub-block pair by pair; whether they differ."
    x = np.round(rng_for(0, "bench ranks").normal(size=(samples, genes)), 1)
    correlation_matrix(x[:, :50])
    r, fast = timed(lambda: correlation_matrix(x).to_numpy(), 3)
    some = rng_for(0, "bench genes").choice(genes, pairs, replace=False)
    theirs, slow = timed(
        lambda: np.array(
            [
                [stats.spearmanr(x[:, a], x[:, b]).statistic for b in some[: pairs // 2]]
                for a in some[pairs // 2 :]
            ]
        )
    )
    far = np.abs(r[np.ix_(some[pairs // 2 :], some[: pairs // 2])] - theirs).max()
    each, each_slow = fast / (genes * (genes - 1) / 2), slow / theirs.size
    at_once, whole = timed(lambda: stats.spearmanr(x).statistic)
    far = max(far, np.abs(at_once - r).max())
    what, total = (
        f"Spearman's correlation of {genes:,} genes, {samples} samples",
        genes * (genes - 1) // 2,
    )
    row(
        what,
        ("one product", fast),
        ("scipy, pair by pair", each_slow * total),
        differs=far,
        scaled=f"{theirs.size} of {total:,} pairs",
    )
    row(what, ("one product", fast), ("scipy, whole matrix", whole), differs=far)
    print(
        f"Spearman, {genes:,} genes x {samples} samples: {fast:.3f} s for {total:,} pairs; "
        f"scipy pair by pair {slow:.2f} s for {theirs.size} of them, "
        f"{each_slow / each:,.0f} times as long per pair; "
        f"scipy's whole matrix {whole:.3f} s, {whole / fast:.1f} times; "
        f"largest difference {far:.1e}",
        flush=True,
    )
    return far > RANKS


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="small cases, for the tests")
    quick = parse.parse_args().quick
    print(
        f"numpy {np.__version__}, {os.environ.get('OMP_NUM_THREADS', 'all')} of "
        f"{os.cpu_count()} threads"
    )
    wrong = False
    for n, density in (
        ((40, 0.05), (60, 0.3)) if quick else ((100, 0.05), (100, 0.3), (1000, 0.05), (1000, 0.3))
    ):
        wrong |= bool(deletions(n, density, 100 if n <= 100 else 5))
    wrong |= bool(ranks(*((100, 50, 10) if quick else (2000, 500, 60))))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
