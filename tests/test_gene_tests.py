"""Differential expression with designs equals limma and lmerTest on stored results."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import average_precision_score
from tools import ROOT, python

import longaml as la
from longaml.core import InputError
from longaml.tl.designs import comparisons_of, contrast_of, design_of_formula, sample_columns
from longaml.tl.linear_models import (
    cauchy_combination,
    consensus_correlation,
    correlation_root,
    fit_linear,
    moderated_tests,
)
from longaml.tl.mixed_models import fit_mixed, satterthwaite
from longaml.tl.normalization import dense_counts, effective_sizes, voom_log_cpm
from longaml.tl.precision_weights import voom
from longaml.tl.variance_priors import fit_variance_prior

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def samples() -> pd.DataFrame:
    s = pd.read_csv(REFERENCE / "de_samples.csv")
    s["timepoint"] = pd.Categorical(s["timepoint"], ["DX", "REM", "REL"])
    return s


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    table = pd.read_csv(REFERENCE / "de_counts.csv.gz", index_col=0)
    return table.to_numpy(dtype=float)


def reference(name: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE / f"de_{name}")


def chosen(case: str, samples: pd.DataFrame) -> np.ndarray:
    first = (samples["replicate"] == 1).to_numpy()
    return first & ~samples["patient"].duplicated().to_numpy() if case == "unpaired" else first


CASES = {
    "fixed": ("~ patient + timepoint", ("REL", "DX")),
    "interaction": ("~ timepoint * response + age", "timepointREL:responsepoor"),
    "spline": ("~ ns(days, 3)", ["ns(days, 3)[1]", "ns(days, 3)[2]", "ns(days, 3)[3]"]),
    "correlated": ("~ timepoint + response + (1|patient)", ("REL", "DX")),
    "unpaired": ("~ response + age", "responsepoor"),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_limma(case, samples, counts):
    """Weights are estimated by both: statistics agree to a thousandth."""
    formula, contrast = CASES[case]
    rows = chosen(case, samples)
    x = dense_counts(counts[rows])
    sizes = effective_sizes(x)
    design = design_of_formula(samples[rows].reset_index(drop=True), formula)
    found = voom(x, sizes, design.matrix)
    root = None
    if design.random:
        codes = design.random[0].codes
        for _ in range(2):
            rho = consensus_correlation(found.log_cpm, design.matrix, codes, found.weights)
            found = voom(x, sizes, design.matrix, root=correlation_root(codes, rho))
        rho = consensus_correlation(found.log_cpm, design.matrix, codes, found.weights)
        root = correlation_root(codes, rho)
    fits = fit_linear(found.log_cpm, design.matrix, found.weights, root)
    prior = fit_variance_prior(fits.variance, fits.df)
    posterior = prior.moderated(fits.variance, fits.df)
    t = moderated_tests(fits, contrast_of(design, contrast).weights, posterior, prior.df)
    want = reference(f"{case}.csv.gz")
    statistic = want["F" if case == "spline" else "t"].to_numpy()
    near = 5e-3 if case == "correlated" else 1e-3  # the grid of correlations
    assert np.abs(t.statistic - statistic).max() < near * (1 + np.abs(statistic).max())
    assert np.abs(t.p_value - want["P.Value"]).max() < near
    if case != "spline":
        assert np.abs(t.effect - want["logFC"]).max() < near


def test_equals_limma_with_weights_given(samples, counts):
    """Coefficients, moderated t and p to a millionth."""
    rows = chosen("fixed", samples)
    x = dense_counts(counts[rows])
    weights = reference("fixed_weights.csv.gz").to_numpy()
    design = design_of_formula(samples[rows], "~ patient + timepoint")
    y = voom_log_cpm(x, effective_sizes(x))
    fits = fit_linear(y, design.matrix, weights)
    prior = fit_variance_prior(fits.variance, fits.df)
    posterior = prior.moderated(fits.variance, fits.df)
    t = moderated_tests(fits, contrast_of(design, ("REL", "DX")).weights, posterior, prior.df)
    want = reference("fixed.csv.gz")
    assert np.abs(t.effect - want["logFC"]).max() < 1e-6
    assert np.abs(t.statistic / want["t"] - 1).max() < 1e-6
    assert np.abs(t.p_value - want["P.Value"]).max() < 1e-6


def test_mixed_models_equal_lmertest(samples, counts):
    """Two nested random effects and weights: 50 genes."""
    x = dense_counts(counts)
    weights = reference("mixed_weights.csv.gz").to_numpy()
    design = design_of_formula(samples, "~ timepoint + (1|patient/timepoint)")
    y = voom_log_cpm(x, effective_sizes(x))[:, :50]
    fits = fit_mixed(y, design.matrix, design.random, weights)
    effect, error, df = satterthwaite(fits, contrast_of(design, ("REL", "DX")).weights[0])
    want = reference("mixed.csv")
    assert np.abs(effect - want["effect"]).max() < 1e-5
    assert np.abs(error / want["se"] - 1).max() < 1e-3
    inside = (want["smallest"] > 1e-6).to_numpy()  # at a variance of zero lmerTest's df is another
    assert inside.sum() > 25
    assert np.abs(df / want["df"] - 1)[inside].max() < 1e-3


def test_shock_equals_limma(shared_data):
    """The real cohort: as many genes as limma, effects on the diagonal."""
    import anndata as ad

    a = ad.read_h5ad(shared_data / "shock_bulk.h5ad")
    cohort = la.pp.as_cohort(
        a, patient_key="patient", timepoint_key="time", timepoints=["T1", "T2", "T3"]
    )
    for formula, name in {
        "~ patient + timepoint": "fixed",
        "~ timepoint + (1|patient)": "dupcor",
    }.items():
        de = la.tl.de(cohort, formula, ("T3", "T1"))
        want = pd.read_csv(shared_data / "reference" / f"shock_limma_{name}_T3_T1.csv.gz")
        both = de.merge(want, on="gene")
        assert (de["q_value"] < 0.05).sum() > 0.9 * (want["q"] < 0.05).sum()
        assert np.corrcoef(both["statistic"], both["t"])[0, 1] > 0.97
        assert 0.95 < np.polyfit(both["logFC"], both["log2_fold_change"], 1)[0] < 1.05


def swapped(cohort, rng):
    """The visits of every patient exchanged, or not."""
    obs = cohort.obs.copy()
    time = obs["timepoint"].astype(str)
    for patient in obs["patient"].unique():
        rows = obs["patient"] == patient
        levels = list(obs["timepoint"].cat.categories)
        time[rows] = time[rows].map(dict(zip(levels, rng.permutation(levels))))
    obs["timepoint"] = pd.Categorical(time, obs["timepoint"].cat.categories, ordered=True)
    return AnnData(cohort.X, obs=obs, var=cohort.var, uns=cohort.uns, layers=cohort.layers)


def test_exchanged_visits_give_no_excess(shared_data):
    """Shock with visits permuted within patients: p-values as they should be."""
    import anndata as ad

    a = ad.read_h5ad(shared_data / "shock_bulk.h5ad")
    cohort = la.pp.as_cohort(
        a, patient_key="patient", timepoint_key="time", timepoints=["T1", "T2", "T3"]
    )
    rng = np.random.default_rng(0)
    small = [
        (la.tl.de(swapped(cohort, rng), contrast=("T3", "T1"))["p_value"] < 0.01).mean()
        for _ in range(4)
    ]
    assert np.median(small) < 0.02, small


def test_patients_seen_once_take_part():
    """With a random effect a single visit adds to the mean of its timepoint; a block loses it."""
    rng = np.random.default_rng(1)
    visits = [(f"P{p:02d}", t) for p in range(16) for t in ("DX", "REL") if t == "REL" or p < 8]
    obs = pd.DataFrame(visits, columns=["patient", "timepoint"])
    patient = obs["patient"].factorize()[0]
    log = rng.normal(4, 1, 300) + rng.normal(0, 0.15, (16, 300))[patient]
    x = rng.poisson(np.exp(log + rng.normal(0, 0.3, log.shape))).astype(np.float32)
    cohort = la.pp.as_cohort(AnnData(x, obs=obs.set_axis(obs.index.astype(str))))
    random = la.tl.de(cohort, contrast=("REL", "DX"))
    fixed = la.tl.de(cohort, "~ patient + timepoint", ("REL", "DX"))
    both = random.merge(fixed, on="gene", suffixes=("_random", "_fixed"))
    ratio = both["standard_error_random"] / both["standard_error_fixed"]
    assert ratio.median() < 0.9


def test_columns_of_cells_are_no_design():
    cohort = la.datasets.simulate_cohort("small", seed=1)
    with pytest.raises(InputError, match="column 'true_label' has 2 values within sample"):
        sample_columns(cohort.obs, ["true_label"])


def test_cauchy_of_one_is_itself():
    p = np.array([[1e-20, 1e-5, 0.3, 0.99]])
    assert np.allclose(cauchy_combination(p), p[0], rtol=1e-6)


def test_a_contrast_by_its_name_in_tables():
    "`REL_vs_DX` is the pair of timepoints, for `la.tl.de` as for every command."
    assert comparisons_of("REL_vs_DX", ["DX", "REM", "REL"]) == comparisons_of(
        ("REL", "DX"), ["DX", "REM", "REL"]
    )
    assert (
        comparisons_of(["a", "b"], ["DX", "REL"])[0].pair is None
    )  # coefficients, tested together


@pytest.mark.slow
def test_the_benchmark_agrees():
    done = python("tests/benchmarks/bench_mixed.py", "--quick", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times as long" in done.stdout


@pytest.mark.slow
def test_presets_are_as_hard_for_linear_models_as_they_were_meant_to_be():
    "Marginal drivers of `realistic`: average precision between 0.4 and 0.8, as of the paired test."
    found = []
    for seed in (1, 2, 3):
        a = la.datasets.simulate_cohort("realistic", seed=seed)
        t = la.tl.de(a, contrast=("REL", "DX")).query("cell_type == 'all'").set_index("gene")
        score = -np.log10(t["p_value"].reindex(a.var_names).fillna(1).clip(lower=1e-300))
        found.append(average_precision_score(a.uns["truth"]["kind"] == "marginal", score))
    assert 0.4 < np.mean(found) < 0.8, found
