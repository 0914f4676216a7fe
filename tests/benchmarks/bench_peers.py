"""What changed between two visits: `la.tl.de` and its peers on the same simulated cohorts.

    python tests/benchmarks/bench_peers.py                      # every setting: half an hour
    python tests/benchmarks/bench_peers.py --only nb12,drift12  # the others keep what they had

Needs Rscript with limma, statmod, edgeR and DESeq2, and PyDESeq2; the setting `cells12` needs
kang_ifnb.h5ad of the shared data. The simulations are written here and share nothing with the
package's own simulator. Every method gets the same cohorts. Nothing was chosen by the results:
filters and options are the defaults or the usual ones of each method.

Writes tests/reference/peers_cohorts.csv (a row a cohort and method), peers.csv (means over cohorts)
and peers.json (versions, settings, seeds, command). The page *Benchmarks* shows peers.csv;
tests/test_peers.py runs the engine again on some of the cohorts. This compares error rates, not
times of two ways to one result, so `run_all.py` leaves it alone.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

import longaml as la

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "tests/reference"
DATA = Path(os.environ.get("LONGAML_DATA", ROOT.parent / "shared/data"))
SEED, GENES, CHANGED, LEVEL = 18, 2000, 100, 0.1
ENGINES = {"longaml de": None, "longaml de, patient fixed": "~ patient + timepoint"}
OLDER = "longaml, downsampled (old)"
OWN = (*ENGINES, OLDER)


@dataclass(frozen=True)
class Setting:
    """A kind of cohort: visits T1 and T2 of one cell type."""

    name: str
    says: str
    patients: int
    cohorts: int = 8  # with change, and as many without
    missing: float = 0.0  # share of visits
    depth: tuple[float, float] = (200_000, 200_000)  # median counts of a sample at T1 and T2
    cells: bool = False  # resampled real cells instead of the negative binomial
    pydeseq2: int = 8  # cohorts of each kind that PyDESeq2 is run on


SETTINGS = {
    s.name: s
    for s in (
        Setting("nb6", "6 patients", 6),
        Setting("nb12", "12 patients", 12),
        Setting("nb24", "24 patients", 24, cohorts=6, pydeseq2=2),
        Setting("nb12_missing", "12 patients, 30% of visits missing", 12, missing=0.3),
        Setting(
            "nb24_missing",
            "24 patients, 30% of visits missing",
            24,
            missing=0.3,
            cohorts=6,
            pydeseq2=2,
        ),
        Setting("drift12", "12 patients, depth falls 4-fold", 12, depth=(20_000, 5_000)),
        Setting("cells12", "12 patients, resampled T cells", 12, cells=True),
    )
}

# ------------------------------------------------------------------------------- simulations


def visits(setting, rng):
    """Patients and timepoints of the samples that are there."""
    s = pd.DataFrame(
        [(f"P{p:02d}", t) for p in range(setting.patients) for t in ("T1", "T2")],
        columns=["patient", "timepoint"],
    )
    return s[rng.random(len(s)) >= setting.missing].reset_index(drop=True)


def negative_binomial(setting, samples, log_change, rng):
    """Counts with patient effects, dispersions that fall with abundance, and unequal depth."""
    patient = samples["patient"].str[1:].astype(int).to_numpy()
    late = (samples["timepoint"] == "T2").to_numpy()
    log = rng.normal(0, 1.5, GENES)
    effects = rng.normal(0, 1, (setting.patients, GENES)) * rng.gamma(4, 0.1, GENES)
    log = log + effects[patient] + np.outer(late, log_change)
    share = np.exp(log)
    share /= share.sum(1, keepdims=True)
    depth = np.where(late, setting.depth[1], setting.depth[0])
    mean = share * (depth * rng.lognormal(0, 0.5, len(samples)))[:, None]
    typical = share.mean(0) * 200_000
    dispersion = (0.08 + 2 / typical) * 10 / rng.chisquare(10, GENES)
    return rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, mean.shape))


def t_cells():
    """Counts of control CD4 T cells (cells, genes): 2,000 genes with the most counts."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a = anndata.read_h5ad(DATA / "kang_ifnb.h5ad")
    a = a[((a.obs["condition"] == "control") & (a.obs["cell_type"] == "CD4T")).to_numpy()]
    x = np.expm1(np.asarray(a.X.todense() if hasattr(a.X, "todense") else a.X, dtype=float))
    one = np.where(x > 0, x, np.inf).min(1, keepdims=True)  # a cell's smallest value is one count
    counts = np.round(x / one).astype(int)
    return counts[:, np.sort(np.argsort(-counts.sum(0), kind="stable")[:GENES])]


