"""Factors, Bayesian ridge, and differential expression as a whole run.

Fits see training patients only, posteriors are the reference's, planted modules come back."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import nnls
from sklearn.linear_model import BayesianRidge as Reference
from tools import ROOT, python

import longaml as la
from longaml.core import rng_for
from longaml.experiment.de import de_audit, run_de
from longaml.models.baselines import held_out_proba, patient_accuracy
from longaml.models.classical import BayesianRidge, FactorModel, bayesian_ridge, coefficient_table
from longaml.models.quadratic import enrichment
from longaml.tl.expression import de_coverage, de_stability, de_table
from longaml.tl.factors import (
    activities,
    chosen_k,
    factor_changes,
    factor_stability,
    fit_factors,
    leading_genes,
)
from longaml.tl.gene_test_summary import de_lines, downsampled_table
from longaml.tl.permutation import held_out_scorer, observed_assignment

FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 10**6)


# ---- the ridge


@given(seed=SEEDS, rows=st.integers(30, 60), genes=st.integers(3, 90), weighted=st.booleans())
@FEW
def test_the_posterior_is_the_references(seed, rows, genes, weighted):
    "Mean and SD among the rows are scikit-learn's among the genes, at the precisions it found."
    rng = rng_for(seed)
    x, weight = rng.normal(size=(rows, genes)), rng.gamma(2, 0.5, rows) if weighted else None
    if weighted:
        weight *= rows / weight.sum()
    y = x @ rng.normal(0, 1 / np.sqrt(genes), genes) + rng.normal(0, 1.0, rows)
    theirs = Reference(fit_intercept=False, tol=1e-12, max_iter=5000).fit(
        x, y, sample_weight=weight
    )
    ours = bayesian_ridge(x, y, weight=weight, ratio=theirs.lambda_ / theirs.alpha_)
    np.testing.assert_allclose(
        ours.mean[:, 0], theirs.coef_, atol=1e-6 * max(np.abs(theirs.coef_).max(), 1)
    )
    np.testing.assert_allclose(
        ours.sd * np.sqrt(ours.lam / theirs.lambda_), np.sqrt(np.diag(theirs.sigma_)), rtol=1e-5
    )


@given(seed=SEEDS, genes=st.integers(3, 40))
@FEW
def test_the_evidence_settles_where_the_references_does(seed, genes):
    rng = rng_for(seed)
    x = rng.normal(size=(80, genes))
    y = x @ rng.normal(0, 1 / np.sqrt(genes), genes) + rng.normal(0, 1.0, 80)
    ours, theirs = (
        bayesian_ridge(x, y),
        Reference(fit_intercept=False, tol=1e-12, max_iter=20000).fit(x, y),
    )
    np.testing.assert_allclose([ours.alpha, ours.lam], [theirs.alpha_, theirs.lambda_], rtol=1e-4)
    np.testing.assert_allclose(ours.mean[:, 0], theirs.coef_, atol=1e-5)


@given(seed=SEEDS, rows=st.integers(3, 12), genes=st.integers(2, 30), outputs=st.integers(1, 3))
@FEW
def test_a_given_ratio_is_plain_ridge(seed, rows, genes, outputs):
    rng, ratio = rng_for(seed), 0.7
    x, y, w = (
        rng.normal(size=(rows, genes)),
        rng.normal(size=(rows, outputs)),
        rng.gamma(2, 1, rows),
    )
    w *= rows / w.sum()
    p = bayesian_ridge(x, y, weight=w, ratio=ratio)
    inverse = np.linalg.inv(x.T @ (w[:, None] * x) + ratio * np.eye(genes))
    np.testing.assert_allclose(p.mean, inverse @ x.T @ (w[:, None] * y), atol=1e-8)
    np.testing.assert_allclose(p.sd**2, np.diag(inverse) * ratio / p.lam, rtol=1e-6)
    np.testing.assert_allclose(
        p.variance(x) - 1 / p.alpha,
        ((x @ inverse) * x).sum(1) * ratio / p.lam,
        rtol=1e-5,
        atol=1e-12,
    )


def test_weights_that_stand_for_less_than_the_rows_span_are_refused():
    with pytest.raises(
        ValueError, match="weights sum to 1 observations; the rows span 5 directions"
    ):
        bayesian_ridge(rng_for(0).normal(size=(5, 9)), np.arange(5.0), weight=np.full(5, 0.2))


def test_twenty_thousand_genes_are_a_matter_of_rows():
    "The same mean as that of the rows x rows system."
    rng = rng_for(0, "large")
    x, y = rng.normal(size=(60, 20_000)), rng.normal(size=60)
    p = bayesian_ridge(x, y, ratio=2e4)
    np.testing.assert_allclose(
        p.mean[:, 0], x.T @ np.linalg.solve(x @ x.T + 2e4 * np.eye(60), y), atol=1e-10
    )
    assert p.axes.shape == (60, 20_000) and np.isfinite(p.sd).all() and (p.sd > 0).all()


@pytest.fixture(scope="module")
def cohort():
    return la.datasets.simulate_cohort("small", seed=2)


@pytest.fixture(scope="module")
def sets(cohort):
    return la.pp.timepoint_pairs(la.pp.bags(cohort), ("DX", "REL"))


MODELS = {
    "ridge": BayesianRidge,
    "ridge, fixed": lambda: BayesianRidge(signal=1.0),
    "modules": FactorModel,
    "modules, fixed": lambda: FactorModel(k=6, c=0.1),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_predict_like_the_other_baselines(name, sets):
    "Probabilities, mirrored pairs, contributions that add up to the logit, better than chance."
    model = MODELS[name]().fit(sets, seed=1)
    p = model.predict_proba(sets)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-9)
    np.testing.assert_allclose(p[:, 0, 1], p[:, 1, 0], atol=1e-5)
    np.testing.assert_allclose(
        2 * model.contributions(sets).sum(1), np.log(p[:, 1, 1] / p[:, 1, 0]), atol=1e-3
    )
    np.testing.assert_array_equal(MODELS[name]().fit(sets, seed=1).predict_proba(sets), p)
    assert (
        patient_accuracy(
            sets, held_out_proba(MODELS[name], sets, la.pp.patient_folds(sets.groups, n_folds=3))
        ).mean()
        > 0.55
    )


@pytest.mark.parametrize("name", ["ridge, fixed", "modules, fixed"])
def test_swapped_labels_swap_the_prediction(name, sets):
    "A mirror image of all samples is the same model the other way round."
    swapped = sets.relabel(
        {
            s: {"DX": "REL", "REL": "DX"}[t]
            for row in sets.samples
            for s, t in zip(row, sets.timepoints)
        }
    )
    p, q = (MODELS[name]().fit(s).predict_proba(sets) for s in (sets, swapped))
    np.testing.assert_allclose(p[..., 1], q[..., 0], atol=1e-6)


@pytest.mark.parametrize("name", ["ridge, fixed", "modules, fixed"])
def test_three_timepoints(name, cohort):
    three = la.pp.timepoint_pairs(la.pp.bags(cohort), ("DX", "REM", "REL"))
    model = MODELS[name]().fit(three)
    np.testing.assert_allclose(model.predict_proba(three).sum(-1), 1, atol=1e-9)
    assert (
        model.contributions(three).shape == (len(three), len(three.genes))
        and patient_accuracy(three, model.predict_proba(three)).mean() > 0.5
    )


@pytest.mark.parametrize("name", ["ridge, fixed", "modules, fixed"])
def test_a_gene_that_never_varies_contributes_nothing(name, sets):
    quiet = la.pp.preprocessing.Sequences(**{**vars(sets), "x": sets.x.copy()})
    quiet.x[..., :7] = 0
    model = MODELS[name]().fit(quiet)
    assert (
        np.abs(model.contributions(sets)[:, :7]).max() == 0
        and np.isfinite(model.predict_proba(sets)).all()
    )


def test_more_bags_are_not_more_certainty(cohort):
    "Five bags of a sample or one: as many observations, so that standard deviations hardly move."
    sd = [
        coefficient_table(
            BayesianRidge(signal=1.0).fit(
                la.pp.timepoint_pairs(la.pp.bags(cohort, max_bags=n), ("DX", "REL"))
            )
        )["sd"].median()
        for n in (1, 5)
    ]
    assert 0.8 < sd[1] / sd[0] < 1.25


def test_a_ranking_takes_the_models(sets):
    "They go through the scorer of every ranking; a planted driver scores above other genes."
    folds, truth = (
        la.pp.patient_folds(sets.groups, n_folds=3),
        observed_assignment(la.tl.permutation.design_of(sets)),
    )
    kind = la.datasets.simulate_cohort("small", seed=2).uns["truth"]["kind"].to_numpy()
    for name in ("ridge, fixed", "modules, fixed"):
        score = held_out_scorer(MODELS[name], sets, folds)([truth])[0]
        assert (
            stats.mannwhitneyu(
                score[kind == "marginal"], score[kind == "none"], alternative="greater"
            ).pvalue
            < 0.01
        )


# ---- factors


def rows_of(seed, patients=8, genes=60, k=3):
    "Rows as from pseudobulk, with k planted modules of disjoint genes."
    rng = rng_for(seed, "rows")
    obs = pd.DataFrame(
        [
            (f"P{p}", t, f"P{p}_{t}", cell_type, 50.0)
            for p in range(patients)
            for t in ("a", "b")
            for cell_type in ("X", "Y")
        ],
        columns=["patient", "timepoint", "sample", "cell_type", "n_cells"],
    )
    obs["timepoint"] = pd.Categorical(obs["timepoint"], ["a", "b"], ordered=True)
    obs = obs.astype(
        {"patient": "category", "sample": "category", "cell_type": "category"}
    ).set_axis([f"r{i}" for i in range(len(obs))])
    module = np.arange(genes) % k
    x = rng.gamma(1, 1, (len(obs), k)) @ (
        rng.uniform(0.5, 1.5, genes) * (module == np.arange(k)[:, None])
    ) + np.abs(rng.normal(0, 0.05, (len(obs), genes)))
    return ad.AnnData(
        sp.csr_matrix(x),
        obs=obs,
        var=pd.DataFrame({"module": module}, index=[f"G{i}" for i in range(genes)]),
    )


@given(seed=SEEDS, k=st.integers(2, 4))
@settings(max_examples=8, deadline=None)
def test_planted_modules_come_back(seed, k):
    made = rows_of(seed, k=k)
    f = fit_factors(made, k, seed=seed)
    assert f.error < 0.05 and (f.loadings.to_numpy() >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(f.loadings, axis=1), 1)
    led = leading_genes(f, top=60 // k)
    assert list(led.columns) == ["module", "gene", "weight"]
    found = led.assign(planted=made.var["module"].reindex(led["gene"]).to_numpy()).groupby(
        "module"
    )["planted"]
    assert (found.nunique() == 1).all() and found.first().nunique() == k


@given(seed=SEEDS)
@FEW
def test_activities_are_the_least_squares_of_each_row(seed):
    "Against scipy on the filled system; a row does not depend on the other rows."
    made, f = rows_of(seed), fit_factors(rows_of(seed + 1), 3, restarts=1)
    a = activities(f, made)
    x = made.X.toarray() / f.scale
    for i in (0, 5, 31):
        np.testing.assert_allclose(
            a.X.toarray()[i], nnls(f.loadings.to_numpy().T, x[i])[0], atol=1e-4
        )
    np.testing.assert_allclose(
        activities(f, made[3:9]).X.toarray(), a.X.toarray()[3:9], rtol=1e-9, atol=1e-9
    )
    assert a.obs.equals(made.obs)


@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_held_out_rows_are_not_seen(seed):
    made = rows_of(seed)
    train, other = [f"P{p}" for p in range(5)], made.copy()
    x = made.X.toarray()
    x[~made.obs["patient"].isin(train).to_numpy()] = rng_for(seed).uniform(0, 1e6, 60)
    other.X = sp.csr_matrix(x)
    a, b = (fit_factors(m, 3, patients=train, restarts=2) for m in (made, other))
    np.testing.assert_array_equal(a.loadings, b.loadings)
    np.testing.assert_array_equal(a.scale, b.scale)
    assert a.error == b.error and a.patients == b.patients == tuple(train)
    pd.testing.assert_frame_equal(
        *(factor_stability(m, [3], patients=train, halves=2) for m in (made, other))
    )


@pytest.mark.parametrize("make", MODELS)
def test_no_model_sees_a_held_out_patient(make, sets):
    held = sorted(set(sets.patients))[:3]
    out = np.isin(sets.patients, held)
    other = la.pp.preprocessing.Sequences(**{**vars(sets), "x": sets.x.copy()})
    other.x[out] = rng_for(0).normal(size=other.x[out].shape) * 50
    p, q = (MODELS[make]().fit(s.take(~out)).predict_proba(sets.take(out)) for s in (sets, other))
    np.testing.assert_array_equal(p, q)


def test_the_number_of_modules():
    made = rows_of(3, patients=12)
    assert chosen_k(factor_stability(made, range(2, 6), halves=6)) == 3
    noise = made.copy()
    noise.X = sp.csr_matrix(rng_for(0).gamma(2, 1, made.shape))
    assert chosen_k(factor_stability(noise, range(2, 6), halves=6)) == 0


def test_changes_are_paired_t_tests():
    made = rows_of(1, patients=9)
    a = activities(fit_factors(made, 3), made)
    table = factor_changes(a)
    assert (
        set(table["cell_type"]) == {"all", "X", "Y"}
        and len(table) == 9
        and (table["patients"] == 9).all()
    )
    x = a.to_df()["module 2"]
    rows = a.obs.assign(x=x)[a.obs["cell_type"] == "Y"].pivot(
        index="patient", columns="timepoint", values="x"
    )
    want = stats.ttest_rel(rows["b"], rows["a"])
    got = table.set_index(["cell_type", "module"]).loc[("Y", "module 2")]
    np.testing.assert_allclose(
        [got["statistic"], got["p_value"]], [want.statistic, want.pvalue], rtol=1e-6
    )
    np.testing.assert_allclose(table["q_value"], stats.false_discovery_control(table["p_value"]))


def test_leading_genes_go_to_enrichment():
    made = rows_of(2)
    rich = enrichment(
        leading_genes(fit_factors(made, 3), top=20),
        {f"planted {k}": list(made.var_names[made.var["module"] == k]) for k in range(3)},
        list(made.var_names),
    )
    assert (
        len(rich) == 9
        and (rich["q_value"] < 1e-6).sum() == 3
        and (rich.head(3)["both"] == 20).all()
    )


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda m: fit_factors(m, 0), "k is 0"),
        (lambda m: fit_factors(m, 99), "allow 1 to"),
        (lambda m: fit_factors(m, 2, patients=["nobody"]), "0 rows"),
        (lambda m: fit_factors(ad.AnnData(-m.X.toarray(), obs=m.obs), 2), "zero or more"),
        (lambda m: fit_factors(ad.AnnData(m.X.toarray() * np.nan, obs=m.obs), 2), "missing ones"),
        (lambda m: activities(fit_factors(m, 2, restarts=1), m[:, 5:]), "5 of 60 genes"),
        (
            lambda m: factor_stability(
                m[m.obs["patient"].isin(["P0", "P1", "P2"]).to_numpy()], [2]
            ),
            "at least 4",
        ),
        (lambda m: factor_stability(m, [99]), "asked for 99 modules"),
        (
            lambda m: factor_changes(activities(fit_factors(m, 2, restarts=1), m), min_patients=50),
            "lower min_patients",
        ),
    ],
)
def test_what_cannot_be_done_is_said(change, said):
    with pytest.raises((ValueError, KeyError), match=said):
        change(rows_of(0))


# ---- differential expression, a whole run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    out = tmp_path_factory.mktemp("de") / "cohort.h5ad"
    c = la.datasets.simulate_cohort(
        "small",
        seed=4,
        n_patients=8,
        n_genes=150,
        n_drivers=8,
        cell_types=("HSC",),
        malignant_types=("HSC",),
    )
    del c.uns["truth"]
    c.write_h5ad(out)
    return out


@pytest.fixture(scope="module")
def done(path, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run_de(path, out, permutations=4)


TABLES = ("de.csv", "coverage.csv", "audit.csv")


def test_a_run_fills_its_tables(done, path):
    out, result = done
    de, cover, audit = (pd.read_csv(out / n) for n in TABLES)
    assert (
        list(de.columns)
        == (
            "contrast cell_type gene log2_fold_change standard_error ci_low ci_high statistic df "
            "p_value q_value mean_expression n_patients n_same_direction q_value_overall"
        ).split()
    )
    assert set(de["contrast"]) <= {"REL_vs_DX", "REM_vs_DX", "REL_vs_REM"} and "all" in set(
        de["cell_type"]
    )
    tested = cover[cover["tested"]]
    assert (
        set(zip(tested["contrast"], tested["cell_type"]))
        == set(zip(de["contrast"], de["cell_type"]))
        == set(zip(audit["contrast"], audit["cell_type"])) - {("all", "all")}
    )
    assert (
        (cover[["patients_later", "patients_earlier"]].min(axis=1) <= cover["patients"]).all()
        and (cover["patients_both"] <= cover["patients_later"]).all()
        and cover.loc[~cover["tested"], "why"].str.contains("3 are needed").all()
        and (cover["patients"] <= cover["patients_with_cells"]).all()
    )
    for (c, cell_type), r in de.groupby(["contrast", "cell_type"]):
        assert 130 < r["gene"].nunique() == len(r) <= 150 and r["p_value"].is_monotonic_increasing
        np.testing.assert_allclose(
            r["q_value"], stats.false_discovery_control(r["p_value"]), rtol=1e-8
        )
        seen = cover.set_index(["contrast", "cell_type"]).loc[(c, cell_type)]
        assert (r["n_patients"] == (seen["patients_both"] or r["n_patients"].iloc[0])).all()
    assert (np.sign(de["statistic"]) == np.sign(de["log2_fold_change"])).all()
    first = de.groupby("contrast", sort=False)["cell_type"].first()
    assert set(first) == {"all"} and set(de["cell_type"]) > {"all"}
    own = de[de["cell_type"] != "all"]
    assert own["standard_error"].gt(0).all()
    assert (own["n_same_direction"] <= own["n_patients"]).sum() == own[
        "n_same_direction"
    ].notna().sum()
    assert de.loc[de["cell_type"] == "all", "ci_low"].isna().all()
    checked = audit[audit["check"] == "permuted visits"]
    assert len(checked) == de.groupby(["contrast", "cell_type"]).ngroups
    assert checked["text"].str.contains("permuted cohort|too few patients").all()
    few = audit[audit["check"] == "underpowered"].set_index(["contrast", "cell_type"])
    for key, n in de.groupby(["contrast", "cell_type"])["n_patients"].first().items():
        expected = "failed" if n < 6 else "passed"
        assert few.loc[key, "value"] == n and few.loc[key, "status"] == expected
    record = json.loads((out / "run.json").read_text())
    assert (
        record["status"] == "complete"
        and record["command"] == "de"
        and record["params"]["min_patients"] == 3
    )
    assert (
        record["results"]["summary"] == result["summary"].splitlines()[:-1]
        and result["summary"].splitlines()[-1].startswith("results: ")
        and "not tested" in result["summary"]
        and "at 5% FDR" in result["summary"]
    )
    assert (
        len(list((out / "figures").glob("volcano-*.png"))) == len(tested)
        and len(list((out / "figures").glob("qq-*.png"))) == tested["contrast"].nunique()
        and (out / "figures" / "audit.png").exists()
    )


@pytest.mark.slow  # every command has one driver; test_cohort_runs.py does this for run
def test_same_seed_same_bytes_and_resume(done, path, tmp_path):
    again = tmp_path / "again"
    for resume in (False, True):
        run_de(path, again, permutations=4, resume=resume)
        assert {n: (again / n).read_bytes() for n in TABLES} == {
            n: (done[0] / n).read_bytes() for n in TABLES
        }
        stability = next((again / "steps").glob("stability*"))
        for gone in (stability, again / "de.csv", again / "figures/audit.png"):
            gone.unlink()  # as if it had been killed there
    with pytest.raises(ValueError, match="min_patients"):
        run_de(path, again, permutations=4, resume=True, min_patients=4)


@pytest.mark.parametrize(
    "given_,error,said",
    [
        ({"min_patients": 1}, ValueError, "at least 2 patients"),
        ({"min_cells": 0}, ValueError, "at least 1 cell"),
        ({"min_patients": 99}, ValueError, "nothing can be tested: REL_vs_DX"),
        ({"min_patients": 99, "method": "downsampled"}, ValueError, "REL_vs_DX has"),
        ({"design": "~ timepoint + batch"}, KeyError, "no design column 'batch'"),
        ({"design": "~ timepoint +"}, ValueError, "no formula"),
        ({"design": "~ n_cells_of + (1|patient)"}, KeyError, "no design column"),
        ({"design": "~ log_cells + (1|patient)"}, ValueError, "has no timepoint"),
        ({"design": "~ timepoint", "method": "downsampled"}, ValueError, "has no design"),
        ({"contrast": "timepointRELL"}, ValueError, "names no coefficient"),
        ({"contrast": "x", "method": "downsampled"}, ValueError, "compares timepoints"),
        ({"method": "wilcoxon"}, ValueError, "expected one of: linear, downsampled"),
        ({"random": "both"}, ValueError, "expected one of: auto, shrunken, consensus, gene"),
        ({"min_cells": 10**5}, ValueError, "lower min_cells"),
        ({"read": {"patient_key": "donor"}}, KeyError, "donor"),
    ],
)
def test_errors_come_before_anything_is_written(given_, error, said, path, tmp_path):
    with pytest.raises(error, match=said):
        run_de(path, tmp_path / "out", **given_)
    assert not (tmp_path / "out").exists()


def test_two_patients_are_a_test_without_stability(tmp_path):
    "The least that a paired test can be made of: values, and the check underpowered."
    c = la.datasets.simulate_cohort(
        "two_timepoints",
        seed=1,
        n_patients=2,
        n_genes=120,
        n_drivers=4,
        cell_types=("Blood",),
        malignant_types=(),
    )
    bulk = la.pp.pseudobulk(c)
    older = de_table(bulk, min_patients=2)
    assert de_stability(bulk, older).empty
    table = downsampled_table(older, [("after", "before")])
    checks = de_audit(table, c, stable=de_stability(bulk, older))
    status = checks.set_index(["cell_type", "check"])["status"]
    assert status[("all", "underpowered")] == "failed"
    assert any(
        "underpowered" in line
        for line in de_lines(table, de_coverage(c, bulk, min_patients=2), checks)
    )


def test_glioblastoma(shared_data, tmp_path):
    "Five patients with and without panobinostat: metallothioneins rise, and five are few."
    result = run_de(
        shared_data / "glioblastoma_panobinostat.h5ad",
        tmp_path / "out",
        read={
            "patient_key": "patient_id",
            "timepoint_key": "condition",
            "timepoints": ["ctrl", "panobinostat"],
        },
    )
    de = result["de"]
    assert set(de["contrast"]) == {"panobinostat_vs_ctrl"} and set(de["cell_type"]) == {"all"}
    assert (de["n_patients"] == 5).all() and 200 < len(de) <= 300
    few = "few patients: changes may have been missed in panobinostat_vs_ctrl"
    assert few in result["summary"].splitlines()
    raised = de[de["gene"].str.startswith(("ENSG00000187193", "ENSG00000125148"))]
    assert (
        len(raised) == 2
        and (raised["log2_fold_change"] > 0).all()
        and (raised["q_value"] < 0.1).all()
    )


def test_the_benchmark_agrees_with_itself():
    done = python("tests/benchmarks/bench_expression.py", "--quick", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times less time than the extrapolated loop" in done.stdout
