"""Differential expression with a random effect of the patient: all genes at once against a mixed
model of one gene after the other.

    python tests/benchmarks/bench_mixed.py           # 20,000 genes x 75 samples x 10 cell types
    python tests/benchmarks/bench_mixed.py --quick   # 300 genes x 2 cell types, for the tests

Both sides get the same counts. `la.tl.de` has its default, which fits every gene at each ratio of
its two variances; it is timed from counts to table. The other side gets log counts and precision
weights that are there already, and fits some of the genes with statsmodels' `MixedLM` (no weights:
it has none), and where Rscript finds lme4 and lmerTest, with `lmer` and Satterthwaite's degrees of
freedom; its time for all genes is that time multiplied, and is printed as such. The exit status is
1 where `fit_mixed` does not give lmer's coefficients and standard errors, or the default's effects
are not those of a mixed model of each gene. Threads are as the environment says (OMP_NUM_THREADS).
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("LONGAML_PROGRESS", "0")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from anndata import AnnData  # noqa: E402
from rows import row  # noqa: E402
from statsmodels.regression.mixed_linear_model import MixedLM  # noqa: E402

import longaml as la  # noqa: E402
from longaml.core import rng_for  # noqa: E402
from longaml.tl import gene_tests  # noqa: E402
from longaml.tl.designs import contrast_of, design_of_formula  # noqa: E402
from longaml.tl.mixed_models import satterthwaite  # noqa: E402

PAIR = ("REL", "DX")
R = r"""
suppressMessages(library(lmerTest))
folder <- commandArgs(TRUE)[1]
read <- function(name) as.matrix(read.csv(file.path(folder, paste0(name, ".csv"))))
s <- read.csv(file.path(folder, "samples.csv"))
s$timepoint <- factor(s$timepoint, c("DX", "REM", "REL"))
y <- read("y"); w <- read("w")
start <- proc.time()[["elapsed"]]
found <- t(sapply(seq_len(ncol(y)), function(j) {
  s$y <- y[, j]; s$w <- w[, j]
  fit <- suppressMessages(suppressWarnings(lmer(y ~ timepoint + (1 | patient), s, weights = w)))
  coef(summary(fit))["timepointREL", c("Estimate", "Std. Error")] }))
seconds <- proc.time()[["elapsed"]] - start
write.csv(data.frame(effect = found[, 1], error = found[, 2], seconds = seconds),
  file.path(folder, "found.csv"), row.names = FALSE)
