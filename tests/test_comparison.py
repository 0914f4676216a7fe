"One table for every model: the same patients, steps by content, paired differences."

import json
import logging
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tools import ROOT, python_code

import longaml as la
from longaml.cli import main
from longaml.core import rng_for
from longaml.datasets.cohort import simulate_cohort
from longaml.datasets.writers import write_geo
from longaml.experiment.comparison_figures import METRIC, plot_comparison
from longaml.experiment.evaluation import (
    TASKS,
    baselines,
    compare,
    compared_models,
    comparison_lines,
    evaluate,
    run_comparison,
)
from longaml.experiment.recovery import call_recovery, driver_recovery
from longaml.experiment.run import run_cohort
from longaml.experiment.steps import cohort_hash
from longaml.experiment.store import Store
from longaml.models.contract import n_parameters
from longaml.models.rank_tokens import RankTokens
from longaml.pp.cohort import save_cohort
from longaml.pp.preprocessing import bags, normalize, timepoint_pairs
from longaml.tasks.forecast import evaluate_forecast
from longaml.tasks.timepoint import evaluate_timepoint

COLUMNS = "task contrast model patient metric value chance seconds parameters".split()
DIFFERENCES = (
    "task contrast metric model against role patients difference low high p_value q_value result"
).split()
MODELS = {t: compared_models(t)[t] for t in TASKS}
QUICK = dict(models="logistic,bayesian_ridge,ridge", tasks="timepoint,forecast")
FEW = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def adata():
    return simulate_cohort(
        "small",
        seed=2,
        n_patients=8,
        n_genes=150,
        n_cells=200,
        n_drivers=8,
        timepoints=("DX", "REL"),
    )


@pytest.fixture(scope="module")
def cohort(adata, tmp_path_factory):
    "The same cohort in the GEO layout."
    out = tmp_path_factory.mktemp("simulated") / "cohort"
    write_geo(adata, out)
    return out


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory):
    "(folder, what run_comparison gave) of a whole comparison that nothing interrupted."
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, run_comparison(cohort, out, **QUICK)


def files(out):
    "Every file as bytes; of `.lock` there is nothing to compare."
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in Path(out).rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def untimed(out):
    return pd.read_csv(out / "comparison.csv").drop(columns="seconds").to_csv()


# ---- what is left behind


def test_files_and_columns(finished, cohort):
    out, result = finished
    names = {k for k in files(out) if not k.startswith("steps/")}
    assert names == {
        "comparison.csv",
        "differences.csv",
        "figures/comparison-timepoint.png",
        "figures/comparison-forecast.png",
        "run.json",
        "steps.json",
        "timings.json",
    }
    table, differences = pd.read_csv(out / "comparison.csv"), pd.read_csv(out / "differences.csv")
    assert list(table.columns) == COLUMNS and list(differences.columns) == DIFFERENCES
    assert set(zip(table["task"], table["model"])) == {
        (t, m) for t, ms in compared_models(QUICK["tasks"], QUICK["models"]).items() for m in ms
    }
    assert len(list((out / "steps").rglob("*.npz"))) == len(
        table.drop_duplicates(["task", "contrast", "model"])
    )
    m = json.loads((out / "run.json").read_text())
    assert (m["command"], m["status"], m["inputs"][0]["path"]) == (
        "compare",
        "complete",
        str(cohort),
    ) and "\n".join(m["results"]["summary"]) == result["summary"]


def test_every_model_is_scored_on_the_same_patients(finished):
    t = finished[1]["comparison"]
    for _, rows in t[t["metric"].isin(METRIC.values())].groupby(["task", "contrast"]):
        assert rows.groupby("model")["patient"].agg(lambda p: tuple(sorted(p))).nunique() == 1
        assert not rows.duplicated(["model", "patient"]).any()
    baselines = t[
        (t["metric"] == "balanced_accuracy") & t["model"].isin(["majority", "patient_cell_type"])
    ]
    assert np.allclose(baselines["value"], baselines["chance"])