def resampled(setting, samples, log_change, rng):
    """Sums of real cells: a patient has cells of its own, a visit draws from them unequally.

    Planted changes thin the counts of the visit where a gene is lower.
    """
    cells = t_cells()
    owner = rng.permutation(len(cells)) % setting.patients
    out = []
    for patient, visit in samples.itertuples(index=False):
        own = np.flatnonzero(owner == int(patient[1:]))
        n = max(10, int(60 * rng.lognormal(0, 0.5)))
        drawn = rng.choice(own, n, p=rng.dirichlet(np.ones(len(own))))
        lower = np.minimum(log_change if visit == "T2" else -log_change, 0)
        out.append(rng.binomial(cells[drawn].sum(0), np.exp(lower)))
    return np.array(out)


def simulate(setting, replicate, changed):
    """Samples, counts (samples, genes), and which genes change."""
    rng = np.random.default_rng([SEED, list(SETTINGS).index(setting.name), replicate, changed])
    samples = visits(setting, rng)
    log_change = np.zeros(GENES)
    if changed:
        log_change[rng.choice(GENES, CHANGED, replace=False)] = rng.normal(0, 0.6, CHANGED)
    make = resampled if setting.cells else negative_binomial
    return samples, make(setting, samples, log_change, rng), log_change != 0


# ------------------------------------------------------------------------------------- peers

R = r"""
suppressMessages({library(limma); library(edgeR); library(DESeq2)})
folder <- commandArgs(TRUE)[1]
for (file in list.files(folder, "^samples_.*csv$")) {
  id <- sub("samples_(.*).csv", "\\1", file)
  s <- read.csv(file.path(folder, file), stringsAsFactors=TRUE)
  x <- t(as.matrix(read.csv(file.path(folder, paste0("counts_", id, ".csv")))))
  colnames(x) <- paste0("S", seq_len(ncol(x)))
  both <- s$patient %in% names(which(table(s$patient) == 2))  # a block needs both visits
  p <- droplevels(s[both,]); xp <- x[,both]; fixed <- model.matrix(~ patient + timepoint, p)
  say <- function(method, gene, p, q, start) {
    out <- data.frame(id=id, method=method, gene=as.integer(sub("V", "", gene)), p=p, q=q,
      seconds=proc.time()[["elapsed"]] - start)
    to <- file.path(folder, "found.csv"); fresh <- !file.exists(to)
    suppressWarnings(write.table(out, to, sep=",", append=TRUE, row.names=FALSE, col.names=fresh)) }
  now <- function() proc.time()[["elapsed"]]
  rownames(x) <- rownames(xp) <- paste0("V", seq_len(nrow(x)))
  kept <- function(x, design) { y <- DGEList(x)
    calcNormFactors(y[filterByExpr(y, design),, keep.lib.sizes=FALSE]) }

  start <- now(); y <- kept(xp, fixed); v <- voom(y, fixed)
  t <- topTable(eBayes(lmFit(v, fixed)), "timepointT2", Inf, sort.by="none")
  say("limma-voom, patient fixed", rownames(t), t$P.Value, t$adj.P.Val, start)

  start <- now(); design <- model.matrix(~ timepoint, s); y <- kept(x, design); v <- voom(y, design)
  rho <- duplicateCorrelation(v, design, block=s$patient)$consensus
  v <- voom(y, design, block=s$patient, correlation=rho)
  rho <- duplicateCorrelation(v, design, block=s$patient)$consensus
  fit <- eBayes(lmFit(v, design, block=s$patient, correlation=rho))
  t <- topTable(fit, "timepointT2", Inf, sort.by="none")
  say("limma duplicateCorrelation", rownames(t), t$P.Value, t$adj.P.Val, start)

  start <- now(); y <- estimateDisp(kept(xp, fixed), fixed)
  t <- topTags(glmQLFTest(glmQLFit(y, fixed), coef="timepointT2"), Inf, sort.by="none")$table
  say("edgeR QL, patient fixed", rownames(t), t$PValue, t$FDR, start)

  start <- now()
  d <- DESeqDataSetFromMatrix(xp, p, ~ patient + timepoint)
  t <- results(DESeq(d, quiet=TRUE), name="timepoint_T2_vs_T1", alpha=0.1)
  say("DESeq2, patient fixed", rownames(t), t$pvalue, t$padj, start)
}
versions <- sapply(c("limma", "edgeR", "DESeq2", "statmod"), function(p)
  as.character(packageVersion(p)))
writeLines(c(paste("R", getRversion()), paste(names(versions), versions)),
  file.path(folder, "versions.txt"))
"""