"""


def counts_of(genes, types, patients=28):
    "Sums of counts by sample and cell type: three visits, a tenth of them missing."
    rng = rng_for(0, "bench mixed")
    visits = [(p, t) for p in range(patients) for t in ("DX", "REM", "REL") if rng.random() < 0.9]
    patient = np.array([p for p, _ in visits])
    timepoint = np.array([t for _, t in visits])
    level = rng.normal(0, 1.5, genes)
    change = np.where(rng.random(genes) < 0.05, rng.normal(0, 0.8, genes), 0.0)
    obs, parts = [], []
    for kind in range(types):
        own = rng.normal(0, 1, (patients, genes)) * rng.gamma(4, 0.1, genes)
        share = np.exp(level + own[patient] + np.outer(timepoint == "REL", change))
        share /= share.sum(1, keepdims=True)
        depth = genes * 100 * rng.lognormal(0, 0.5, len(visits))
        shape = rng.gamma(1 / 0.1, 0.1, share.shape)
        parts.append(rng.poisson(share * depth[:, None] * shape).astype(np.float32))
        obs.append(
            pd.DataFrame(
                {
                    "patient": [f"P{p:02d}" for p in patient],
                    "timepoint": pd.Categorical(timepoint, ["DX", "REM", "REL"], ordered=True),
                    "sample": [f"P{p:02d}_{t}" for p, t in visits],
                    "cell_type": f"type {kind}",
                    "n_cells": 200,
                }
            )
        )
    table = pd.concat(obs, ignore_index=True)
    table["cell_type"] = table["cell_type"].astype("category")
    x = np.concatenate(parts)
    return AnnData(
        x,
        obs=table.set_axis([f"{i}" for i in range(len(table))]),
        var=pd.DataFrame(index=[f"G{i:05d}" for i in range(genes)]),
        layers={"counts": x},
    )


def with_statsmodels(y, obs):
    "Effects of a gene at a time, and the seconds."
    later = [obs["timepoint"] == t for t in ("REM", PAIR[0])]
    exog = np.column_stack([np.ones(len(obs)), *later])
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        effects = [
            MixedLM(v, exog.astype(float), groups=obs["patient"].to_numpy()).fit().fe_params[2]
            for v in y.T
        ]
    return np.array(effects), time.perf_counter() - start


def with_lmer(y, weights, obs):
    "Effects and standard errors of a gene at a time, and the seconds; None without R's packages."
    script = shutil.which("Rscript")
    if script is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, values in {"y": y, "w": weights}.items():
            pd.DataFrame(values).to_csv(f"{folder}/{name}.csv", index=False)
        obs[["patient", "timepoint"]].to_csv(f"{folder}/samples.csv", index=False)
        done = subprocess.run([script, "-e", R, folder], capture_output=True, text=True)
        if done.returncode:
            print(f"no lmer: {done.stderr.strip().splitlines()[-1]}")
            return None
        found = pd.read_csv(Path(folder, "found.csv"))
    return found["effect"].to_numpy(), found["error"].to_numpy(), float(found["seconds"].iloc[0])


def timed(bulk):
    "The table of `la.tl.de`, its seconds, and the memory that was added to the most so far, GiB."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    table = la.tl.de(bulk, contrast=PAIR)
    seconds = time.perf_counter() - start
    return table, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="a small case, for the tests")
    quick = parse.parse_args().quick
    genes, types, sample = (300, 2, 10) if quick else (20_000, 10, 60)
    bulk = counts_of(genes, types)
    table, seconds, more = timed(bulk)
    part = bulk[(bulk.obs["cell_type"] == "type 0").to_numpy()]
    design = design_of_formula(part.obs, gene_tests.DEFAULT_DESIGN)
    fit = gene_tests.fit_genes(
        np.asarray(part.layers["counts"], dtype=float), design, gene_tests.TestOptions()
    )
    kept = np.flatnonzero(fit.genes)
    chosen = np.sort(rng_for(0, "bench sample").choice(len(kept), sample, replace=False))
    y = fit.precision.log_cpm[:, chosen]
    weights = fit.precision.weights[:, chosen]
    names = part.var_names[kept[chosen]]
    own = table[table["cell_type"] == "type 0"].set_index("gene").loc[names, "log2_fold_change"]

    some = gene_tests.Precision(y, weights, np.empty(0), np.empty(0))
    one = gene_tests.fit_values(some, fit.genes, design, gene_tests.TestOptions(random="gene"))
    effect, error, _ = satterthwaite(one.mixed, contrast_of(design, PAIR).weights[0])
    tested = int((table["cell_type"] != "all").sum())
    case = f"random effect of {design.random[0].n} patients, {tested:,} genes x cell types"

    def compare(other, measured, differs=None):
        "Both sides for all genes: a sentence, and a row for the page."
        whole = measured * tested / sample
        row(
            case,
            ours,
            (f"{other}, a gene at a time", whole),
            differs=differs,
            scaled=f"{sample} genes",
        )
        print(
            f"{case}: {seconds:.1f} s at once; {other} a gene at a time {whole:.0f} s "
            f"(from {sample} genes): {whole / seconds:.0f} times as long"
        )

    ours = ("la.tl.de, all genes at once", seconds)
    modelled, slow = with_statsmodels(y, part.obs)
    compare("MixedLM", slow)
    agree = float(np.corrcoef(own, modelled)[0, 1])
    print(f"correlation of effects with MixedLM {agree:.4f}; {more:.2f} GiB more memory")
    right = agree > 0.9 and float(np.corrcoef(own, effect)[0, 1]) > 0.98
    found = with_lmer(y, weights, part.obs)
    if found is not None:
        far = [float(np.abs(a / b - 1).max()) for a, b in ((effect, found[0]), (error, found[1]))]
        compare("lmer", found[2], differs=max(far))
        print(
            f"fit_mixed against lmer, relative: effects {far[0]:.1e}, standard errors {far[1]:.1e}"
        )
        right = right and far[0] < 1e-2 and far[1] < 1e-2
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