def test_the_values_are_those_of_the_other_commands(adata, finished):
    """The same folds, bags and genes as la.tasks.timepoint.evaluate_timepoint and
    la.tasks.forecast.evaluate_forecast."""
    t, bagged = finished[1]["comparison"], bags(adata)
    want = evaluate_timepoint(bagged, ("DX", "REL"), models=["logistic", "bayesian_ridge"])
    have = t[t["task"] == "timepoint"]
    key = ["contrast", "model", "patient", "metric"]
    pd.testing.assert_series_equal(
        have.set_index(key)["value"].sort_index(), want.set_index(key)["value"].sort_index()
    )
    want = evaluate_forecast(bagged, "REL", networks=()).evaluation
    have = t[t["task"] == "forecast"]
    np.testing.assert_allclose(
        have.set_index(key)["value"].sort_index(),
        want.set_index(key)["value"].sort_index(),
        atol=1e-5,
    )


def test_the_summary_says_what_the_tables_hold(finished):
    t, d, said = finished[1]["comparison"], finished[1]["differences"], finished[1]["summary"]
    acc = t[(t["metric"] == "balanced_accuracy") & (t["model"] == "logistic")]["value"]
    assert (
        f"  {'logistic':<20} {acc.mean():.2f}  (patients: {acc.min():.2f} to {acc.max():.2f})"
        in said
    )
    for r in d.itertuples():
        assert (
            f"{r.model} {r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}] q {r.q_value:.2g}" in said
            and f" {r.against}, the {r.role}: " in said
        )
    assert "Benjamini and Hochberg" in said and "longaml perturb" in said


# ---- interrupted, repeated, with more models


def test_repeated_gives_the_same_bytes(finished, cohort):
    before = files(finished[0])
    run_comparison(cohort, finished[0], **QUICK)
    assert files(finished[0]) == before


