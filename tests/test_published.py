"The published protocol: whole runs on disk, batched and single fits, knockouts and the loop."

import inspect
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from tools import ROOT, python

import longaml as la
from longaml.core import rng_for
from longaml.experiment.store import checksum
from longaml.pp.cohort import save_cohort
from longaml.pp.reading import read_cohort
from longaml.published.networks import (
    PUBLISHED_MODELS,
    PublishedFit,
    fit_published,
    fresh_networks,
)
from longaml.published.protocol import published_knockouts
from longaml.published.run import run_published
from longaml.published.trajectories import Trajectories, trajectories

FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MODELS = ["transformer", "lstm", "bilstm"]
AUDIT = "model contrast check status value threshold text".split()


def files(out):
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and p.name != "timings.json"
    }


def step_file(out, name):
    "Where a run keeps the result of a step."
    return json.loads((out / "steps.json").read_text())[name]


def table(out, name):
    return pd.read_csv(out / name, keep_default_na=name != "coverage.csv")


@pytest.fixture(scope="module")
def simulated():
    return la.datasets.simulate_cohort("small", n_patients=9, n_genes=206, n_cells=60, seed=4)


@pytest.fixture(scope="module")
def cohort(simulated, tmp_path_factory):
    "A folder in the GEO layout, with missing visits."
    return la.datasets.write_geo(simulated, tmp_path_factory.mktemp("simulated") / "cohort")


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory):
    "A whole run: (its folder, what it returned)."
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, run_published(cohort, out, epochs=12)


def made(seed=0, patients=2, genes=60):
    "Trajectories by hand."
    r = rng_for(seed, "made")
    level = np.exp(r.normal(-1, 1.5, (patients, genes, 3)))
    x = (level - level.min(1, keepdims=True)) / np.ptp(level, axis=1)[:, None]
    return Trajectories(
        torch.as_tensor(x, dtype=torch.float32),
        torch.as_tensor(r.integers(0, 3, (patients, genes))),
        level.mean(2),
        [f"P{i}" for i in range(patients)],
        [f"G{i}" for i in range(genes)],
        ["DX", "REL", "REM"],
        pd.DataFrame(columns=["patient", "missing"]),
    )


# ---- what a run leaves behind


def complete(cohort):
    return sorted(
        p
        for p, t in read_cohort(cohort)
        .obs.groupby("patient", observed=True)["timepoint"]
        .nunique()
        .items()
        if t == 3
    )


def test_files(finished, cohort):
    out = finished[0]
    patients = complete(cohort)
    assert 3 <= len(patients) < 9
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [
            "accuracy.csv",
            "audit.csv",
            "coverage.csv",
            "evaluation.csv",
            "patients.csv",
            "ranking.csv",
            "figures",
            "run.json",
            "steps",
            "steps.json",
            "timings.json",
            *MODELS,
        ]
    )
    for m in MODELS:
        assert sorted(p.name for p in (out / m).iterdir()) == sorted(
            f"{p}_{what}"
            for p in patients
            for what in (
                "top_100_features.csv",
                "top_100_knockouts.csv",
                "training_metrics.csv",
                "evaluation_metrics.txt",
            )
        )
    assert not [p for p in files(out) if p.endswith(".part")] and not [
        p for p in out.rglob("*.csv") if b"\r" in p.read_bytes()
    ]
    for p in (out / "figures").glob("*.png"):
        image = Image.open(p).convert("L")
        assert min(image.size) > 150 and 0.005 < (np.asarray(image) < 250).mean() < 0.95, p.name
    assert {p.stem for p in (out / "figures").glob("*.png")} == {"audit", "accuracy", "importance"}


