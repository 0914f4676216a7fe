"""Gene sets: files, names, limma's camera on stored results, error rates, known biology."""

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import longaml as la
from longaml.core import InputError, rng_for
from longaml.pl.gene_sets import plot_gene_sets, plot_set_effects
from longaml.pp.gene_sets import check_gene_sets, read_gene_sets, set_membership
from longaml.tl.designs import contrast_of, design_of_formula
from longaml.tl.enrichment import (
    competitive_tests,
    enrich,
    residual_directions,
    sample_scores,
    score_tests,
    set_correlations,
    within_blocks,
    z_scores,
)
from longaml.tl.gene_tests import DEFAULT_DESIGN, NotTested, TestOptions, fit_cell_types
from longaml.tl.linear_models import fit_linear, moderated_tests
from longaml.tl.normalization import effective_sizes, voom_log_cpm
from longaml.tl.variance_priors import fit_variance_prior

REFERENCE = Path(__file__).parent / "reference"
TREND = TestOptions("trend")


# ---------------------------------------------------------------- files and names


def test_gmt_files_of_all_makes_are_read(tmp_path):
    text = "A\tfrom a paper\tx\ty\tx\t\nB\t\tz\n\n"
    plain = tmp_path / "a.gmt"
    plain.write_text(text)
    windows = tmp_path / "b.gmt"
    windows.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    packed = tmp_path / "c.gmt.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, str(windows), packed):
        assert read_gene_sets(path) == {"A": ["x", "y"], "B": ["z"]}
    assert la.tl.enrichment.read_gene_sets is read_gene_sets


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.gmt", b"A\tb\tc\nA\tb\td\n", "line 2 of a.gmt repeats the gene set 'A'"),
        ("a.gmt", b"A\tb\tc\nB b d\n", "line 2 of a.gmt has 1 tab-separated fields \\(B b d\\)"),
        ("a.gmt", b"A\tb\n", "line 1 of a.gmt"),
        ("a.gmt", b"A\tb\t\t \n", "line 1 of a.gmt"),
        ("a.gmt", b"\tb\tc\n", "line 1 of a.gmt"),
        ("a.gmt", b"\n\n", "holds no gene sets"),
        ("a.gmt", b"A\tb\t\xff\xfe\n", "cannot be read"),
        ("a.gmt.gz", b"A\tb\tc\n", "cannot be read"),
        ("a.gmt.gz", gzip.compress(b"A\tb\tc\n" * 999, mtime=0)[:20], "cannot be read"),
    ],
)
def test_malformed_files_are_refused(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as e:
        read_gene_sets(tmp_path / name)
    assert e.value.parameter == "gene_sets"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_gene_sets(tmp_path / "nowhere.gmt")
    with pytest.raises(InputError, match="there is no file"):
        read_gene_sets(tmp_path)


@pytest.mark.parametrize(
    "genes, sets, said",
    [
        (["Isg15", "Mx1", "A1"], {"s": ["ISG15", "MX1", "A1"]}, "upper and lower case"),
        (["ISG15", "MX1"], {"s": ["Isg15", "Mx1"]}, "orthologs"),
        (["ENSG00000187608", "ENSG00000157601"], {"s": ["ISG15"]}, "the data's genes are Ensembl"),
        (["ENSMUSG00000035692.8"], {"s": ["ISG15"]}, "gene_symbol"),
        (["ISG15"], {"s": ["ENSG00000187608"]}, "the sets' are Ensembl ids"),
        (["ENSG00000187608.1"], {"s": ["ENSG00000187608"]}, "version"),
        (["ISG15"], {"s": ["9636", "4599"]}, "Entrez"),
        (["ISG15"], {"s": ["MX1"]}, "no gene of the sets is in the data"),
        (["ISG15"], {"s": "ISG15"}, "expected a list"),
        (["ISG15"], {}, "no gene sets"),
        (["ISG15"], {"s": []}, "no gene of the sets"),
    ],
)
def test_names_of_another_kind_are_refused(genes, sets, said):
    with pytest.raises(InputError, match=said):
        check_gene_sets(sets, genes)


def test_sizes_are_of_measured_genes():
    genes = [f"g{i}" for i in range(50)]
    sets = {"small": genes[:5] + ["x"], "good": genes[:20] + ["y"], "large": genes[:40]}
    sets["every"] = genes
    names, matrix, left = set_membership(sets, genes, min_genes=10, max_genes=30)
    assert list(names) == ["good"] and matrix.sum() == 20
    assert "5 of its 6 genes" in left["small"] and "30 at most" in left["large"]
    assert "no others to compare" in left["every"]


# ---------------------------------------------------------------- limma


@pytest.fixture(scope="module")
def limma():
    "The counts of the reference, their fit with the weights that R found, and camera's results."
    samples = pd.read_csv(REFERENCE / "de_samples.csv")
    samples["timepoint"] = pd.Categorical(samples["timepoint"], ["DX", "REM", "REL"])
    counts = pd.read_csv(REFERENCE / "de_counts.csv.gz", index_col=0)
    first = (samples["replicate"] == 1).to_numpy()
    weights = pd.read_csv(REFERENCE / "de_fixed_weights.csv.gz").to_numpy()
    design = design_of_formula(samples[first].reset_index(drop=True), "~ patient + timepoint")
    x = counts[first].to_numpy(dtype=float)
    y = voom_log_cpm(x, effective_sizes(x))
    rows = pd.read_csv(REFERENCE / "camera_sets.csv")
    sets = {k: list(v) for k, v in rows.groupby("set", sort=False)["gene"]}
    want = pd.read_csv(REFERENCE / "camera.csv").set_index("set")
    return y, design, weights, list(counts.columns), sets, want


def membership_of(limma):
    names, matrix, _ = set_membership(limma[4], limma[3], min_genes=1)
    assert list(names) == list(limma[5].index)
    return matrix


def moderated(limma, level=None):
    "The moderated t of T3 and its z-scores."
    y, design, weights = limma[:3]
    fits = fit_linear(y, design.matrix, weights)
    prior = fit_variance_prior(fits.variance, fits.df, level)
    posterior = prior.moderated(fits.variance, fits.df)
    contrast = contrast_of(design, "timepoint[T.REL]").weights
    tests = moderated_tests(fits, contrast, posterior, prior.df)
    return z_scores(tests.p_value, tests.effect)


def test_correlations_equal_limma(limma):
    y, design, weights = limma[:3]
    found = set_correlations(residual_directions(y, design.matrix, weights), membership_of(limma))
    assert np.abs(found - limma[5]["correlation"]).max() < 1e-8


def test_the_test_equals_limma_given_statistics_and_correlation(limma):
    "cameraPR of the same z-scores and correlations."
    z = pd.read_csv(REFERENCE / "camera_z.csv")["z"].to_numpy()
    want = limma[5]
    found = competitive_tests(z, membership_of(limma), want["correlation"].to_numpy(), np.inf)
    assert np.abs(found.p_value - want["exact"]).max() < 1e-10
    assert ((found.statistic > 0) == (want["direction"] == "Up")).all()
    assert np.abs(moderated(limma) - z).max() < 1e-6


@pytest.mark.parametrize("case", ["estimated", "fixed", "trend"])
def test_whole_results_equal_limma(case, limma):
    "All of camera: limma takes z-scores by Hill's approximation, and here they are exact."
    y, design, weights = limma[:3]
    directions = residual_directions(y, design.matrix, weights)
    matrix = membership_of(limma)
    rho, df = set_correlations(directions, matrix), directions.shape[1]
    if case == "fixed":
        rho, df = 0.01, np.inf
    z = moderated(limma, y.mean(0) if case == "trend" else None)
    found = competitive_tests(z, matrix, rho, df)
    assert np.abs(found.p_value - limma[5][case]).max() < 1e-5


# ---------------------------------------------------------------- simulated cohorts


def two_visits(seed, *, planted=0.0, shared=0.2, patients=0.3, n_patients=10, n_genes=1000):
    "Bulk counts in which the genes of a set share a factor of the sample and one of the patient."
    rng = rng_for(seed, "test of enrichment")
    person = np.repeat(np.arange(n_patients), 2)
    later = np.tile([False, True], n_patients)
    obs = pd.DataFrame({"patient": [f"P{i:02d}" for i in person]})
    obs["timepoint"] = pd.Categorical(np.where(later, "REL", "DX"), ["DX", "REL"], ordered=True)
    obs["sample"] = obs["patient"] + "_" + obs["timepoint"].astype(str)
    obs.index = obs["sample"].rename(None)
    obs["cell_type"] = pd.Categorical(["all"] * len(obs))
    obs["n_cells"] = 1
    group = np.repeat(np.arange(n_genes // 25), 25)
    log = rng.normal(4.5, 1.2, n_genes) + rng.normal(0, 0.3, (n_patients, n_genes))[person]
    log += shared * rng.normal(size=(len(obs), group.max() + 1))[:, group]
    log += patients * rng.normal(size=(n_patients, group.max() + 1))[person][:, group]
    log[np.ix_(later, group == 0)] += planted
    mean = np.exp(log) * rng.lognormal(0, 0.3, (len(obs), 1))
    counts = rng.poisson(mean * rng.gamma(12, 1 / 12, mean.shape))
    names = [f"G{i:04d}" for i in range(n_genes)]
    bulk = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=names))
    bulk.layers["counts"] = bulk.X
    return bulk, {f"set {k:02d}": names[25 * k : 25 * k + 25] for k in range(20)}


def p_values(bulk, sets):
    "Every test of one fit."
    part = next(fit_cell_types(bulk, DEFAULT_DESIGN, ("REL", "DX"), TREND, NotTested()))
    one = part.contrasts[0]
    _, matrix, _ = set_membership(sets, part.genes)
    z = z_scores(one.tests.p_value, one.tests.effect)
    weights = one.contrast.weights
    blocks = within_blocks(part.fit.design, weights[0])
    u = residual_directions(part.fit.precision.log_cpm, blocks, part.fit.precision.weights)
    inside = matrix.toarray().astype(bool)
    return pd.DataFrame(
        {
            "ranks": [stats.ranksums(z[i], z[~i]).pvalue for i in inside],
            "fixed": competitive_tests(z, matrix, 0.01, np.inf).p_value,
            "camera": competitive_tests(z, matrix, set_correlations(u, matrix), u.shape[1]).p_value,
            "scores": score_tests(
                part.fit, sample_scores(part.fit, matrix), weights, TREND
            ).p_value,
        }
    )


@pytest.mark.parametrize("patients", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_error_rates_on_correlated_sets(patients):
    "20 sets in 15 cohorts without change: at most 5% and its margin; a rank test finds far more."
    p = pd.concat([p_values(*two_visits(s, patients=patients)) for s in range(15)])
    margin = stats.binom.ppf(0.995, len(p), 0.05) / len(p)
    share = (p < 0.05).mean()
    print(f"p < 0.05 in {share.round(3).to_dict()}; up to {margin:.3f} expected")
    assert share["camera"] <= margin and share["scores"] <= margin
    assert share["ranks"] > 3 * margin


def test_few_sets_keep_their_level():
    "Fewer than ten sets: variances are not moderated."
    p = []
    for seed in range(25):
        bulk, sets = two_visits(seed + 500, n_patients=6, n_genes=400)
        few = {k: sets[k] for k in list(sets)[:4]}
        p += list(p_values(bulk, few)["scores"])
    assert np.mean(np.array(p) < 0.05) <= stats.binom.ppf(0.995, len(p), 0.05) / len(p)


@pytest.fixture(scope="module")
def planted():
    return two_visits(1, planted=0.6)


@pytest.mark.parametrize("method", ["camera", "scores"])
def test_a_planted_set_is_first(method, planted):
    found = enrich(*planted, method=method)
    first = found.iloc[0]
    assert first["gene_set"] == "set 00" and first["direction"] == "up" and first["q_value"] < 0.01
    assert len(first["leading_genes"].split(", ")) == 5
    assert set(first["leading_genes"].split(", ")) <= set(planted[1]["set 00"])
    assert (found["q_value"] < 0.1).sum() <= 3
    if method == "scores":
        assert first["ci_low"] < first["effect"] < first["ci_high"]
        assert first["ci_low"] < 0.6 / np.log(2) < first["ci_high"] + 0.1
    else:
        assert found["ci_low"].isna().all() and found["correlation"].between(-0.1, 0.9).all()


def test_designs_of_the_engine(planted):
    "Blocks, covariates, and a mixed model of every gene give the planted set as well."
    bulk, sets = planted
    bulk = bulk.copy()
    bulk.obs["age"] = rng_for(0).normal(size=10).repeat(2)
    for options in (
        {"design": "~ patient + timepoint", "contrast": ("REL", "DX")},
        {"design": "~ timepoint + age + (1|patient)", "contrast": "timepointREL"},
        {"random": "gene"},
        {"random": "gene", "method": "scores"},
        {"correlation": 0.01},
    ):
        assert enrich(bulk, sets, **options)["gene_set"][0] == "set 00", options
    with pytest.raises(InputError, match="one by one"):
        enrich(bulk, sets, "~ timepoint + age + (1|patient)", ["timepointREL", "age"])


def test_a_contrast_between_patients_uses_all_residuals(planted):
    bulk = planted[0]
    obs = bulk.obs.assign(response=np.where(np.arange(20) < 10, "poor", "good"))
    design = design_of_formula(obs, "~ timepoint + response + (1|patient)")
    between = contrast_of(design, "responsepoor").weights[0]
    within = contrast_of(design, ("REL", "DX")).weights[0]
    assert within_blocks(design, between) is design.matrix
    assert within_blocks(design, within).shape == (20, 11)


@given(order=st.permutations(range(20)), seed=st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_order_does_not_matter(order, seed, planted):
    "Sets in another order, genes of the sets and of the data in another order: the same rows."
    bulk, sets = planted
    rng = rng_for(seed, "order")
    names = list(sets)
    mixed = {names[i]: list(rng.permutation(sets[names[i]])) for i in order}
    other = bulk[:, rng.permutation(bulk.n_vars)].copy()
    columns = ["gene_set", "n_genes", "statistic", "p_value", "correlation", "leading_genes"]
    a = enrich(bulk, sets)[columns]
    b = enrich(other, mixed)[columns]
    pd.testing.assert_frame_equal(a, b, rtol=1e-6)


@given(seed=st.integers(0, 10**6), m=st.integers(2, 40), rho=st.floats(-0.2, 0.9))
@settings(max_examples=50, deadline=None)
def test_what_holds_for_every_set(seed, m, rho):
    "Signs turn with the statistics, more correlation never makes p smaller, scale does not matter."
    z = rng_for(seed, "z").normal(size=100)
    one = sp.csr_matrix((np.arange(100) < m).astype(float))
    found = competitive_tests(z, one, rho, 20)
    turned = competitive_tests(-z, one, rho, 20)
    assert np.isclose(found.p_value, turned.p_value) and found.statistic == -turned.statistic
    assert competitive_tests(z, one, rho + 0.05, 20).p_value >= found.p_value - 1e-12
    assert np.isclose(competitive_tests(3 * z + 1, one, rho, 20).p_value, found.p_value)


def test_sets_that_cannot_be_tested(planted):
    bulk, sets = planted
    with pytest.raises(InputError, match="no others to compare"):
        enrich(bulk, {"every gene": list(bulk.var_names)}, max_genes=10**4)
    with pytest.raises(InputError, match="10 are needed"):
        enrich(bulk, {"few": sets["set 00"][:5]})
    found = enrich(bulk, sets | {"few": sets["set 00"][:5]})
    assert ("few", "all", "5 of its 5 genes are tested; 10 are needed") in found.attrs["not_tested"]
    with pytest.raises(InputError, match="4 patients have|patients"):
        enrich(bulk, sets, min_patients=50)
    logged = bulk.copy()
    logged.uns["longaml"] = {"input_kind": "lognorm"}
    with pytest.raises(InputError, match="raw counts"):
        enrich(logged, sets)


def test_permuted_visits(planted):
    "The planted set has the smallest p there can be; sets without change have any."
    found = enrich(*planted, permutations=19).set_index("gene_set")["p_permuted"]
    assert found["set 00"] == 1 / 20 and found.between(1 / 20, 1).all()
    assert found.drop("set 00").mean() > 0.3
    with pytest.raises(InputError, match="no contrast of two timepoints"):
        enrich(*planted, contrast="timepointREL", permutations=2)


def test_cell_types_are_combined():
    cohort = la.datasets.simulate_cohort("small", seed=1, n_patients=8, n_genes=300)
    rng = rng_for(0, "sets")
    sets = {f"s{i}": list(rng.choice(cohort.var_names, 30, replace=False)) for i in range(12)}
    found = la.tl.enrich(cohort, sets, contrast=("REL", "DX"))
    every = found[found["cell_type"] == "all"]
    own = found[found["cell_type"] != "all"]
    assert len(every) == 12 and own["cell_type"].nunique() > 2
    assert own["q_value_overall"].notna().all() and every["q_value_overall"].isna().all()
    assert found[["p_value", "q_value"]].notna().all().all()
    bulk = la.pp.pseudobulk(cohort, downsampled=False)
    pd.testing.assert_frame_equal(found, la.tl.enrich(bulk, sets, contrast=("REL", "DX")))
    assert len(plot_gene_sets(found, top=5).get_yticks()) == 5
    assert plot_set_effects(found, top=5).get_xlabel() == "mean log2 fold change"


# ---------------------------------------------------------------- known biology


@pytest.fixture(scope="module")
def kang(shared_data):
    """Counts from the logarithms (a cell's smallest value is one count), cells of each condition in
    six random groups that stand for patients: the file has no donors, so only ranks are looked at.
    """
    a = ad.read_h5ad(shared_data / "kang_ifnb.h5ad")
    x = np.expm1(np.asarray(a.X.toarray() if sp.issparse(a.X) else a.X, dtype=np.float64))
    counts = np.round(x / np.where(x > 0, x, np.inf).min(1, keepdims=True))
    group = rng_for(0, "groups").permutation(a.n_obs) % 6
    obs = pd.DataFrame(
        {
            "patient": [f"P{g}" for g in group],
            "time": np.where(a.obs["condition"] == "stimulated", "IFN", "control"),
            "kind": a.obs["cell_type"].astype(str).to_numpy(),
        },
        index=a.obs_names,
    )
    cells = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs, a.var[[]])
    return la.pp.as_cohort(
        cells,
        patient_key="patient",
        timepoint_key="time",
        cell_type_key="kind",
        timepoints=["control", "IFN"],
    )


@pytest.mark.parametrize("method", ["camera", "scores"])
def test_interferon_is_first_in_kang(method, kang, shared_data):
    found = la.tl.enrich(kang, shared_data / "hallmark.gmt", method=method, min_cells=10)
    best = found[found["cell_type"] == "all"].nsmallest(2, "p_value")
    assert set(best["gene_set"]) == {
        "HALLMARK_INTERFERON_ALPHA_RESPONSE",
        "HALLMARK_INTERFERON_GAMMA_RESPONSE",
    }
    assert (best["direction"] == "up").all() and (best["q_value"] < 0.05).all()
    first = found[found["cell_type"] != "all"].groupby("cell_type")["gene_set"].first()
    assert first.str.contains("INTERFERON").all(), first.to_dict()


def test_permuted_p_where_the_design_has_a_column_of_its_own_for_visits(planted):
    "Once, only the timepoint was exchanged: every permutation was the cohort itself, and p was 1."
    bulk, sets = planted
    bulk = bulk.copy()
    bulk.obs["visit"] = bulk.obs["timepoint"]
    first = enrich(bulk, sets, permutations=10)
    second = enrich(bulk, sets, "~ visit + (1|patient)", ("REL", "DX"), permutations=10)
    np.testing.assert_allclose(first["p_permuted"], second["p_permuted"])
    assert second["p_permuted"].iloc[0] == pytest.approx(1 / 11)