KILLED = """
import os, signal, sys
from longaml.experiment.evaluation import run_comparison
cohort, out, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
moved, move = [], os.replace
def replace(a, b):
    if str(b).endswith(".npz"): moved.append(b)
    if len(moved) == n: os.kill(os.getpid(), signal.SIGKILL)
    move(a, b)
os.replace = replace
run_comparison(cohort, out, models="logistic,bayesian_ridge,ridge", tasks="timepoint,forecast")
"""


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 6])
def test_killed_and_repeated(n, finished, cohort, tmp_path):
    """SIGKILL while the n-th piece is put in its place: those before are kept with their seconds,
    and the table is that of an uninterrupted call."""
    out = tmp_path / "out"
    killed = python_code(KILLED, cohort, out, n, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = {
        k: v for k, v in files(out).items() if k.startswith("steps/") and not k.endswith(".part")
    }
    assert (
        len(left) == n - 1
        and not (out / "comparison.csv").exists()
        and json.loads((out / "run.json").read_text())["status"] == "running"
    )
    run_comparison(cohort, out, **QUICK)
    assert (
        untimed(out) == untimed(finished[0])
        and (out / "differences.csv").read_bytes() == (finished[0] / "differences.csv").read_bytes()
    )
    again = files(out)
    assert left.items() <= again.items() and not [
        k for k in again if k.endswith(".part")
    ]  # what was measured before, seconds too
    run_comparison(cohort, out, **QUICK)
    assert files(out) == again


def test_one_model_more_computes_that_one(adata, tmp_path):
    keep = Store(tmp_path)
    first = evaluate(adata, models="logistic", tasks="timepoint", out=keep)
    assert keep.computed == 4
    more = evaluate(adata, models="logistic,nmf", tasks="timepoint", out=keep)
    assert keep.computed == 5
    assert more[more["model"] != "nmf"].reset_index(drop=True).to_csv() == first.to_csv()
    for other in (dict(seed=1), dict(n_folds=4), dict(n_genes=100)):
        evaluate(adata, models="logistic", tasks="timepoint", out=keep, **other)
    assert keep.computed == 5 + 3 * 4


def test_an_embedding_is_compared_in_one_call(adata, tmp_path, capsys):
    "Genes keep their numbers and steps; only the embedding is computed anew where it changes."
    given = adata.copy()
    given.obsm["X_own"] = rng_for(0, "vectors").normal(size=(given.n_obs, 3))
    save_cohort(given, tmp_path / "c.h5ad")
    how = ["compare", str(tmp_path / "c.h5ad"), "--models", "logistic", "--tasks", "timepoint"]
    on = ["--use-rep", "X_own", "--no-figures", "--out", str(tmp_path / "out")]
    assert main([*how, *on]) == 0
    said = capsys.readouterr().out
    assert "transductive\n" in said and "note: X_own is transductive" in said
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    models = ["majority", "patient_cell_type", "technical", "logistic", "fold_pca"]
    assert list(table["model"].unique()) == [*models, "logistic_on_X_own"]
    for name in ("comparison", "differences"):
        flagged = pd.read_csv(tmp_path / "out" / f"{name}.csv").query("transductive")
        assert set(flagged["model"]) == {"logistic_on_X_own"}
    store = Store(tmp_path / "store")
    quick = dict(models="logistic", tasks="timepoint", out=store)
    plain = evaluate(given, **quick)
    computed = store.computed
    both = evaluate(given, **quick, use_rep="X_own")
    assert store.computed == computed + 2  # fold_pca and the embedding
    same = both["model"].isin(plain["model"])
    columns = list(plain.columns)
    pd.testing.assert_frame_equal(both.loc[same, columns].reset_index(drop=True), plain)
    given.obsm["X_own"][0] += 1
    evaluate(given, **quick, use_rep="X_own")
    assert store.computed == computed + 3


@pytest.mark.parametrize(
    "args, said",
    [
        (["--use-rep", "X_pca"], "key of obsm is 'X_pca'; expected one of: X_bad"),
        (["--use-rep", "X_bad"], "X_bad cannot be used: 1 of"),
        (["--use-rep", "X_bad", "--tasks", "forecast"], "Add timepoint to the tasks"),
    ],
)
def test_embeddings_that_cannot_be_compared(adata, tmp_path, capsys, args, said):
    given = adata.copy()
    given.obsm["X_bad"] = np.zeros((given.n_obs, 2))
    given.obsm["X_bad"][5, 1] = np.inf
    save_cohort(given, tmp_path / "c.h5ad")
    out = ["--models", "logistic,ridge", "--out", str(tmp_path / "no")]
    assert main(["compare", str(tmp_path / "c.h5ad"), *out, *args]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_another_cohort_computes_everything(adata, tmp_path):
    keep, other = Store(tmp_path), adata.copy()
    other.X.data[0] += 1
    for a in (adata, other, adata):
        evaluate(a, models="majority", tasks="timepoint", out=keep)
    assert keep.computed == 6


def test_a_damaged_piece_is_computed_again(adata, tmp_path, caplog):
    first = evaluate(adata, models="logistic", tasks="timepoint", out=tmp_path)
    whole = max(tmp_path.rglob("*.npz"), key=lambda p: p.stat().st_mtime)
    whole.write_bytes(whole.read_bytes()[:60])
    with caplog.at_level(logging.WARNING, "longaml"):
        again = evaluate(adata, models="logistic", tasks="timepoint", out=tmp_path)
    assert "damaged" in caplog.text and again.drop(columns="seconds").equals(
        first.drop(columns="seconds")
    )


def test_the_hash_of_a_cohort(adata):
    h = cohort_hash(adata)
    assert cohort_hash(normalize(adata)) == h  # counts are what is read
    shuffled = adata.copy()
    shuffled.X = shuffled.X[:, ::-1][:, ::-1]
    assert cohort_hash(shuffled) == h
    for key in ("patient", "sample", "cell_type"):
        other = adata.copy()
        other.obs[key] = (
            other.obs[key]
            .astype(str)
            .where(np.arange(other.n_obs) > 0, "someone else")
            .astype("category")
        )
        assert cohort_hash(other) != h
    renamed = adata.copy()
    renamed.var_names = ["new", *adata.var_names[1:]]
    assert (
        len(
            {
                h,
                cohort_hash(renamed),
                cohort_hash(adata[::-1].copy()),
                cohort_hash(adata[:, ::-1].copy()),
            }
        )
        == 4
    )


def test_run_and_compare_share_steps(cohort, finished, tmp_path):
    """In one folder, or with one store: what one has computed the other finds; each keeps its
    tables."""
    out = tmp_path / "out"
    run = {"models": ["logistic"], "nulls": 2, "store": tmp_path / "store"}
    run_cohort(cohort, out, **run)
    alone = files(out)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.npz")}
    result = run_comparison(
        cohort, out, models="logistic", tasks="timepoint", store=tmp_path / "store"
    )
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.npz")}
    assert before == after  # nothing was computed
    theirs = finished[1]["comparison"].query("task == 'timepoint' and model != 'bayesian_ridge'")
    have = result["comparison"].drop(columns="seconds").reset_index(drop=True)
    assert have.equals(theirs.drop(columns="seconds").reset_index(drop=True))
    changed = {k for k, v in alone.items() if files(out)[k] != v}
    assert changed <= {"steps.json", "timings.json"}
    assert json.loads((out / "compare.json").read_text())["command"] == "compare"
    assert json.loads((out / "run.json").read_text())["command"] == "run"
    again = tmp_path / "again"
    run_cohort(cohort, again, **run)
    tables = [k for k in alone if k.endswith((".csv", ".png"))]
    assert {k: files(again)[k] for k in tables} == {k: alone[k] for k in tables}
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.npz")}


def test_another_run_is_not_overwritten(cohort, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(ValueError, match="notes.txt but no run.json"):
        run_comparison(cohort, tmp_path / "mine")
    with pytest.raises(ValueError, match="Did you mean 'logistic'"):
        run_comparison(cohort, tmp_path / "new", models="logistics")
    with pytest.raises(FileNotFoundError):
        run_comparison(cohort / "nowhere", tmp_path / "new")
    assert files(tmp_path) == before and not (tmp_path / "new").exists()


# ---- which tasks there are


def test_what_cannot_be_evaluated_is_listed(adata, caplog):
    five = adata[adata.obs["patient"].isin([f"AML{i}" for i in range(1, 6)])].copy()
    with caplog.at_level(logging.WARNING, "longaml"):
        t = evaluate(five, models="logistic,ridge", tasks=TASKS)
    assert (
        set(t["task"]) == {"timepoint"}
        and len(t.attrs["notes"]) == 2
        and all(n in caplog.text for n in t.attrs["notes"])
    )
    assert any("5 patients" in n for n in t.attrs["notes"]) and any(
        "no timepoint in between" in n for n in t.attrs["notes"]
    )
    d = compare(t)
    assert (
        d["result"].eq("not significantly different").all()
        and d["patients"].eq(5).all()
        and "not significantly different from" in "\n".join(comparison_lines(t, d))
    )
    two = adata[adata.obs["patient"].isin(["AML1", "AML2"])].copy()
    with pytest.raises(ValueError, match="nothing can be evaluated"):
        evaluate(two)


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(models="paired_de"), "expected one of"),
        (dict(tasks=()), "no task"),
        (dict(tasks="timepoints"), "Did you mean 'timepoint'"),
        (dict(models="nmf", tasks="impute"), "Add that task"),
        (dict(device="gpu"), "device"),
    ],
)
def test_wrong_arguments(adata, given, said):
    with pytest.raises(ValueError, match=said):
        evaluate(adata, **given)


