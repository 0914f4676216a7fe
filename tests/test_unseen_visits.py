"""Forecasts of visits that were not observed: the command on simulated cohorts, bad input, what
must not matter.
"""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longaml as la
from longaml.cli import main
from longaml.core import rng_for
from longaml.models.conformal import (
    cross_predictions,
    expected_coverage,
    interval,
    patients_needed,
)
from longaml.models.forecasters import Network
from longaml.models.training import Training
from longaml.models.unseen_rows import expression_visits
from longaml.tasks.unseen_visits import predict

UNSEEN = ["AML2", "AML7"]
QUICK = ["--genes", "30", "--no-figures"]


def cohort_of(unseen=UNSEEN, seed=5, **size):
    size = {"n_patients": 14, "n_genes": 120, "n_cells": 120, "n_drivers": 6, "missing": 0.0} | size
    cohort = la.datasets.simulate_cohort("small", seed=seed, **size)
    gone = cohort.obs["patient"].isin(unseen) & (cohort.obs["timepoint"] == "REL")
    return cohort[~gone.to_numpy()].copy()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("unseen") / "c.h5ad"
    la.pp.save_cohort(cohort_of(), path)
    return path


def forecast(path, out, *args):
    return main([str(a) for a in ("forecast", path, "--out", out, *args)])