@pytest.mark.parametrize("model", MODELS)
def test_published_files(model, finished, simulated):
    out = finished[0] / model
    p = finished[1]["patients"]["patient"].iat[0]
    top, metrics, knock = (
        pd.read_csv(out / f"{p}_{k}.csv")
        for k in ("top_100_features", "training_metrics", "top_100_knockouts")
    )
    assert (
        list(top.columns) == ["Gene", "Importance"]
        and len(top) == 100
        and set(top["Gene"]) <= set(simulated.var_names)
        and top["Gene"].is_unique
        and top["Importance"].is_monotonic_decreasing
    )
    assert (
        list(metrics.columns) == ["loss", "accuracy", "val_loss", "val_accuracy"]
        and len(metrics) == 12
    )
    assert (
        metrics[["accuracy", "val_accuracy"]].stack().between(0, 1).all()
        and metrics[["loss", "val_loss"]].stack().between(0.7, 1.6).all()
    )
    assert (
        list(knock.columns)
        == ["Gene", "accuracy_drop", "f1_drop", "prediction_changed", "output_change"]
        and knock["output_change"].is_monotonic_decreasing
    )
    said = (out / f"{p}_evaluation_metrics.txt").read_text()
    accuracy = float(re.match(r"Accuracy: (\S+)\nClassification Report:\n", said)[1])
    confusion = np.array(re.findall(r"\d+", said.split("Confusion Matrix:\n")[1]), int).reshape(
        3, 3
    )
    assert (
        confusion.sum() == 31
        and np.isclose(np.trace(confusion) / 31, accuracy)
        and all(re.search(rf"^ +{v} .*\d\.\d\d", said, re.M) for v in ("DX", "REL", "REM"))
        and all(k in said for k in ("precision", "recall", "f1-score"))
    )
    one = finished[1]["patients"].set_index(["model", "patient"]).loc[(model, p)]
    assert np.isclose(one["accuracy"], accuracy)


def test_failed_checks(finished):
    "Chance level, one value, an input-independent output: in table, summary and manifest."
    out, result = finished
    a = table(out, "audit.csv")
    s = result["summary"]
    pooled = table(out, "accuracy.csv").set_index("model")
    assert (
        list(a.columns) == AUDIT
        and list(dict.fromkeys(a["model"])) == MODELS
        and (a["text"].str.len() > 10).all()
    )
    failed = {m: set(v.loc[v["status"] == "failed", "check"]) for m, v in a.groupby("model")}
    assert (
        "input-independent" in failed["transformer"]
        and "constant" in failed["lstm"] & failed["bilstm"]
        and "constant" not in failed["transformer"]
    )
    for m in MODELS:
        r = pooled.loc[m]
        assert (
            "chance level" in failed[m]
            and r["low"] <= 1 / 3 <= r["high"]
            and np.isclose(r["accuracy"], r["correct"] / r["genes"])
        )
        assert (
            f"{m}: accuracy {r['accuracy']:.3f} over {int(r['genes'])} held-out genes of "
            f"{int(r['patients'])} patients, 95% interval {r['low']:.3f} to {r['high']:.3f}; "
            f"chance 0.333" in s
        )
    for v in a[a["status"] == "failed"].itertuples():
        assert f"  failed check: {v.check} ({v.text})" in s
    m = json.loads((out / "run.json").read_text())
    assert (
        m["command"] == "published"
        and m["status"] == "complete"
        and m["params"]["models"] == MODELS
        and m["params"]["epochs"] == 12
        and "\n".join(m["results"]["summary"]) == s
    )


def test_tables(finished, cohort):
    out = finished[0]
    patients = complete(cohort)
    r, e, t, c = (table(out, f"{n}.csv") for n in ("ranking", "evaluation", "patients", "coverage"))
    assert (
        list(r.columns) == "model contrast gene rank score mean_expression".split()
        and (r.groupby("model")["rank"].max() == 206).all()
        and set(r["contrast"]) == {"REL_vs_DX"}
    )
    assert r.groupby("model")["score"].nunique().gt(1).to_dict() == {
        "bilstm": False,
        "lstm": False,
        "transformer": True,
    }
    assert (
        list(e.columns) == "task contrast model patient metric value chance".split()
        and set(e["task"]) == {"published"}
        and np.allclose(e["chance"], 1 / 3)
        and len(e) == 3 * len(patients)
    )
    assert (
        t.query("model == 'transformer'")["input_change"].eq(0).all()
        and t.query("model != 'transformer'")["input_change"].gt(1e-3).all()
    )
    assert (
        t.query("model != 'transformer'")["distinct_importances"].eq(1).all()
        and t.query("model == 'transformer'")["spearman_with_expression"].abs().max() > 0.5
    )
    assert (
        sorted(c.loc[c["used"].map(str) == "True", "patient"]) == patients
        and c.loc[c["used"].map(str) == "False", "missing"].isin(["DX", "REM", "REL"]).all()
        and len(c) == 9
    )