def with_r(cohorts):
    """Tables of all R methods on every cohort, in one process; and the versions."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (samples, counts, _) in cohorts.items():
            samples.to_csv(f"{folder}/samples_{name}.csv", index=False)
            pd.DataFrame(counts).to_csv(f"{folder}/counts_{name}.csv", index=False)
        subprocess.run(["Rscript", "-e", R, folder], check=True)
        found = pd.read_csv(f"{folder}/found.csv")
        found["gene"] -= 1
        lines = Path(f"{folder}/versions.txt").read_text().splitlines()
        return found, dict(line.split() for line in lines)


def paired(samples, counts):
    """Only patients with both visits, ordered alike."""
    both = samples.groupby("patient")["timepoint"].transform("count") == 2
    order = samples[both].sort_values(["patient", "timepoint"]).index
    return samples.loc[order].reset_index(drop=True), counts[order]


def pydeseq2(samples, counts):
    """~ patient + timepoint, defaults with independent filtering at the level."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    s, x = paired(samples, counts)
    seen = np.flatnonzero(x.sum(0))
    names = [f"S{i}" for i in range(len(s))]
    table = pd.DataFrame(x[:, seen], index=names, columns=seen.astype(str))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dds = DeseqDataSet(
            counts=table,
            metadata=s.set_axis(names),
            design="~patient + timepoint",
            quiet=True,
            n_cpus=1,
        )
        dds.deseq2()
        result = DeseqStats(
            dds, contrast=["timepoint", "T2", "T1"], alpha=LEVEL, quiet=True, n_cpus=1
        )
        result.summary()
    t = result.results_df
    return seen, t["pvalue"].to_numpy(), t["padj"].to_numpy()