def test_baselines_are_always_there():
    for task in TASKS:
        chosen = compared_models(task, [MODELS[task][-1]])[task]
        assert set(baselines(task)) <= set(chosen) and MODELS[task][:3] == list(baselines(task))


# ---- paired differences


def made(values, task="timepoint"):
    "A table of one contrast from {model: scores}."
    metric = METRIC[task]
    return pd.DataFrame(
        [
            (task, "b_vs_a", m, f"P{i}", metric, x, 0.5)
            for m, v in values.items()
            for i, x in enumerate(v)
        ],
        columns=COLUMNS[:7],
    )


def test_differences_by_hand():
    rng = np.random.default_rng(1)
    v = {
        "majority": np.full(9, 0.5),
        "technical": rng.uniform(0.5, 0.55, 9),
        "logistic": rng.uniform(0.8, 0.9, 9),
        "nmf": rng.uniform(0.2, 0.3, 9),
        "transformer": rng.uniform(0.6, 0.9, 9),
    }
    d = compare(made(v)).set_index(["model", "against"])
    assert set(d.index) == {
        ("logistic", "technical"),
        ("nmf", "technical"),
        ("transformer", "technical"),
        ("nmf", "logistic"),
        ("transformer", "logistic"),
    }
    for (m, other), r in d.iterrows():
        change = v[m] - v[other]
        far = np.abs(change).max()
        used = np.r_[change, far, -far]  # nine patients, each a fold, and two that cancel
        error = used.std(ddof=1) * np.sqrt((1 + 9 / 8) / 11)
        half = stats.t.ppf(0.975, 10) * error + abs(change.mean() - used.mean())
        assert np.isclose(r["difference"], change.mean())
        assert np.allclose([r["low"], r["high"]], change.mean() + np.array([-half, half]))
        assert np.isclose(r["p_value"], 2 * stats.t.sf(abs(used.mean()) / error, 10))
    assert (
        d.loc[("nmf", "logistic"), "result"] == "worse"
        and d.loc[("logistic", "technical"), "result"] == "better"
    )
    for _, part in d.groupby(level=1):
        np.testing.assert_allclose(part["q_value"], stats.false_discovery_control(part["p_value"]))