def numbers(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.csv"))}


# ---- the command


def test_a_cohort(path, tmp_path, capsys):
    "Tables, and the same bytes when nothing had to be computed again."
    assert forecast(path, tmp_path / "1", *QUICK) == 0
    said = capsys.readouterr().out
    assert "REL for 2 patients without it (AML2, AML7); 12 patients have it" in said
    assert "90% intervals cover" in said and "better than the mean shift" in said
    one = numbers(tmp_path / "1")
    assert set(one) == {f"{n}.csv" for n in "forecast composition patients evaluation".split()}
    assert forecast(path, tmp_path / "1", *QUICK, "--resume") == 0
    assert numbers(tmp_path / "1") == one
    table = pd.read_csv(tmp_path / "1" / "forecast.csv")
    assert set(table["patient"]) == set(UNSEEN) and table["observed"].isna().all()
    assert set(table["model"]) == {"no_change", "mean_shift", "baseline_expression", "ridge"}
    assert (table["low"] <= table["high"]).all() and table["gene"].nunique() == 30
    evaluation = pd.read_csv(tmp_path / "1" / "evaluation.csv")
    assert set(evaluation["part"]) == {"expression", "log_ratio", "share"}
    whole = evaluation[evaluation["cell_type"] == "all"]
    assert whole.groupby("part").size().eq(4).all()
    shifts = whole[whole["model"] == "mean_shift"]
    assert np.allclose(shifts["skill_over_mean_shift"], 0)


def test_named_patients_and_figures(path, tmp_path, capsys):
    args = ["--patients", "AML1,AML2", "--level", "0.8", "--to", "REL", "--genes", "30"]
    assert forecast(path, tmp_path / "out", *args) == 0
    said = capsys.readouterr().out
    assert "REL for 1 patients without it (AML2) and 1 held-out patients" in said
    drawn = {p.stem for p in (tmp_path / "out" / "figures").iterdir()}
    assert drawn == {"composition", "held-out", "models"}
    table = pd.read_csv(tmp_path / "out" / "forecast.csv")
    assert table.groupby("patient")["observed"].count().gt(0).to_dict() == {
        "AML1": True,
        "AML2": False,
    }


def test_everybody_has_the_visit(tmp_path, capsys):
    la.pp.save_cohort(cohort_of([]), tmp_path / "c.h5ad")
    assert forecast(tmp_path / "c.h5ad", tmp_path / "out", *QUICK) == 0
    said = capsys.readouterr().out
    assert "held-out forecasts only" in said and "REL for 14 held-out patients" in said
    table = pd.read_csv(tmp_path / "out" / "forecast.csv")
    assert table["observed"].notna().any() and table["patient"].nunique() >= 12


def test_too_few_patients_for_the_level(path, tmp_path, capsys):
    "Unbounded, said, and never counted as covered."
    assert forecast(path, tmp_path / "out", *QUICK, "--level", "0.95") == 0
    said = capsys.readouterr().out
    assert "need 19 patients and are unbounded" in said and "no 95% interval is bounded" in said
    table = pd.read_csv(tmp_path / "out" / "forecast.csv")
    assert np.isinf(table["high"]).all()
    evaluation = pd.read_csv(tmp_path / "out" / "evaluation.csv")
    assert evaluation["coverage"].isna().all() and evaluation["unbounded"].eq(1).all()
    who = pd.read_csv(tmp_path / "out" / "patients.csv")
    assert who["note"].str.startswith("unbounded").all()
    assert np.allclose(who["highest_level"], who["patients"] / (who["patients"] + 1))


def test_an_embedding_is_a_further_model(path, tmp_path, capsys):
    "Flagged, never the best; the numbers of the others are those without it."
    cohort = cohort_of()
    rng = rng_for(0, "vectors")
    cohort.obsm["X_own"] = rng.normal(size=(cohort.n_obs, 3))
    la.pp.save_cohort(cohort, tmp_path / "e.h5ad")
    assert forecast(tmp_path / "e.h5ad", tmp_path / "out", *QUICK, "--use-rep", "X_own") == 0
    said = capsys.readouterr().out
    assert "ridge_on_X_own (transductive): " in said and "note: X_own is transductive" in said
    assert forecast(path, tmp_path / "plain", *QUICK) == 0
    assert "transductive" not in capsys.readouterr().out
    for name in ("forecast", "composition", "evaluation"):
        one, other = (pd.read_csv(tmp_path / out / f"{name}.csv") for out in ("out", "plain"))
        without = one[one["model"] != "ridge_on_X_own"].reset_index(drop=True)
        assert len(one) == len(other) + len(other) // other["model"].nunique()
        pd.testing.assert_frame_equal(without[other.columns], other)
    flagged = pd.read_csv(tmp_path / "out" / "evaluation.csv")
    assert set(flagged.loc[flagged["transductive"], "model"]) == {"ridge_on_X_own"}


def test_embeddings_that_cannot_be_read(path, tmp_path, capsys):
    assert forecast(path, tmp_path / "no", *QUICK, "--use-rep", "X_pca") == 2
    assert "key of obsm is 'X_pca'; expected one of: none" in capsys.readouterr().err
    cohort = cohort_of()
    cohort.obsm["X_own"] = np.where(np.arange(cohort.n_obs) < 2, np.nan, 0.0)[:, None]
    la.pp.save_cohort(cohort, tmp_path / "n.h5ad")
    assert forecast(tmp_path / "n.h5ad", tmp_path / "no", *QUICK, "--use-rep", "X_own") == 2
    said = capsys.readouterr().err
    assert f"X_own cannot be used: 2 of {cohort.n_obs} cells have values that are not" in said
    bulk = la.datasets.simulate_cohort("bulk", seed=1, n_genes=120, n_drivers=6)
    bulk.obsm["X_pca"] = np.zeros((bulk.n_obs, 2))
    la.pp.save_cohort(bulk, tmp_path / "b.h5ad")
    args = [*QUICK, "--timepoints", "day0,day1,day7", "--use-rep", "X_pca"]
    assert forecast(tmp_path / "b.h5ad", tmp_path / "no", *args) == 2
    assert "this is a bulk table" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_bulk_cohort_has_no_composition(tmp_path, capsys):
    cohort = la.datasets.simulate_cohort("bulk", seed=1, n_genes=120, n_drivers=6)
    gone = (cohort.obs["patient"] == "AML3") & (cohort.obs["timepoint"] == "day7")
    la.pp.save_cohort(cohort[~gone.to_numpy()].copy(), tmp_path / "b.h5ad")
    args = [*QUICK, "--timepoints", "day0,day1,day7"]
    assert forecast(tmp_path / "b.h5ad", tmp_path / "out", *args) == 0
    assert "a bulk sample has no cells" in capsys.readouterr().out
    assert not (tmp_path / "out" / "composition.csv").exists()
    assert forecast(tmp_path / "b.h5ad", tmp_path / "mid", *args, "--to", "day1") == 0
    assert "day1 for 15 held-out patients" in capsys.readouterr().out


BAD = {
    "no such timepoint": (["--to", "RELL"], "Did you mean 'REL'?"),
    "the first timepoint": (["--to", "DX"], "nothing comes before"),
    "no such patient": (["--patients", "AML99"], "patient is 'AML99'.*"),
    "a level in percent": (["--level", "90"], "between 0 and 1"),
    "level 0": (["--level", "0"], "between 0 and 1"),
    "level 1": (["--level", "1"], "between 0 and 1"),
    "no such model": (["--models", "rigde"], "Did you mean 'ridge'?"),
    "a model of another task": (["--models", "logistic"], "forecast"),
    "no such cell type": (["--cell-types", "HSC"], "expected one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, path, tmp_path, capsys):
    args, words = BAD[case]
    assert forecast(path, tmp_path / "no", *args, *QUICK) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and re.search(words, said), said
    assert not (tmp_path / "no").exists()


def test_too_few_patients(tmp_path, capsys):
    cohort = cohort_of([f"AML{i}" for i in range(1, 10)])
    la.pp.save_cohort(cohort, tmp_path / "c.h5ad")
    assert forecast(tmp_path / "c.h5ad", tmp_path / "no", *QUICK) == 2
    said = capsys.readouterr().err
    assert "5 patients" in said and "at least 6" in said and not (tmp_path / "no").exists()


def test_nothing_before_the_visit(tmp_path, capsys):
    cohort = cohort_of()
    only = (cohort.obs["patient"] == "AML3") & (cohort.obs["timepoint"] != "REL")
    la.pp.save_cohort(cohort[~only.to_numpy()].copy(), tmp_path / "c.h5ad")
    assert forecast(tmp_path / "c.h5ad", tmp_path / "no", *QUICK, "--patients", "AML3") == 2
    assert "no visit of AML3 before REL" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_six_patients_are_enough_and_five_of_a_type_are_not(tmp_path):
    found = predict(cohort_of([f"AML{i}" for i in range(1, 9)]), n_genes=20, level=0.8)
    assert found.asked == [f"AML{i}" for i in range(1, 9)]
    assert len(found.composition) and found.composition["share"].notna().all()
    counted = found.patients[found.patients["visit"] == "not observed"]
    assert counted.loc[counted["note"] == "", "patients"].ge(6).all()


# ---- what must not matter


def test_a_network_takes_part():
    "Its fits never see the change to be predicted, which is NaN."
    v = expression_visits(la.pp.pseudobulk(cohort_of(), downsampled=False), "REL", n_genes=10)
    v = v.hidden(["AML1"])
    train = v.rows(v.having([0]), [0])
    new = v.rows((v.patients == "AML1") & v.mask[:, 0], [0])
    how = Training(epochs=2, device="cpu")
    found = cross_predictions(lambda: Network("lstm", how=how, width=4), train, new, n_folds=2)
    assert np.isnan(new.change).all() and np.isfinite(found.by_fold).all()
    assert np.isfinite(found.intervals(0.8)[1]).all()


def test_order_of_patients_and_other_timepoints():
    "Another order of cells, and visits after the one that is predicted, change nothing."
    cohort = cohort_of([])
    how = {"to": "REM", "n_genes": 20, "level": 0.8, "models": [], "cell_types": ["T normal"]}
    first = predict(cohort, **how)
    order = rng_for(0, "order").permutation(cohort.n_obs)
    again = predict(cohort[order].copy(), **how)
    pd.testing.assert_frame_equal(first.expression, again.expression)
    early = cohort[(cohort.obs["timepoint"] != "REL").to_numpy()].copy()
    fewer = predict(early, **how)
    pd.testing.assert_frame_equal(first.expression, fewer.expression)


def test_cell_types_that_are_not_there_at_the_visit():
    "Malignant cells are rare in remission: composition is forecast, expression is not, and why."
    found = predict(cohort_of([]), to="REM", n_genes=20, level=0.8, models=[])
    assert not len(found.expression) and len(found.composition)
    assert any("expression is not forecast: too few patients" in n for n in found.notes)
    assert found.best("share") in set(found.composition["model"])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 30),
    st.floats(0.05, 0.97),
    st.integers(0, 10**6),
)
def test_intervals_by_counting(n, level, seed):
    "Against a sort by hand; wider at a higher level; unbounded exactly where patients lack."
    rng = rng_for(seed, "interval")
    truth, held = rng.normal(size=(2, n, 2))
    fold = rng.integers(0, 3, n)
    by_fold = rng.normal(size=(3, 1, 2))
    low, high = interval(truth, held, fold, by_fold, level)
    assert (
        np.isinf(high).all() == (n < patients_needed(level)) == (expected_coverage(n, level) == 1)
    )
    assert expected_coverage(n, level) >= level - 1e-9
    wide = interval(truth, held, fold, by_fold, min(level + 0.02, 0.99))
    assert (wide[0] <= low).all() and (wide[1] >= high).all()
    if np.isinf(high).any():
        return
    rank = expected_coverage(n, level) * (n + 1)
    above = np.sort(by_fold[fold, 0] + np.abs(truth - held), axis=0)
    below = np.sort(by_fold[fold, 0] - np.abs(truth - held), axis=0)[::-1]
    assert np.allclose(high, above[round(rank) - 1]) and np.allclose(low, below[round(rank) - 1])