def test_a_number_by_hand(finished, cohort):
    "The Transformer's importance, from the stored weights and the cells."
    out = finished[0]
    a = read_cohort(cohort)
    p = complete(cohort)[0]
    means = [
        np.asarray(
            a[((a.obs["patient"] == p) & (a.obs["timepoint"] == t)).to_numpy()].X.todense(), float
        ).mean(0)
        for t in ("DX", "REL", "REM")
    ]
    x = torch.as_tensor(
        np.stack([(m - m.min()) / np.ptp(m) for m in means], 1), dtype=torch.float32
    )
    with np.load(out / step_file(out, "fit/transformer")) as z:
        weights = next(z[k] for k in z.files if z[k].ndim == 2 and z[k].dtype == np.float32)[0]
    q, k, v, bq, bk, bv, wo, bo = weights[:8]
    attention = torch.softmax((x * q + bq)[:, :, None] * (x * k + bk)[:, None, :], -1)
    mine = ((attention * (x * v + bv)[:, None, :]).sum(-1) * wo + bo).abs().mean(1)
    told = pd.read_csv(out / "transformer" / f"{p}_top_100_features.csv").set_index("Gene")[
        "Importance"
    ]
    assert np.allclose(pd.Series(mine.numpy(), a.var_names)[told.index], told, atol=1e-5)


# ---- again, resumed, refused
@pytest.mark.slow  # every command has one driver; test_cohort_runs.py does this for run
def test_same_seed_same_bytes_and_resume(cohort, finished, tmp_path):
    "A run that lost half of its results is completed to the same bytes; another seed differs."
    whole = files(finished[0])
    shutil.copytree(finished[0], tmp_path / "out")
    kept = [step_file(finished[0], name) for name in ("fit/transformer", "audit")]
    for lost in (*kept, "audit.csv"):
        (tmp_path / "out" / lost).unlink()
    shutil.rmtree(tmp_path / "out" / "lstm")
    again = run_published(cohort, tmp_path / "out", epochs=12, resume=True)
    assert files(tmp_path / "out") == whole and again["summary"] == finished[1]["summary"]
    before = checksum(finished[0])
    assert (
        run_published(cohort, finished[0], epochs=12, resume=True)["summary"] == again["summary"]
        and checksum(finished[0]) == before
    )
    for changed, said in (
        (dict(epochs=3), "epochs was 12"),
        (dict(epochs=12, values="lognorm"), "values was 'counts'"),
        (dict(epochs=12, seed=1), "seed was 0"),
    ):
        with pytest.raises(ValueError, match=said):
            run_published(cohort, finished[0], resume=True, **changed)
    with pytest.raises(FileExistsError, match="not empty"):
        run_published(cohort, finished[0])
    other = run_published(cohort, tmp_path / "other", epochs=1, models=["transformer"], seed=1)
    assert not np.allclose(
        other["patients"]["accuracy"],
        finished[1]["patients"].query("model == 'transformer'")["accuracy"],
    )


def run(adata, folder, **how):
    save_cohort(adata, folder / "cohort.h5ad")
    return run_published(
        folder / "cohort.h5ad",
        folder / "out",
        **{"epochs": 1, "models": ["transformer", "lstm"], **how},
    )