def wilcoxon(samples, counts):
    """Signed ranks of log2 CPM, genes with ten counts in half of the samples."""
    _, x = paired(samples, counts)
    genes = np.flatnonzero((x >= 10).mean(0) >= 0.5)
    y = np.log2((x[:, genes] + 0.5) / (x.sum(1, keepdims=True) + 1) * 1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = stats.wilcoxon(y[1::2] - y[::2], axis=0).pvalue if len(genes) else np.empty(0)
    return genes, p, stats.false_discovery_control(p) if len(genes) else p


# --------------------------------------------------------------------------------- longaml


def cohort_of(samples, counts):
    """The cohort as a user has it, one bulk row a sample."""
    obs = samples.set_axis([f"S{i}" for i in range(len(samples))])
    var = pd.DataFrame(index=[str(g) for g in range(counts.shape[1])])
    return la.pp.as_cohort(
        AnnData(counts.astype(np.float32), obs=obs, var=var), timepoints=["T1", "T2"]
    )


def engine(samples, counts, design=None):
    """`la.tl.de`; the whole cohort, with patients seen once."""
    how = {} if design is None else {"design": design}
    t = la.tl.de(cohort_of(samples, counts), contrast=("T2", "T1"), **how)
    return t["gene"].astype(int).to_numpy(), t["p_value"].to_numpy(), t["q_value"].to_numpy()


def older(samples, counts):
    """The paired test of downsampled pseudobulk."""
    t = la.tl.differential_expression(la.pp.pseudobulk(cohort_of(samples, counts)))
    t = t[t["cell_type"] == t["cell_type"].iloc[-1]]
    return t["gene"].astype(int).to_numpy(), t["p_value"].to_numpy(), t["q_value"].to_numpy()


# --------------------------------------------------------------------------------- scores


def score(genes, p, q, truth):
    """Calls, true ones, and the share of changed genes up to the last rank with 10% false."""
    q = np.where(np.isnan(q), 1.0, q)
    called = np.asarray(genes)[q < LEVEL]
    ranked = truth[np.asarray(genes)[np.argsort(np.where(np.isnan(p), 1.0, p), kind="stable")]]
    good = np.cumsum(ranked)
    rank = np.arange(1, len(ranked) + 1)
    fine = np.flatnonzero(rank - good <= LEVEL * rank)
    return {
        "calls": len(called),
        "true_calls": int(truth[called].sum()),
        "true_at_fdp": int(good[fine[-1]]) if len(fine) and truth.any() else 0,
    }


def in_python(setting, replicate, samples, counts):
    """Methods of Python, by name."""
    tests = {name: lambda d=d: engine(samples, counts, d) for name, d in ENGINES.items()}
    tests[OLDER] = lambda: older(samples, counts)
    tests["Wilcoxon signed-rank"] = lambda: wilcoxon(samples, counts)
    if replicate < setting.pydeseq2:
        tests["PyDESeq2, patient fixed"] = lambda: pydeseq2(samples, counts)
    return tests


def run(setting):
    """A row a cohort and method, and the versions of R's packages."""
    keys = [(r, c) for r in range(setting.cohorts) for c in (True, False)]
    cohorts = {f"{r}_{int(c)}": simulate(setting, r, c) for r, c in keys}
    start = time.perf_counter()
    found, versions = with_r(cohorts)
    print(f"{setting.name}: R {time.perf_counter() - start:.0f} s", flush=True)
    rows = []
    for name, (samples, counts, truth) in cohorts.items():
        replicate, changed = map(int, name.split("_"))
        where = {"setting": setting.name, "replicate": replicate, "changed": changed}
        for method, t in found[found["id"] == name].groupby("method", sort=False):
            got = score(t["gene"].to_numpy(), t["p"].to_numpy(), t["q"].to_numpy(), truth)
            rows.append(where | {"method": method, **got, "seconds": t["seconds"].iloc[0]})
        for method, test in in_python(setting, replicate, samples, counts).items():
            start = time.perf_counter()
            got = score(*test(), truth)
            rows.append(where | {"method": method, **got, "seconds": time.perf_counter() - start})
    return pd.DataFrame(rows), versions


def _standard_error(values):
    return values.std(ddof=1) / np.sqrt(len(values))


def summary(cohorts):
    """Means over cohorts, and differences to the peers, paired over cohorts.

    The best peer has the most power among peers whose realised FDP is at most the level plus two
    standard errors; it is chosen on these cohorts, which favours it.
    """
    rows = []
    for setting, s in cohorts.groupby("setting", sort=False):
        wide = {}
        for method, t in s.groupby("method", sort=False):
            t = t.sort_values("replicate")
            with_change, null = t[t["changed"] == 1], t[t["changed"] == 0]
            wide[method] = c = with_change.set_index("replicate")
            fdp = (c["calls"] - c["true_calls"]) / c["calls"].clip(lower=1)
            any_call = null["calls"] > 0
            rows.append(
                {
                    "setting": setting,
                    "method": method,
                    "cohorts": len(c),
                    "tpr": c["true_calls"].mean() / CHANGED,
                    "tpr_se": _standard_error(c["true_calls"]) / CHANGED,
                    "fdp": fdp.mean(),
                    "fdp_se": _standard_error(fdp),
                    "null_any": any_call.mean(),
                    "null_calls": null["calls"].mean(),
                    "tpr_at_fdp": c["true_at_fdp"].mean() / CHANGED,
                    "seconds": c["seconds"].median(),
                }
            )
        here = [r for r in rows if r["setting"] == setting]
        whole = max(r["cohorts"] for r in here)
        peers = [r for r in here if r["method"] not in OWN and r["cohorts"] == whole]
        held = [r for r in peers if r["fdp"] <= LEVEL + 2 * r["fdp_se"]]
        best = max(held or peers, key=lambda r: r["tpr"])["method"]
        ranked = max(peers, key=lambda r: r["tpr_at_fdp"])["method"]
        for r in here:
            d = (wide[r["method"]]["true_calls"] - wide[best]["true_calls"]).dropna() / CHANGED
            e = (wide[r["method"]]["true_at_fdp"] - wide[ranked]["true_at_fdp"]).dropna() / CHANGED
            r |= {"best_peer": best, "difference": d.mean(), "difference_se": _standard_error(d)}
            r |= {"best_ranking": ranked, "ranking_difference": e.mean()}
            r["ranking_difference_se"] = _standard_error(e)
    return pd.DataFrame(rows)


def write(cohorts, versions, command):
    """The three files of the reference folder."""
    cohorts.to_csv(REFERENCE / "peers_cohorts.csv", index=False, float_format="%.3g")
    summary(cohorts).to_csv(REFERENCE / "peers.csv", index=False, float_format="%.4f")
    packages = ("longaml", "pydeseq2", "numpy", "scipy", "pandas")
    about = {
        "command": command,
        "date": date.today().isoformat(),
        "versions": versions | {p: metadata.version(p) for p in packages},
        "seed": "np.random.default_rng([18, index of the setting, replicate, changed])",
        "genes": GENES,
        "changed": CHANGED,
        "level": LEVEL,
        "settings": [asdict(SETTINGS[n]) for n in cohorts["setting"].unique()],
    }
    (REFERENCE / "peers.json").write_text(json.dumps(about, indent=1) + "\n")


def run_own(cohorts, here):
    """The stored table with the rows of longaml, at `here`, computed again."""
    keys = ["setting", "replicate", "changed", "method"]
    table = cohorts.set_index(keys)
    for cohort, rows in cohorts[here].groupby(keys[:3], sort=False):
        name, replicate, changed = cohort
        samples, counts, truth = simulate(SETTINGS[name], replicate, changed)
        tests = in_python(SETTINGS[name], replicate, samples, counts)
        for method in rows["method"]:
            start = time.perf_counter()
            got = score(*tests[method](), truth)
            got["seconds"] = time.perf_counter() - start
            for column, value in got.items():
                table.loc[(*cohort, method), column] = value
        print(*cohort, flush=True)
    return table.reset_index()[list(cohorts)]


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--only", default="", help="settings, with commas between")
    parse.add_argument("--own", action="store_true", help="longaml's rows again, peers as stored")
    os.environ.setdefault("LONGAML_PROGRESS", "0")
    logging.getLogger("longaml").setLevel(logging.ERROR)
    asked = parse.parse_args()
    names = [n for n in asked.only.split(",") if n] or list(SETTINGS)
    old = REFERENCE / "peers_cohorts.csv"
    if asked.own:
        kept = pd.read_csv(old)
        here = kept["method"].isin(OWN) & kept["setting"].isin(names)
        stored = json.loads((REFERENCE / "peers.json").read_text())
        write(run_own(kept, here), stored["versions"], stored["command"])
        return 0
    for name in names:
        kept = pd.read_csv(old) if old.exists() else pd.DataFrame({"setting": []})
        rows, versions = run(SETTINGS[name])
        every = pd.concat([kept[kept["setting"] != name], rows], ignore_index=True)
        place = every["setting"].map(list(SETTINGS).index)
        every = every.iloc[np.argsort(place, kind="stable")]
        write(every, versions, "python tests/benchmarks/bench_peers.py")
        done = summary(rows).drop(columns=["setting", "best_ranking"])
        print(done.round(3).to_string(index=False), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