@given(st.integers(0, 10**6))
@FEW
def test_the_order_of_rows_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    t = made(
        {m: rng.uniform(size=7).round(1) for m in (*baselines("timepoint"), "logistic", "nmf")}
    )
    a, b = compare(t), compare(t.sample(frac=1, random_state=seed % 2**31))
    key = ["model", "against"]
    pd.testing.assert_frame_equal(
        a.sort_values(key, ignore_index=True), b.sort_values(key, ignore_index=True)
    )


def test_patients_that_only_one_model_has_are_left_out():
    t = made({"majority": [0.5] * 8, "logistic": np.linspace(0.5, 0.9, 8)})
    t = t[~((t["model"] == "logistic") & (t["patient"] == "P7"))]
    d = compare(t).iloc[0]
    assert d["patients"] == 7 and np.isclose(
        d["difference"], np.linspace(0.5, 0.9, 8)[:7].mean() - 0.5
    )


def test_forecasts_are_compared_with_baseline_expression():
    rng = np.random.default_rng(0)
    t = made(
        {
            "no_change": rng.normal(-0.3, 0.01, 9),
            "mean_shift": rng.normal(-0.1, 0.01, 9),
            "baseline_expression": np.zeros(9),
            "ridge": rng.normal(0.1, 0.01, 9),
        },
        "forecast",
    )
    d = compare(t)
    assert d[["model", "against", "role", "result"]].to_numpy().tolist() == [
        ["ridge", "baseline_expression", "best baseline and regression", "better"]
    ]
    t.loc[t["model"] == "no_change", "value"] = 0.05
    assert compare(t)["against"].tolist() == ["no_change", "baseline_expression"]


# ---- rank tokens


def test_rank_tokens_read_the_order_of_genes_above_the_mean(adata):
    sets = timepoint_pairs(bags(adata), ("DX", "REL"))
    model = RankTokens(k=20).fit(sets, seed=3)
    p = model.predict_proba(sets)
    assert p.shape == (*sets.mask.shape, 2) and np.allclose(p.sum(-1), 1)
    np.testing.assert_array_equal(p, RankTokens(k=20).fit(sets, seed=3).predict_proba(sets))
    np.testing.assert_allclose(
        model.predict_proba(replace(sets, x=3 * sets.x)), p, atol=1e-6
    )  # how far does not matter
    tokens = model._tokens(sets, sets.mask).tokens
    assert tokens.shape == (sets.mask.sum(), 21) and n_parameters(model) == sum(
        w.numel() for w in model.fitted.model.parameters()
    )
    assert set(model.fitted.seen) == set(sets.patients)


def test_rank_tokens_of_missing_bags_and_silent_genes(adata):
    three = simulate_cohort(
        "small", seed=3, n_patients=9, n_genes=150, n_drivers=8, missing=0.0, composition=0.0
    )
    sets = timepoint_pairs(bags(three), ("DX", "REM", "REL"))
    x, mask, y = sets.x.copy(), sets.mask.copy(), sets.y.copy()
    x[..., 0] = 0
    mask[0, 1] = False
    y[0, 1] = -1
    sets = replace(sets, x=x, mask=mask, y=y)
    p = RankTokens(k=10).fit(sets).predict_proba(sets)
    assert np.isfinite(p).all() and np.allclose(p[0, 1], 1 / 3)


# ---- drivers and figures


def test_recovery_compared_with_chance_and_abundance():
    t = driver_recovery([5], "small", "paired_de,logistic,network_degree", n_genes=100)
    assert set(t["method"]) == {"paired_de", "logistic", "network_degree", "abundance"} and set(
        t["kind"]
    ) == {"marginal", "interaction"}
    assert np.allclose(t["chance"], 12 / 400) and t["average_precision"].between(0, 1).all()
    mean = t.set_index(["method", "kind"])["average_precision"]
    assert mean["paired_de", "marginal"] > 10 * mean["abundance", "marginal"]