def test_cohorts_that_do_not_fit(simulated, tmp_path):
    obs = simulated.obs
    for name, adata, said in (
        (
            "two",
            la.datasets.simulate_cohort(
                "two_timepoints", n_patients=3, n_genes=100, n_drivers=5, n_cells=10
            ),
            "stacks three visits .* this cohort has 2: before, after. Choose three",
        ),
        (
            "none",
            simulated[
                ~((obs["timepoint"] == "REM") & (obs["patient"].astype(str) > "AML4")).to_numpy()
                & ~((obs["timepoint"] == "REL") & (obs["patient"].astype(str) <= "AML4")).to_numpy()
            ].copy(),
            "none of 9 patients has all three visits .DX: 9 patients",
        ),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=said):
            run(adata, tmp_path / name)
        assert not (tmp_path / name / "out").exists()
    for how, said in (
        (dict(models=[]), "no models are named"),
        (dict(models=["gru"]), "model is 'gru'; expected one of: transformer, lstm, bilstm"),
        (dict(values="raw"), "values is 'raw'"),
        (dict(device="tpu"), "device is 'tpu'"),
        (dict(epochs=0), "at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            run_published(
                tmp_path / "two" / "cohort.h5ad"
                if "epochs" not in how
                else tmp_path / "whole.h5ad",
                tmp_path / "no",
                **how,
            ) if "epochs" not in how else fit_published(made(), "lstm", **how)
    assert not (tmp_path / "no").exists()


def test_bulk(tmp_path):
    result = run(
        la.datasets.simulate_cohort("bulk", n_patients=6, n_genes=120, n_drivers=6, n_cells=20),
        tmp_path,
    )
    assert (
        set(result["ranking"]["contrast"]) == {"day7_vs_day0"}
        and "visits stacked as day0, day7, day1; 6 of 6 patients have all three"
        in result["summary"]
    )
    assert "left out" not in result["summary"]


def test_log_normalised(simulated, tmp_path):
    "Values without counts: abundance and depth cannot be assessed, and the rest is."
    adata = la.pp.normalize(simulated)
    del adata.layers["counts"]
    adata = la.pp.as_cohort(adata, cell_type_key="cell_type")
    assert adata.uns["longaml"]["input_kind"] == "lognorm"
    result = run(adata, tmp_path)
    a = result["audit"].set_index(["model", "check"])["status"]
    assert (
        a["transformer", "input-independent"] == "failed"
        and a["lstm", "constant"] == "failed"
        and a["transformer", "explained by abundance"] == "not assessed"
    )
    log = trajectories(simulated, values="lognorm")
    assert np.allclose(trajectories(adata).x, log.x, atol=1e-5) and not np.allclose(
        trajectories(simulated).x, log.x, atol=1e-2
    )


def test_awkward_names_of_patients(simulated, tmp_path):
    "Names that a file cannot have, and that would fall together, get files of their own."
    adata = simulated.copy()
    names = complete_of(simulated)
    adata.obs["patient"] = adata.obs["patient"].cat.rename_categories(
        {names[0]: "P 1/a", names[1]: "P_1_a", names[2]: "P:1:a"}
    )
    result = run(adata, tmp_path, models=["transformer"])
    assert {"P 1/a", "P_1_a", "P:1:a"} <= set(result["patients"]["patient"])
    found = sorted(
        p.name for p in (tmp_path / "out" / "transformer").glob("P_1_a*_top_100_features.csv")
    )
    assert len(found) == 3 and "P_1_a_top_100_features.csv" in found


def complete_of(adata):
    return [
        p
        for p, t in adata.obs.groupby("patient", observed=True)["timepoint"].nunique().items()
        if t == 3
    ]


def test_kept_apart():
    "No other module of the package imports this one, but for the command line."
    package = ROOT / "longaml"
    apart = [p for p in package.rglob("*.py") if p.parent.name != "published"]
    others = [p for p in apart if p.name not in ("cli.py", "__init__.py", "_modidx.py")]
    known = re.compile(r"^\s*(from|import)\s+(longaml|\.)*\.published\b", re.M)
    assert len(others) > 10
    assert not [p.name for p in others if known.search(p.read_text())]


# ---- by property


@FEW
@given(
    st.sampled_from(MODELS), st.sampled_from([20, 46]), st.integers(0, 1000)
)  # 14 and 32 genes to train: one shape of batch each
def test_batched_equals_one_by_one(model, genes, seed):
    data = made(seed, 2, genes)
    a, b = (
        fit_published(
            data, model, epochs=2, seed=seed, dropout=False, exact=True, together=t, device="cpu"
        )
        for t in (True, False)
    )
    assert (
        np.abs(a.history - b.history).max() < 1e-4
        and (a.outputs() - b.outputs()).abs().max() < 1e-4
        and np.allclose(a.importance(), b.importance(), atol=1e-5)
    )
    assert [type(n) for n in a.networks] == [PUBLISHED_MODELS[model]] * 2


@FEW
@given(st.integers(0, 1000))
def test_rounding_moves_nothing_but_importance(seed):
    "As published and exact: the same losses and outputs, whatever rounding does to the attention."
    data = made(seed, 2, 46)
    a, b = (
        fit_published(
            data, "transformer", epochs=4, seed=seed, dropout=False, exact=e, device="cpu"
        )
        for e in (True, False)
    )
    start = fresh_networks("transformer", data.patients, seed=seed, dropout=False, exact=True)
    assert np.array_equal(
        a.importance(),
        PublishedFit("transformer", [n.eval() for n in start], None, data).importance(),
    )
    assert (a.outputs() - b.outputs()).abs().max() < 0.05 and not np.array_equal(
        a.importance(), b.importance()
    )
    assert (
        len(np.unique(b.outputs().reshape(-1, 3).numpy(), axis=0)) == 2
    )  # one output for each patient


def test_dropout_is_drawn_for_each_patient():
    "The same patient twice, with the same start: dropout differs, and is repeated by the seed."
    data = made(0, 1, 46)
    twin = Trajectories(
        data.x[[0, 0]],
        data.y[[0, 0]],
        data.level[[0, 0]],
        ["P0", "P0"],
        data.genes,
        data.visits,
        data.left_out,
    )
    a, b = (fit_published(twin, "bilstm", epochs=1, device="cpu").history for _ in range(2))
    assert not np.allclose(a[0], a[1]) and np.array_equal(a, b)
    quiet = fit_published(twin, "bilstm", epochs=1, dropout=False, device="cpu").history
    assert np.allclose(quiet[0], quiet[1], atol=1e-6)


@FEW
@given(st.sampled_from(MODELS), st.integers(20, 30), st.integers(0, 1000))
def test_knockouts_equal_the_loop(model, genes, seed):
    data = made(seed, 2, genes)
    nets = fresh_networks(model, data.patients, seed=seed)
    with torch.no_grad():
        for n in nets:
            n.head.weight.mul_(3)  # so that classes change
    fit = PublishedFit(model, [n.eval() for n in nets], None, data)
    fast = published_knockouts(fit)
    for i, (net, x, y) in enumerate(zip(nets, data.x, data.y.numpy())):
        with torch.no_grad():
            base = net(x[..., None])
        mine = fast[fast["patient"] == data.patients[i]].reset_index(drop=True)
        before = base.argmax(-1).numpy()
        assert list(mine["Gene"]) == data.genes
        for g in range(genes):
            without = x.clone()
            without[g] = 0
            with torch.no_grad():
                out = net(without[..., None])
            after = out.argmax(-1).numpy()
            row = mine.loc[g]
            assert (
                np.isclose(row["output_change"], (out - base)[g].abs().mean(), atol=1e-5)
                and row["prediction_changed"] == (before != after).any()
            )
            assert np.isclose(
                row["accuracy_drop"], accuracy_score(y, before) - accuracy_score(y, after)
            )
            assert np.isclose(
                row["f1_drop"],
                f1_score(y, before, average="weighted", zero_division=0)
                - f1_score(y, after, average="weighted", zero_division=0),
            )


def test_labels_are_random_and_repeatable(simulated):
    a, b, c = (trajectories(simulated, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.y, b.y) and not torch.equal(a.y, c.y) and torch.equal(a.x, c.x)
    assert (
        not torch.equal(a.y[0], a.y[1])
        and set(a.y.flatten().tolist()) == {0, 1, 2}
        and a.visits == ["DX", "REL", "REM"]
    )
    assert a.splits == (144, 175) and list(inspect.signature(run_published).parameters)[:2] == [
        "path",
        "out",
    ]


# ---- the benchmark


@pytest.mark.slow
def test_the_benchmark_agrees():
    "A small run of it: both sides in one process, ratios, and the same numbers."
    done = python("tests/benchmarks/bench_published.py", "--quick", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (
        len(re.findall(r"^  ratio +[\d.]+ x less time$", done.stdout, re.M)) == 6
        and "1 of " in done.stdout.splitlines()[0]
    )
    assert len(re.findall(r"the loop: all of them", done.stdout)) == 3
