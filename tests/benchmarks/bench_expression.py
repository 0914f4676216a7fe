"""Differential expression: one array operation per contrast against a loop over genes.

    python tests/benchmarks/bench_expression.py           # 20,000 genes x 3 contrasts, 28 patients
    python tests/benchmarks/bench_expression.py --quick   # 500 genes, for the tests

Both sides run in one process on the same pseudobulk: `la.tl.differential_expression`, and a loop
that takes a gene at a time: its values in a table, each patient's difference, its mean and
variance, and the moderated t with the same prior. The loop is run on a sample of genes; its time
for all of them is that time multiplied, and is printed as such. The exit status is 1 where a fold
change, statistic, p or q differs. Threads are as the environment says (OMP_NUM_THREADS).
"""

import argparse
import os
import sys
import time

os.environ.setdefault("LONGAML_PROGRESS", "0")

import anndata  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import scipy.sparse as sp  # noqa: E402
from rows import row  # noqa: E402
from scipy import stats  # noqa: E402

import longaml as la  # noqa: E402
from longaml.core import contrasts, rng_for  # noqa: E402
from longaml.tl.expression import VariancePrior  # noqa: E402

# difference that is still agreement, absolute below 1, relative above: values have 32 bits
LARGEST = 1e-5


def pseudobulk(genes, patients):
    "Log pseudobulk of three timepoints, a fifth of the visits missing."
    rng = rng_for(0, "bench expression")
    obs = pd.DataFrame(
        [
            (f"P{p:02d}", t, f"P{p:02d}_{t}", "all", 100.0)
            for p in range(patients)
            for t in ("DX", "REM", "REL")
            if rng.random() < 0.8
        ],
        columns=["patient", "timepoint", "sample", "cell_type", "n_cells"],
    )
    obs["timepoint"] = pd.Categorical(obs["timepoint"], ["DX", "REM", "REL"], ordered=True)
    obs = obs.astype(
        {"patient": "category", "sample": "category", "cell_type": "category"}
    ).set_axis(obs["sample"].to_numpy())
    level, spread = rng.gamma(1.0, 1.0, genes), rng.gamma(4.0, 0.1, genes)
    x = np.clip(level + spread * rng.normal(size=(len(obs), genes)), 0, None)
    return anndata.AnnData(
        sp.csr_matrix(x.astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=[f"G{i:05d}" for i in range(genes)]),
    )


def loop(bulk, genes, priors):
    "A gene at a time: contrast, gene, log2 fold change, statistic, p."
    rows = []
    for gene in genes:
        values = pd.Series(
            np.asarray(bulk[:, gene].X.todense()).ravel().astype(float),
            index=pd.MultiIndex.from_frame(bulk.obs[["patient", "timepoint"]].astype(str)),
        ).unstack()
        for later, earlier in contrasts(["DX", "REM", "REL"]):
            d = (values[later] - values[earlier]).dropna()
            prior, df0 = priors[later, earlier]
            df = len(d) - 1
            variance = prior if np.isinf(df0) else (df0 * prior + df * d.var()) / (df0 + df)
            t = d.mean() / np.sqrt(variance / len(d)) if variance > 0 else 0.0
            rows.append(
                (
                    f"{later}_vs_{earlier}",
                    gene,
                    d.mean() / np.log(2),
                    t,
                    2 * stats.t.sf(abs(t), min(df0 + df, 1e6)),
                )
            )
    return pd.DataFrame(
        rows, columns=["contrast", "gene", "log2_fold_change", "statistic", "p_value"]
    ).set_index(["contrast", "gene"])


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="a small case, for the tests")
    quick = parse.parse_args().quick
    genes, patients, sample = (500, 12, 40) if quick else (20_000, 28, 400)
    bulk = pseudobulk(genes, patients)
    priors = {}
    for pair in contrasts(["DX", "REM", "REL"]):
        d = la.tl.permutation.paired_differences(bulk, pair).to_numpy()
        priors[pair] = VariancePrior.fit(d.var(0, ddof=1), len(d) - 1)
    la.tl.differential_expression(bulk)  # warms up
    times = []
    for _ in range(3):
        start = time.perf_counter()
        table = la.tl.differential_expression(bulk)
        times.append(time.perf_counter() - start)
    chosen = rng_for(0, "bench sample").choice(bulk.var_names, sample, replace=False)
    start = time.perf_counter()
    slow = loop(bulk, chosen, priors)
    seconds = time.perf_counter() - start
    ours = table.set_index(["contrast", "gene"]).loc[slow.index]
    far = {
        k: float((np.abs(ours[k] - slow[k]) / np.maximum(np.abs(slow[k]), 1)).max())
        for k in slow.columns
    }
    worst_q = max(
        float(np.abs(r["q_value"] - stats.false_discovery_control(r["p_value"])).max())
        for _, r in table.groupby("contrast")
    )
    row(
        f"differential expression of {genes:,} genes x 3 contrasts, {patients} patients",
        ("arrays", min(times)),
        ("a gene at a time", seconds * genes / sample),
        differs=max(*far.values(), worst_q),
        scaled=f"{sample} of {genes:,} genes",
    )
    print(
        f"{genes:,} genes x 3 contrasts, {patients} patients, {bulk.n_obs} samples, "
        f"numpy {np.__version__}"
    )
    print(f"  arrays   {min(times):8.3f} s for all {genes:,} genes (best of 3)")
    print(
        f"  loop     {seconds:8.3f} s for {sample} genes; extrapolated to {genes:,} genes: "
        f"{seconds * genes / sample:,.1f} s"
    )
    print(
        f"  {seconds * genes / sample / min(times):,.0f} times less time than the extrapolated loop"
    )
    print(
        "  largest difference over the sample (relative above 1): "
        + ", ".join(f"{k} {v:.1e}" for k, v in far.items())
        + f"; of q from Benjamini and Hochberg {worst_q:.1e}"
    )
    return int(max(*far.values(), worst_q) > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