def test_calls_in_a_cohort_without_drivers_are_all_false():
    t = call_recovery([2001], "null", "paired_de", halves=2)
    assert (t["planted"] == 0).all() and (t["false_share"] == (t["called"] > 0)).all()


def test_the_figure_draws_every_task(finished):
    t = finished[1]["comparison"]
    for task in ("timepoint", "forecast"):
        fig = plot_comparison(t, task=task)
        assert [a.get_text() for a in fig.axes[0].get_yticklabels()][0] in MODELS[task] and len(
            fig.axes
        ) == t[t["task"] == task]["contrast"].nunique()
    with pytest.raises(ValueError, match="skill"):
        plot_comparison(t, task="forecast", metric="auroc")
    with pytest.raises(KeyError, match="la.experiment.evaluate"):
        plot_comparison(t.drop(columns="chance"))


# ---- real data, every model


@pytest.mark.slow
def test_glioblastoma_by_one_call(shared_data, tmp_path):
    """Five patients, control and panobinostat: every model of the timepoint task; the output says
    that there are too few patients for a forecast or a test."""
    read = dict(
        patient_key="patient_id", timepoint_key="condition", timepoints=["ctrl", "panobinostat"]
    )
    result = run_comparison(
        shared_data / "glioblastoma_panobinostat.h5ad", tmp_path / "out", read=read
    )
    t, d = result["comparison"], result["differences"]
    acc = t[t["metric"] == "balanced_accuracy"].groupby("model")["value"].agg(["mean", "count"])
    assert set(acc.index) == set(MODELS["timepoint"]) and (acc["count"] == 5).all()
    assert (
        acc.loc["logistic", "mean"] > 0.9 and acc.loc["majority", "mean"] == 0.5
    )  # a drug that changes everything
    assert (
        d["result"].eq("not significantly different").all()  # five patients show nothing
        and "forecast, panobinostat: not evaluated (5 patients" in result["summary"]
    )
    before = files(tmp_path / "out")
    for p in sorted((tmp_path / "out" / "steps").rglob("*.npz"))[::3]:
        p.unlink()
    table = untimed(tmp_path / "out")
    run_comparison(shared_data / "glioblastoma_panobinostat.h5ad", tmp_path / "out", read=read)
    assert (
        untimed(tmp_path / "out") == table
        and (tmp_path / "out" / "differences.csv").read_bytes() == before["differences.csv"]
    )


@pytest.mark.slow
def test_everything_on_a_simulated_cohort(tmp_path):
    write_geo(simulate_cohort("small", seed=1000, n_patients=12), tmp_path / "cohort")
    result = run_comparison(tmp_path / "cohort", tmp_path / "out", tasks=TASKS)
    t = result["comparison"]
    for task in TASKS:
        assert set(t[t["task"] == task]["model"]) == set(MODELS[task])
    assert t["value"].notna().all() and (t["seconds"] >= 0).all()
    shutil.rmtree(tmp_path / "out" / "figures")
    again = files(tmp_path / "out")
    run_comparison(tmp_path / "cohort", tmp_path / "out", tasks=TASKS)
    assert again.items() <= files(tmp_path / "out").items()


def test_nothing_is_computed_twice(tmp_path, monkeypatch):
    "Cells are summed to bags and to pseudobulks; changes and explanations are made once."
    calls = Counter()

    def count(module, name):
        plain = getattr(module, name)

        def work(*args, **kwargs):
            calls[name] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, name, work)

    count(la.pp.preprocessing, "_sum_rows")
    count(la.tl.normalization, "fold_changes")
    count(la.tl.nuisances.Nuisances, "__init__")
    count(la.tl.gene_tests, "cell_type_table")
    cohort = simulate_cohort("small", seed=2, n_patients=9, n_genes=100, n_cells=300, n_drivers=4)
    save_cohort(cohort, tmp_path / "c.h5ad")
    run_cohort(
        tmp_path / "c.h5ad", tmp_path / "out", models="logistic,paired_de", nulls=1, halves=2
    )
    assert calls.pop("cell_type_table") == cohort.obs["cell_type"].nunique()
    contrasts = pd.read_csv(tmp_path / "out" / "ranking.csv")["contrast"].nunique()
    assert contrasts == 3
    assert calls == {"_sum_rows": 2, "fold_changes": contrasts, "__init__": 1}
