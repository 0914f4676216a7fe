"""Forecast and impute: nothing of a held-out patient leaks into its prediction, baselines are
what they say, and the command fills its tables.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import longaml as la
from longaml.cli import main
from longaml.core import rng_for
from longaml.models.forecasters import row_weights
from longaml.models.training import Training
from longaml.tasks.earlier_genes import exchanged

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 10**6)
QUICK = Training(epochs=2, device="cpu")


def made(seed=0, patients=8, rows=3, times=3, genes=12, task="forecast"):
    """Forecasts by hand: two cell types, some earlier visits missing, the last (forecast) or the
    middle (impute) timepoint as the target.
    """
    r = rng_for(seed, "made")
    n = patients * rows
    who = np.repeat([f"P{i}" for i in range(patients)], rows)
    at = times - 1 if task == "forecast" else times // 2
    mask = r.random((n, times)) < 0.7
    mask[:, 0 if at else 1] = True
    mask[:, at] = False
    x = np.where(
        mask[..., None],
        r.normal(size=(n, times, genes)) + r.normal(size=(patients, 1, genes)).repeat(rows, 0),
        0,
    ).astype(np.float32)
    own = x.sum(1) / mask.sum(1)[:, None]
    change = -0.5 * own + r.normal(size=(n, genes)) + own[:, :1] * (np.arange(genes) > 8)
    names = [f"T{t}" for t in range(times)]
    return la.models.forecasters.Forecasts(
        x,
        mask,
        own,
        change,
        np.where(mask[:, 0], "T0", "T1"),
        who,
        np.array(["A", "B"])[r.integers(0, 2, n)],
        names,
        [f"G{i}" for i in range(genes)],
        at,
        {"task": task, "target": names[at]},
    )


MODELS = {
    "no_change": la.models.forecasters.NoChange,
    "mean_shift": la.models.forecasters.MeanShift,
    "baseline_expression": la.models.forecasters.BaselineExpression,
    "ridge": la.models.forecasters.Ridge,
    **{
        n: (
            lambda n=n: la.models.forecasters.Network(
                n, how=QUICK, width=4, **({"heads": 2} if n == "transformer" else {})
            )
        )
        for n in ("transformer", "lstm", "bilstm")
    },
}
SMALL = st.builds(
    made,
    SEEDS,
    patients=st.integers(8, 11),
    rows=st.integers(1, 3),
    times=st.integers(3, 4),
    task=st.sampled_from(["forecast", "impute"]),
)


@pytest.mark.parametrize("name", MODELS)
@settings(FEW, max_examples=5)
@given(SMALL, SEEDS)
def test_a_held_out_target_is_not_seen(name, f, seed):
    "Whatever the change of a patient was, its own prediction stays the same to the last bit."
    folds = la.tasks.forecast.forecast_folds(f.patients)
    held = np.isin(f.patients, folds[0])
    other = replace(
        f, change=np.where(held[:, None], 100 * rng_for(seed).normal(size=f.change.shape), f.change)
    )
    a, b = (
        la.tasks.forecast.held_out_changes(MODELS[name], g, folds[:1])[held] for g in (f, other)
    )
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["transformer", "lstm", "bilstm"])
@FEW
@given(SMALL, SEEDS)
def test_what_stands_in_a_missing_visit_does_not_matter(name, f, seed):
    noise = np.where(f.mask[..., None], f.x, 50 * rng_for(seed).normal(size=f.x.shape)).astype(
        np.float32
    )
    model = MODELS[name]().fit(f, seed=1)
    model.shrinkage = 1.0  # so that there is something to compare
    np.testing.assert_allclose(model.predict(replace(f, x=noise)), model.predict(f), atol=1e-5)


@FEW
@given(SMALL)
def test_baseline_expression_is_least_squares_within_cell_type(f):
    "Against weighted least squares with an intercept for each cell type and origin, and one slope."
    w = row_weights(f.patients)
    keys = pd.get_dummies(pd.Series(f.cell_types) + f.origin).to_numpy(float)
    got = la.models.forecasters.BaselineExpression().fit(f).predict(f)
    for g in range(0, len(f.genes), 5):
        z = np.c_[keys, f.own[:, g]] * np.sqrt(w)[:, None]
        b = np.linalg.lstsq(z, f.change[:, g] * np.sqrt(w), rcond=None)[0]
        np.testing.assert_allclose(got[:, g], np.c_[keys, f.own[:, g]] @ b, atol=1e-3)


@FEW
@given(SMALL)
def test_patients_count_the_same(f):
    "A patient whose rows are doubled changes no fit."
    twice = f.take(np.r_[np.arange(len(f)), np.flatnonzero(f.patients == f.patients[0])])
    for make in (la.models.forecasters.MeanShift, la.models.forecasters.BaselineExpression):
        np.testing.assert_allclose(
            make().fit(twice).predict(f), make().fit(f).predict(f), atol=1e-8
        )


@FEW
@given(SMALL, SEEDS)
def test_contributions_of_ridge_add_up(f, seed):
    model = la.models.forecasters.Ridge().fit(f, seed=seed)
    assert (np.diag(model.coef) == 0).all() and 0 <= model.shrinkage <= 1
    r = f.change - model.own.predict(f)
    left = np.linalg.norm(
        r, axis=1
    )  # a row that the baseline expression explains exactly leaves nothing to agree with
    agree = np.divide((model.cross(f) * r).sum(1), left, out=np.zeros(len(r)), where=left > 0)
    np.testing.assert_allclose(
        la.tasks.earlier_genes.cross_contributions(model, f).sum(1), agree, atol=1e-6
    )


@FEW
@given(SMALL, SEEDS)
def test_an_exchange_moves_inputs_of_one_patient_to_one_other(f, seed):
    g = exchanged(f, seed)
    np.testing.assert_array_equal(g.change, f.change)
    givers = {}
    for i in range(len(g)):
        same = np.flatnonzero((f.x == g.x[i]).all((1, 2)))
        givers.setdefault(f.patients[i], set()).update(f.patients[same])
    assert all(len(v) == 1 for v in givers.values()) and len(
        {next(iter(v)) for v in givers.values()}
    ) == len(givers)


def test_the_exchange_test_is_uniform_without_signal():
    """Random cross-gene parts that know nothing: p-values of 300 cohorts are spread evenly
    (Kolmogorov-Smirnov).
    """
    from scipy.stats import kstest

    out = []
    for seed in range(300):
        f = made(seed, patients=12, rows=2)
        own = np.zeros_like(f.change)
        out.append(
            la.tasks.forecast.cross_gene_test(
                f,
                own,
                rng_for(seed, "part").normal(size=own.shape),
                la.tasks.forecast.forecast_folds(f.patients),
                n=99,
                seed=seed,
            ).p_value
        )
    assert kstest(np.array(out) - rng_for(0).random(300) / 100, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", ["lstm", "bilstm"])
def test_networks_of_the_timepoint_task_are_at_chance_without_signal(name):
    "Sixteen shufflings of whole samples, two folds each, as one fit."
    sets = la.pp.timepoint_pairs(
        la.pp.bags(la.datasets.simulate_cohort("null", seed=1, n_patients=12), max_bags=2),
        ("DX", "REL"),
    )
    names = np.unique(sets.patients)
    folds = la.pp.patient_folds(sets.patients, n_folds=2)
    p = []
    labels = [
        np.where(
            (rng_for(s, "swap").random(len(names)) < 0.5)[np.searchsorted(names, sets.patients)][
                :, None
            ],
            1 - sets.y,
            sets.y,
        )
        for s in range(16)
    ]
    fits = iter(
        la.models.stacking.fit_many(
            lambda: la.models.build(name, sets),
            sets,
            [
                la.models.training.Job(tuple(q for q in names if q not in f), y=y)
                for y in labels
                for f in folds
            ],
            epochs=10,
            device="cpu",
        )
    )
    for y in labels:
        proba = np.zeros((*sets.mask.shape, 2))
        for f in folds:
            proba[np.isin(sets.patients, f)] = next(fits).predict_proba(sets.of_patients(f))
        p.append(la.models.baselines.patient_accuracy(replace(sets, y=y), proba).mean())
    assert abs(np.mean(p) - 0.5) < 4 * np.std(p) / 4


# ---- the command


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = tmp_path_factory.mktemp("forecast") / "cohort.h5ad"
    la.pp.save_cohort(
        la.datasets.simulate_cohort(
            "small", seed=5, n_patients=9, n_genes=200, n_drivers=6, n_cells=150
        ),
        path,
    )
    return path


def command(cohort, out, *more):
    return main(
        [
            str(a)
            for a in (
                "run",
                cohort,
                "--out",
                out,
                "--models",
                "lstm",
                "--task",
                "forecast,impute",
                "--nulls",
                2,
                "--no-report",
                *more,
            )
        ]
    )


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("forecast") / "run"
    torch.manual_seed(3)
    assert command(cohort, out) == 0
    return out


def test_tables_of_both_tasks(run):
    e, t, g = (
        pd.read_csv(run / f"{n}.csv") for n in ("evaluation", "forecast_tests", "earlier_genes")
    )
    assert list(e.columns) == "task contrast model patient metric value chance".split()
    assert set(map(tuple, e[["task", "contrast"]].drop_duplicates().to_numpy())) == {
        ("forecast", "REL"),
        ("impute", "REM"),
    }
    assert set(e["model"]) == {
        "no_change",
        "mean_shift",
        "baseline_expression",
        "ridge",
        "lstm",
    } and set(e["metric"]) == {
        "skill",
        "skill_over_mean_shift",
        "correlation",
        "correlation_beyond_mean",
        "direction",
    }
    assert (
        e.query("model == 'baseline_expression' and metric == 'skill'")["value"] == 0
    ).all() and e["value"].notna().all()
    assert (
        set(t["model"]) == {"ridge", "lstm"} and t["p_value"].between(0, 1, inclusive="right").all()
    )
    assert set(g["contrast"]) == {"forecast_REL", "impute_REM"} and set(g["model"]) == {
        "partial_correlation",
        "ridge",
        "lstm",
    }
    assert (
        g.groupby(["model", "contrast"])["rank"].max() == g.groupby(["model", "contrast"]).size()
    ).all()


def test_summary_and_figures(run):
    summary = "\n".join(json.loads((run / "run.json").read_text())["results"]["summary"])
    for part in (
        "forecast, change to REL: skill over regression on baseline expression",
        "impute, REM from the other timepoints",
        "its cross-gene part",
        "earlier genes at q < 0.1",
    ):
        assert part in summary
    assert {
        f"{t}-{k}.png" for t in ("forecast-REL", "impute-REM") for k in ("skill", "patient")
    } <= {p.name for p in (run / "figures").iterdir()}


def test_the_same_run_again(run, cohort, tmp_path):
    torch.manual_seed(4)
    assert command(cohort, tmp_path / "again") == 0
    for name in ("evaluation.csv", "forecast_tests.csv", "earlier_genes.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_a_task_that_is_not_there(cohort, tmp_path, capsys):
    assert (
        main(["run", str(cohort), "--out", str(tmp_path / "out"), "--task", "state,forcast"]) == 2
    )
    assert "Did you mean 'forecast'?" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_failed_fit_is_not_taken_for_too_few_patients(monkeypatch):
    "Too few patients are a line in the summary; a loss that becomes infinite ends the run."
    from longaml.experiment import forecast_steps
    from longaml.experiment.steps import CohortSteps, Fitting

    def fails(*a, **k):
        raise ValueError("the loss became nan in epoch 1")

    monkeypatch.setattr(forecast_steps, "find_change", fails)

    def go(n):
        cohort = la.datasets.simulate_cohort(
            "two_timepoints", seed=0, n_patients=n, n_genes=200, n_drivers=6, n_cells=80
        )
        steps = CohortSteps(cohort, Fitting(), None)
        return forecast_steps.find_ordered(["forecast"], steps, [], None, nulls=1)

    assert "at least 6 are needed" in go(3).lines[0]
    with pytest.raises(ValueError, match="loss became nan"):
        go(8)


@pytest.mark.slow
def test_three_models_and_three_tasks(tmp_path):
    "The whole command, as the issue has it: the same tables and figures for every task."
    la.pp.save_cohort(
        la.datasets.simulate_cohort("small", seed=5, n_patients=12), tmp_path / "cohort.h5ad"
    )
    assert (
        main(
            [
                "run",
                str(tmp_path / "cohort.h5ad"),
                "--out",
                str(tmp_path / "run"),
                "--models",
                "transformer,lstm,bilstm",
                "--task",
                "timepoint,forecast,impute",
                "--nulls",
                "3",
                "--no-report",
            ]
        )
        == 0
    )
    e = pd.read_csv(tmp_path / "run" / "evaluation.csv")
    for task in ("timepoint", "forecast", "impute"):
        assert {"transformer", "lstm", "bilstm"} <= set(e.loc[e["task"] == task, "model"])
    assert {"transformer", "lstm", "bilstm"} == set(
        pd.read_csv(tmp_path / "run" / "ranking.csv")["model"]
    )
    names = {p.name for p in (tmp_path / "run" / "figures").iterdir()}
    assert {
        "forecast-REL-skill.png",
        "impute-REM-skill.png",
        "accuracy.png",
        "models-REL_vs_DX.png",
    } <= names
    assert {f"{m}-REL_vs_DX.pt" for m in ("transformer", "lstm", "bilstm")} <= {
        p.name for p in (tmp_path / "run" / "models").iterdir()
    }
